"""nano3 never reads its own output as text, records stable paths, and overwrites nothing silently."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, Commands

from nano3.artifacts import store
from nano3.data.sources.listing import list_local
from nano3.data.sources.own_files import non_text_names
from nano3.utils.files import normalize_path

SAMPLE = ROOT / "nano3/sample"
PREP = ["-m", "nano3.data_prep", f"tokenizer_model={SAMPLE}/tokenizer", "num_shards=4", "workers=1"]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands(tmp_path)
    monkeypatch.setenv("NANO3_HOME", commands.env["NANO3_HOME"])
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.jsonl").write_text("".join(f'{{"text": "document {n}"}}\n' for n in range(300)))
    return commands


def blend(path: str, name: str = "b.json") -> list[str]:
    """Write a blend file of one dataset to the current folder and return the override that selects it."""
    Path(name).write_text(json.dumps({"datasets": [{"name": "d", "path": path}]}))
    return [f"blend_path={name}"]


def documents(folder: Path) -> int:
    return json.loads((folder / "manifest.json").read_text())["datasets"][0]["documents"]


def test_a_sweep_that_writes_into_its_text_folder(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.folder)
    words = [*PREP[:-2], *blend("text"), "workers=1", "output_dir=text/out"]
    cli(*words, "-m", "num_shards=4,5")
    assert documents(Path("text/out/num_shards=5")) == documents(Path("text/out/num_shards=4")) == 300
    cli(*words, "-m", "num_shards=4,5")


def test_the_store_and_runs_inside_the_text_folder(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the same command twice, with the artifact store in its default folder, which is inside the text folder."""
    monkeypatch.chdir(cli.folder / "text")
    Path("runs/mine/starts").mkdir(parents=True)
    Path("runs/mine/config.yaml").write_text("x: 1\n")
    Path("runs/mine/metrics.jsonl").write_text('{"text": "no document"}\n')
    for _ in range(2):
        words = [sys.executable, *PREP, "data_blend.datasets=[{name: d, path: .}]", "data_blend.name=d"]
        env = {**cli.env, "NANO3_HOME": "artifacts"}
        done = subprocess.run([*words, "output_dir=out"], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "left out" not in done.stderr
    assert "nothing to do" in done.stdout
    assert documents(Path("out")) == 300


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("**/*.json*", ["mine.json", "own/train/x.jsonl"]), ("made/*.json", None), ("made/**/*", None)],
    ids=["all", "what was made", "all that was made"],
)
def test_a_pattern_skips_nano3_output(tmp_path: Path, pattern: str, found: list[str] | None) -> None:
    """`own` has a folder `train` that nano3 did not write."""
    files = ["mine.json", "own/train/x.jsonl", "made/manifest.json", "made/blend.json", "made/tokenizer/tokenizer.json"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "made/.prep").mkdir()
    if found is None:
        with pytest.raises(Exception, match="no file matches"):
            list_local(str(tmp_path / pattern), "", "label")
    else:
        assert sorted(e.key for e in list_local(str(tmp_path / pattern), "", "label").entries) == found


@pytest.mark.parametrize(
    "names",
    [
        ["config.yaml", "a.jsonl"],
        ["starts", "a.jsonl"],
        ["manifest.json", "train", "a.jsonl"],
        ["x.alias", "v1.json", "a.jsonl"],
        ["places", "vault.json", "a.jsonl"],
    ],
    ids=["a configuration", "a name", "somebody's manifest", "versions", "places"],
)
def test_folders_that_resemble_nano3_output_are_read(names: list[str]) -> None:
    assert "a.jsonl" not in non_text_names(names)


