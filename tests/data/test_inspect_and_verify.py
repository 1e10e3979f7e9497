"""The commands nano3 inspect and nano3 verify."""

import argparse
import os
import shutil
from pathlib import Path
from types import ModuleType

import commands
import pytest
from data_helpers import documents, run, source, texts, write
from tokenizers import Tokenizer

from nano3.artifacts import store
from nano3.data.dataset.manifest import load_manifest
from nano3.tools import inspect_data, verify
from nano3.utils.errors import Failure, UserError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, byte_bpe: Path) -> Path:
    """Two datasets of several shards each; tests must not change it."""
    folder = tmp_path_factory.mktemp("data")
    sources = [source(write(folder / f"{n}.jsonl", texts(30, seed=i)), n) for i, n in enumerate("ab")]
    run(sources, folder / "out", byte_bpe, num_shards=6, valid_fraction=0.2, test_fraction=0.0)
    return folder / "out"


def run_tool(module: ModuleType, *words: object) -> int:
    """Run a tool and return its exit code."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(list(map(str, words))))
    return code


@pytest.mark.parametrize(
    ("first", "count"),
    [
        pytest.param(0, 1, id="first"),
        pytest.param(0, 1000, id="more than all"),
        pytest.param(5, 20, id="across shards"),
        pytest.param(-1, 3, id="last"),
        pytest.param(-4, 3, id="up to the last but one"),
    ],
)
@pytest.mark.parametrize("dataset", [None, "a", "b"], ids=["both", "a", "b"])
def test_inspect_shows_documents_in_order_across_shards(
    good: Path, capfd: pytest.CaptureFixture[str], dataset: str | None, first: int, count: int
) -> None:
    wanted = documents(good, "train", dataset)
    shards = [s for s in load_manifest(good).shards if s.split == "train" and dataset in (None, s.dataset)]
    assert len(shards) > 1 and len(wanted) > 10
    start = first % len(wanted)
    choice = ["--dataset", dataset] if dataset else []
    assert run_tool(inspect_data, good, "--doc", start, "--count", count, "--chars", 0, "--ids", *choice) == 0
    lines = capfd.readouterr().out.splitlines()
    shown = [lines[n + 3] for n, line in enumerate(lines) if line == "document"]
    assert shown == [" ".join(map(str, ids)) for ids in wanted[start : start + count]]
    with pytest.raises(UserError, match=f"--doc {len(wanted)}: train has documents 0 to {len(wanted) - 1}"):
        run_tool(inspect_data, good, "--doc", len(wanted), *choice)


@pytest.mark.parametrize("limit", [1, 5, 10**6])
def test_inspect_counts_omitted_characters(
    good: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str], limit: int
) -> None:
    tokenizer = Tokenizer.from_file(str(byte_bpe / "tokenizer.json"))
    number, ids = max(enumerate(documents(good, "train")), key=lambda pair: len(pair[1]))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    run_tool(inspect_data, good, "--doc", number, "--chars", limit)
    out = capfd.readouterr().out
    assert f"\n{text[:limit]}\n" in out
    assert (f"... {len(text) - limit:,} more characters (--chars 0)" in out) == (len(text) > limit)


@pytest.fixture
def data(tmp_path: Path, byte_bpe: Path) -> Path:
    """Two datasets of 100 documents; may be changed."""
    sources = [source(write(tmp_path / f"{n}.jsonl", texts(100, seed=i)), n) for i, n in enumerate("ab")]
    run(sources, tmp_path / "out", byte_bpe, valid_fraction=0.1)
    return tmp_path / "out"


@pytest.fixture
def damaged(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("damage", ["gone", "empty", "a folder"])
def test_inspect_and_verify_name_an_unreadable_shard(
    damaged: Path, capfd: pytest.CaptureFixture[str], suffix: str, damage: str
) -> None:
    file = min((damaged / "train").glob(f"*.{suffix}"))
    file.unlink()
    if damage != "gone":
        file.mkdir() if damage == "a folder" else file.touch()
    with pytest.raises(Failure) as caught:
        run_tool(inspect_data, damaged, "--doc", 0)
    assert str(file) in str(caught.value)
    capfd.readouterr()
    assert run_tool(verify, damaged, "--threads", 2) == 1
    err = capfd.readouterr().err
    assert str(file) in err and err.splitlines()[-1].startswith(f"error: {damaged}: ")
    assert "Prepare it again with force=true." in err


def test_verify_ignores_unknown_files(damaged: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (damaged / "train" / "mine.txt").write_text("mine")
    (damaged / os.fsdecode(b"caf\xe9")).touch()
    run_tool(verify, damaged)
    assert [line.split(": ")[1] for line in capfd.readouterr().err.splitlines()[:-1]] == [f"{damaged}/blend.json"] * 2


@pytest.mark.parametrize("lost", ["blend.json", "tokenizer/tokenizer.json"])
def test_lost_small_files_are_restored_without_force(
    damaged: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str], lost: str
) -> None:
    """The advice of nano3 verify works, and the shards are not made again."""
    (damaged / lost).unlink()
    assert run_tool(verify, damaged) == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith(" checks failed. Prepare it again.")
    kept = {p: p.stat().st_mtime_ns for p in (damaged / "train").iterdir()}
    sources = load_manifest(damaged).datasets
    run([source(d.path, d.name) for d in sources], damaged, byte_bpe, num_shards=6, valid_fraction=0.2,
        test_fraction=0.0)  # fmt: skip
    assert run_tool(verify, damaged) == 0
    assert {p: p.stat().st_mtime_ns for p in (damaged / "train").iterdir()} == kept


def nano3(*words: object) -> tuple[int, str, str]:
    """Run `python -m nano3`; return exit code, stdout and stderr."""
    return commands.run_tool(*words)


def test_inspect_decodes_documents(data: Path) -> None:
    code, out, err = nano3("inspect", data, "--doc", 0, "--count", 3, "--dataset", "b", "--chars", 0, "--ids")
    assert (code, err) == (0, "")
    wanted = [t for t in texts(100, seed=1) if t]
    assert sum(f"\n{t}</s>\n" in out for t in wanted) == 3
    assert "train/data_0000" in out
    code, out, _ = nano3("inspect", data)
    assert code == 0
    assert "200" in out
    assert "</s>" in out


def test_data_by_artifact_reference(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    store.register("Data", data, "content", alias="mine")
    for tool in ("verify", "inspect"):
        for reference in ("Data:mine", "Data:v1", "Data"):
            code, out, err = nano3(tool, reference)
            assert (code, err) == (0, "") and str(data) in out
        code, _, err = nano3(tool, "Data:main")
        assert code == 2 and "Did you mean 'mine'" in err
        code, _, err = nano3(tool, "nowhere")
        assert code == 2 and "nowhere: no manifest.json" in err


WRONG = {
    "split": (["--doc", 0, "--split", "tran"], "Did you mean 'train'"),
    "dataset": (["--doc", 0, "--dataset", "c"], "Allowed: a, b"),
    "number": (["--doc", 100000], "documents 0 to"),
    "split alone": (["--split", "tran"], "Did you mean 'train'"),
    "dataset alone": (["--dataset", "c"], "Allowed: a, b"),
    "good split alone": (["--split", "valid", "--chars", 0], "--split, --chars: only used to show documents"),
    "both": (["--split", "tran", "--dataset", "c"], "--dataset c"),
    "count": (["--doc", 0, "--count", 0], "--count: 0 is too small. The minimum is 1."),
    "negative count": (["--doc", 0, "--count", -2], "-2 is too small"),
    "chars": (["--doc", 0, "--chars", -20], "--chars: -20 is too small. The minimum is 0."),
    "negative doc": (["--doc", -1], "--doc: -1 is too small"),
    "no number": (["--doc", "x"], "'x' is not a whole number"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG.keys())
def test_inspect_reports_wrong_options(data: Path, words: list[object], message: str) -> None:
    code, _, err = nano3("inspect", data, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_verify_passes_good_data(data: Path) -> None:
    code, out, err = nano3("verify", data)
    assert (code, err) == (0, "")
    assert "checks passed" in out


def test_verify_exits_with_one(data: Path) -> None:
    path = min(data.glob("train/*.bin"))
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    code, _, err = nano3("verify", data)
    assert code == 1
    assert "data_00000.bin" in err
    assert "Traceback" not in err
