"""nano3 inspect over the borders of shards and with files missing; nano3 verify names each file that is wrong."""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_helpers import documents, run, source, texts, write
from tokenizers import Tokenizer

from nano3.data.dataset.manifest import load_manifest
from nano3.tools import inspect_data, verify
from nano3.utils.errors import Failure, UserError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, byte_bpe: Path) -> Path:
    """Two datasets in several shards each; read-only."""
    folder = tmp_path_factory.mktemp("data")
    sources = [source(write(folder / f"{n}.jsonl", texts(30, seed=i)), n) for i, n in enumerate("ab")]
    run(sources, folder / "out", byte_bpe, num_shards=6, valid_fraction=0.2, test_fraction=0.0)
    return folder / "out"


def tool(module: Any, *words: object) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args(list(map(str, words))))


@pytest.mark.parametrize(
    ("first", "count"),
    [
        pytest.param(0, 1, id="the first"),
        pytest.param(0, 1000, id="all and more"),
        pytest.param(5, 20, id="over borders"),
        pytest.param(-1, 3, id="the last"),
        pytest.param(-4, 3, id="up to the last but one"),
    ],
)
@pytest.mark.parametrize("dataset", [None, "a", "b"], ids=["both", "a", "b"])
def test_documents_come_in_their_order_over_all_shards(
    good: Path, capfd: pytest.CaptureFixture[str], dataset: str | None, first: int, count: int
) -> None:
    wanted = documents(good, "train", dataset)
    shards = [s for s in load_manifest(good).shards if s.split == "train" and dataset in (None, s.dataset)]
    assert len(shards) > 1 and len(wanted) > 10
    start = first % len(wanted)
    choice = ["--dataset", dataset] if dataset else []
    assert tool(inspect_data, good, "--doc", start, "--count", count, "--chars", 0, "--ids", *choice) == 0
    lines = capfd.readouterr().out.splitlines()
    shown = [lines[n + 3] for n, line in enumerate(lines) if line == "document"]
    assert shown == [" ".join(map(str, ids)) for ids in wanted[start : start + count]]
    with pytest.raises(UserError, match=f"--doc {len(wanted)}: train has documents 0 to {len(wanted) - 1}"):
        tool(inspect_data, good, "--doc", len(wanted), *choice)


@pytest.mark.parametrize("most", [1, 5, 10**6])
def test_what_is_cut_is_counted(good: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str], most: int) -> None:
    tokenizer = Tokenizer.from_file(str(byte_bpe / "tokenizer.json"))
    number, ids = max(enumerate(documents(good, "train")), key=lambda pair: len(pair[1]))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    tool(inspect_data, good, "--doc", number, "--chars", most)
    out = capfd.readouterr().out
    assert f"\n{text[:most]}\n" in out
    assert (f"... {len(text) - most:,} characters more (--chars 0)" in out) == (len(text) > most)


@pytest.fixture
def spoiled(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("damage", ["gone", "empty", "a folder"])
def test_a_shard_that_cannot_be_read_is_named_by_both(
    spoiled: Path, capfd: pytest.CaptureFixture[str], suffix: str, damage: str
) -> None:
    file = min((spoiled / "train").glob(f"*.{suffix}"))
    file.unlink()
    if damage != "gone":
        file.mkdir() if damage == "a folder" else file.touch()
    with pytest.raises(Failure) as caught:
        tool(inspect_data, spoiled, "--doc", 0)
    assert str(file) in str(caught.value)
    capfd.readouterr()
    assert tool(verify, spoiled, "--threads", 2) == 1
    err = capfd.readouterr().err
    assert str(file) in err and err.splitlines()[-1].startswith(f"error: {spoiled}: ")
    assert "Prepare it again with force=true." in err


def test_more_files_than_the_manifest_knows_are_no_matter(spoiled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (spoiled / "train" / "notes.txt").write_text("mine")
    (spoiled / os.fsdecode(b"caf\xe9")).touch()
    tool(verify, spoiled)
    assert [line.split(": ")[1] for line in capfd.readouterr().err.splitlines()[:-1]] == [f"{spoiled}/blend.json"] * 2


@pytest.mark.parametrize("lost", ["blend.json", "tokenizer/tokenizer.json"])
def test_what_is_quickly_mended_needs_no_force(
    spoiled: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str], lost: str
) -> None:
    """force=true would prepare everything anew; as it is said, so it works."""
    (spoiled / lost).unlink()
    assert tool(verify, spoiled) == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith(" checks failed. Prepare it again.")
    kept = {p: p.stat().st_mtime_ns for p in (spoiled / "train").iterdir()}
    sources = load_manifest(spoiled).datasets
    run([source(d.path, d.name) for d in sources], spoiled, byte_bpe, num_shards=6, valid_fraction=0.2,
        test_fraction=0.0)  # fmt: skip
    assert tool(verify, spoiled) == 0
    assert {p: p.stat().st_mtime_ns for p in (spoiled / "train").iterdir()} == kept