@pytest.mark.parametrize("way", ["out", "sub/../out", "link", "sub/link"])
def test_data_is_verified_through_any_path(cli: Commands, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.chdir(cli.folder)
    cli(*PREP, *blend("text"), "output_dir=out")
    Path("sub").mkdir()
    Path("link").symlink_to("out")
    Path("sub/link").symlink_to("../out")
    assert "checks passed" in cli("-m", "nano3", "verify", way).stdout


def test_dots_in_a_path_are_resolved(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.folder)
    Path("sub").mkdir()
    blend(str(cli.folder / "text"))
    words = [*PREP, f"blend_path={cli.folder}/b.json"]
    command = [sys.executable, *words, "output_dir=../out"]
    subprocess.run(command, cwd="sub", env=cli.env, check=True, capture_output=True)
    kept = json.loads(Path("out/blend.json").read_text())["train"][1::2]
    assert kept and all(path.startswith(f"{cli.folder}/out/train/") for path in kept)
    assert store.resolve("DataBlendsArtifact-pretrain:b").path == str(cli.folder / "out")
    assert "nothing to do" in cli(*words, "output_dir=out").stdout


@pytest.mark.parametrize(
    ("path", "kept"),
    [("a/b", "a/b"), ("a/../b", "b"), ("link/../b", "real/b"), ("../x", "../x"), ("gone/../b", "b")],
    ids=["no dots", "dots", "behind a link", "above", "through what is not there"],
)
def test_dots_after_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, kept: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real/deep").mkdir(parents=True)
    Path("link").symlink_to("real/deep")
    assert normalize_path(path) == Path(os.path.normpath(tmp_path / kept))


@pytest.mark.parametrize("closed", [">&-", "2>&-", "| head -c 1", "| true"])
def test_data_is_registered_when_the_output_is_closed(
    cli: Commands, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    monkeypatch.chdir(cli.folder)
    words = " ".join([sys.executable, *PREP, *blend("text"), "output_dir=out"])
    done = subprocess.run(["bash", "-c", f"{words} {closed}"], env=cli.env, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert store.versions("DataBlendsArtifact-pretrain") == [1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["num_shards=5"], "num_shards was 4, now 5"),
        (["add_bos=true"], "add_bos was False, now True"),
        (["blend_path=c.json"], "its datasets were d, now e"),
        (["blend_path=two.json"], "the text or the text field has changed"),
        (["dtype=int32"], "dtype was uint16, now int32"),
    ],
    ids=["shards", "option", "dataset", "text", "dtype"],
)
def test_changed_options_are_named(
    cli: Commands, monkeypatch: pytest.MonkeyPatch, change: list[str], expected: str
) -> None:
    monkeypatch.chdir(cli.folder)
    cli(*PREP, *blend("text"), "output_dir=out")
    Path("c.json").write_text(json.dumps({"datasets": [{"name": "e", "path": "text"}]}))
    Path("more").mkdir()
    Path("more/a.jsonl").write_text('{"text": "other"}\n')
    blend("more", "two.json")
    done = cli(*PREP, *blend("text"), "output_dir=out", *change, code=2)
    assert expected in done.stderr and "force=true" in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zero.parquet", "no bytes at all"),
        ("zero.jsonl.gz", "no bytes at all"),
        ("fake.parquet", "not of a known format"),
        ("fake.jsonl.zst", ""),
        ("zero.jsonl", ""),
    ],
)
def test_content_that_does_not_match_the_file_name(
    cli: Commands, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    """A file in a folder whose content does not match its name must not be skipped silently.

    JSON Lines files may have any name and may be empty.
    """
    monkeypatch.chdir(cli.folder)
    Path("text", name).write_text("" if name.startswith("zero") else '{"text": "x"}\n' * ("json" in name) or "hello\n")
    done = cli(*PREP, *blend("text"), "output_dir=out", code=2 if expected else 0)
    assert expected in done.stderr and (name in done.stderr or not expected)


def test_unknown_keys_of_a_blend_file_are_rejected(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.folder)
    content = {"num_shards": 5, "tokenizer_modle": 1, "datasets": [{"name": "a", "path": "text", "wieght": 1}]}
    Path("x.json").write_text(json.dumps(content))
    errors = cli(*PREP, "blend_path=x.json", "output_dir=out", code=2).stderr
    assert "no key 'num_shards'" in errors and "num_shards=..." in errors
    assert "no key 'tokenizer_modle'" in errors and "Did you mean 'weight'" in errors


def test_datasets_on_the_command_line_need_a_blend_name(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.folder)
    own = [*PREP, "data_blend.datasets=[{name: d, path: text}]", "output_dir=out"]
    assert "Set data_blend.name=NAME" in cli(*own, code=2).stderr
    cli(*own, "alias=mine")
    assert set(store.aliases("DataBlendsArtifact-pretrain")) == {"mine", "latest"}
