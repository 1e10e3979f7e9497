"""Files of another user: the message names the file, its owner, and what to type; no traceback and no wrong advice.

Root may read everything, so the commands run without the capabilities for that, on files that belong to "nobody".
"""

import itertools
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
NUMBERS = itertools.count()  # of exports
TOKENIZER = f"tokenizer_model={ROOT}/nano3/sample/tokenizer"
PREP = f"nano3.data_prep blend_path=b.json {TOKENIZER} output_dir=data num_shards=2 valid_fraction=0.1 workers=1"
RUN = "output/nano3/runs/one"
STORE = "home/DataBlendsArtifact-pretrain"
DATA_COMMANDS = [
    "nano3 inspect data", "nano3 inspect data --doc 0", "nano3 verify data", PREP, f"{PREP} force=true",
    f"nano3.pretrain {' '.join(SMALL)} run.data=data dry_run=true",
]  # fmt: skip
RUN_COMMANDS = [
    "nano3 jobs", "nano3 tail one --no-follow", "nano3 diff one one", "nano3 report one --output page.html",
    "nano3 trace one --iteration 2 --text", "nano3 export one --output hf{n}", "nano3 cancel one",
    "nano3 rerun one dry_run=true", f"nano3.pretrain {' '.join(SMALL)} run.data=data run.name=one",
]  # fmt: skip
STORE_COMMANDS = [
    "nano3 artifacts list", "nano3 artifacts show DataBlendsArtifact-pretrain", PREP, "nano3 doctor",
    "nano3 artifacts lineage DataBlendsArtifact-pretrain:latest", "nano3 inspect DataBlendsArtifact-pretrain:b",
]  # fmt: skip
CONF_COMMANDS = [f"{PREP} cluster=mine dry_run=true", "nano3.pretrain cluster=mine dry_run=true", "nano3 doctor"]
FAST = {
    "data/manifest.json": DATA_COMMANDS,
    "data/train": DATA_COMMANDS[3:],
    f"{STORE}/v1.json": STORE_COMMANDS,
    "conf/cluster": CONF_COMMANDS,
}
FOLDERS = {
    **dict.fromkeys(["data", "data/tokenizer", "data/.prep"], DATA_COMMANDS),
    "text": DATA_COMMANDS[3:5],
    **dict.fromkeys([RUN, f"{RUN}/starts", f"{RUN}/starts/0001", f"{RUN}/checkpoints"], RUN_COMMANDS),
    f"{RUN}/checkpoints/iter_0000006": RUN_COMMANDS[4:],
    **dict.fromkeys(["home", STORE], STORE_COMMANDS),
}
FILES = {
    **dict.fromkeys(["data/tokenizer/tokenizer.json", "data/train/data_00000.bin"], DATA_COMMANDS),
    **dict.fromkeys(["data/train/data_00000.idx", "data/.prep/lock", "data/.prep/*/plan.json"], DATA_COMMANDS),
    **dict.fromkeys(["b.json", "text/a.jsonl"], DATA_COMMANDS[3:5]),
    **dict.fromkeys([f"{RUN}/config.yaml", f"{RUN}/starts/0001/start.json", f"{RUN}/metrics.jsonl"], RUN_COMMANDS),
    **dict.fromkeys([f"{RUN}/finished.json", f"{RUN}/checkpoints/iter_0000006/checkpoint.json"], RUN_COMMANDS),
    f"{STORE}/b.alias": STORE_COMMANDS,
    "conf/cluster/mine.yaml": CONF_COMMANDS,
}


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Data, a store, and group members, which belong to root."""
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


@pytest.fixture(scope="module")
def trained(cli: Commands) -> Commands:
    """The same with a run."""
    cli("-m", "nano3.pretrain", *SMALL, "run.data=data", "run.name=one")
    return cli


def check(cli: Commands, path: str, mode: int, commands: list[str]) -> list[int]:
    """Run the commands while a file belongs to nobody and has this mode; check every message, return the exit codes."""
    (target,) = cli.folder.glob(path)
    before = target.stat()
    paths = [target, *target.rglob("*")] if target.is_dir() else [target]
    owners = [(each, each.stat().st_uid) for each in paths]
    try:
        for each in paths:
            os.chown(each, NOBODY, -1)
        target.chmod(mode)
        commands = [command.replace("{n}", str(next(NUMBERS))) for command in commands]
        words = [*SETPRIV, sys.executable, str(ROOT / "tests/forked_commands.py"), *commands]
        done = subprocess.run(words, cwd=cli.folder, env=cli.env, capture_output=True, text=True)
    finally:
        target.chmod(before.st_mode & 0o7777)
        for each, owner in owners:
            if each.exists():
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
            assert not any(word in shown for word in ("force=true", "emove it", "damaged", "no run was")), (
                command,
                shown,
            )
    return [code for _, code, _ in results]


@pytest.mark.parametrize("path", FAST)
def test_files_that_this_user_may_not_read(cli: Commands, path: str) -> None:
    check(cli, path, 0o000, FAST[path][:4])


def test_a_run_that_this_user_may_not_list(cli: Commands) -> None:
    (cli.folder / "output/nano3/runs/secret").mkdir(parents=True)
    (cli.folder / "output/nano3/runs/secret/config.yaml").touch()
    tools = [f"nano3 {words}" for words in ("tail secret", "logs secret", "jobs output/nano3/runs/secret")]
    assert check(cli, "output/nano3/runs/secret", 0o000, [*tools, "nano3 jobs"]) == [2, 2, 2, 0]


def test_data_that_may_not_be_replaced_is_left_untouched(cli: Commands) -> None:
    """A folder can be moved only with write permission on itself: force=true must see that before it moves others."""
    check(cli, "data/tokenizer", 0o555, [f"{PREP} force=true", "nano3 verify data"])
    assert (cli.folder / "data/manifest.json").is_file()


def test_a_pattern_through_a_folder_that_may_be_searched_but_not_listed(cli: Commands) -> None:
    for number, pattern in enumerate(["te*/a.jsonl", "text/*.jsonl", "**/a.jsonl"]):
        blend = {"datasets": [{"name": "a", "path": str(cli.folder / pattern)}]}
        (cli.folder / f"glob{number}.json").write_text(json.dumps(blend))
    commands = [PREP.replace("b.json", f"glob{number}.json") for number in range(3)]
    assert check(cli, "text", 0o311, commands) == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES | FOLDERS)
def test_every_file_of_another_user(trained: Commands, path: str) -> None:
    check(trained, path, 0o000, (FILES | FOLDERS)[path])


@pytest.mark.slow
@pytest.mark.parametrize("path", FOLDERS)
def test_every_folder_that_this_user_may_only_read(trained: Commands, path: str) -> None:
    check(trained, path, 0o555, FOLDERS[path])
