"""Files of another user: the message names the file, its owner, and what to type; no traceback and no wrong advice.

Root may read everything, so the commands run without the capabilities for that, on files that belong to "nobody".
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from commands import ROOT, SMALL, Commands

CAPABILITIES = "-dac_override,-dac_read_search,-fowner,-chown"
NOBODY = 65534
SETPRIV = ["setpriv", "--bounding-set", CAPABILITIES]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or subprocess.run([*SETPRIV, "true"]).returncode != 0,
    reason="needs root, and setpriv of util-linux",
)
TOKENIZER = f"tokenizer_model={ROOT}/nano3/sample/tokenizer"
PREP = f"nano3.data_prep blend_path=b.json {TOKENIZER} output_dir=data num_shards=2 valid_fraction=0.1 workers=1"
STORE = "home/DataBlendsArtifact-pretrain"
DATA_COMMANDS = [
    "nano3 inspect data", "nano3 inspect data --doc 0", "nano3 verify data", PREP, f"{PREP} force=true",
    f"nano3.pretrain {' '.join(SMALL)} run.data=data dry_run=true",
]  # fmt: skip
STORE_COMMANDS = [
    "nano3 artifacts list", "nano3 artifacts show DataBlendsArtifact-pretrain", PREP, "nano3 doctor",
    "nano3 artifacts lineage DataBlendsArtifact-pretrain:latest", "nano3 inspect DataBlendsArtifact-pretrain:b",
]  # fmt: skip
CONF_COMMANDS = [f"{PREP} cluster=mine dry_run=true", "nano3.pretrain cluster=mine dry_run=true", "nano3 doctor"]
CASES = {
    "data/manifest.json": DATA_COMMANDS,
    f"{STORE}/v1.json": STORE_COMMANDS,
    "conf/cluster": CONF_COMMANDS,
}


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Data, a store, and group members."""
    cli = Commands(tmp_path_factory.mktemp("permissions"))
    (cli.folder / "text").mkdir()
    rows = "".join(json.dumps({"text": f"document {n} of some words"}) + "\n" for n in range(300))
    (cli.folder / "text/a.jsonl").write_text(rows)
    (cli.folder / "b.json").write_text(json.dumps({"datasets": [{"name": "a", "path": "text"}]}))
    (cli.folder / "conf/cluster").mkdir(parents=True)
    (cli.folder / "conf/cluster/mine.yaml").write_text("defaults: [local, _self_]\n")
    cli.env["NANO3_CONF"] = str(cli.folder / "conf")
    cli("-m", *PREP.split())
    yield cli


def check(cli: Commands, path: str, mode: int, commands: list[str]) -> None:
    """Run the commands while a file belongs to nobody and has this mode; check every message."""
    (target,) = cli.folder.glob(path)
    before = target.stat()
    paths = [target, *target.rglob("*")] if target.is_dir() else [target]
    owners = [(each, each.stat().st_uid) for each in paths]
    try:
        for each in paths:
            os.chown(each, NOBODY, -1)
        target.chmod(mode)
        words = [*SETPRIV, sys.executable, str(ROOT / "tests/forked_commands.py"), *commands]
        done = subprocess.run(words, cwd=cli.folder, env=cli.env, capture_output=True, text=True)
    finally:
        target.chmod(before.st_mode & 0o7777)
        for each, owner in owners:
            os.chown(each, owner, -1)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(commands)
    for command, code, shown in results:
        assert "Traceback" not in shown, (command, shown)
        assert code in (0, 1, 2), (command, shown)
        if code:
            assert str(target) in shown or path.partition("/*")[0] in shown, (command, shown)
            assert "permission denied" in shown.lower() and "nobody" in shown, (command, shown)
            assert not any(word in shown for word in ("force=true", "emove it", "damaged")), (command, shown)


@pytest.mark.parametrize("path", CASES)
def test_files_that_this_user_may_not_read(cli: Commands, path: str) -> None:
    check(cli, path, 0o000, CASES[path][:4])
