"""What a run says of itself: a bar on a terminal, lines elsewhere, a table that adds up, and a proof that means it."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import options, plan_build, source, texts, write

from nano3.data.build import engine_check, progress
from nano3.data.build.manifest_builder import add_counts
from nano3.data.build.progress import ProgressMeter, print_summary
from nano3.data.build.unit_encoder import Worker
from nano3.data.dataset.manifest import Counts, DatasetEntry, Manifest, ShardEntry, TokenizerEntry
from nano3.data.planning.plan import load_plan
from nano3.data.tokenization.encoders import Encoded, Encoder, fast_encoder, reference_encoder
from nano3.data.tokenization.engines import Engines, load_engines


class Terminal(io.StringIO):
    """A screen that remembers what was written to it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("every", "lines"), [(-1.0, 3), (1e9, 0)], ids=["due", "not_due"])
def test_a_job_log_gets_a_line_when_one_is_due(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every: float, lines: int
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", every)
    with ProgressMeter(units=10, done=4) as meter:
        meter.add(text_bytes=3_000_000)
        meter.add(units=1)
        meter.add(text_bytes=2_000_000, units=2)
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == lines
    if lines:
        assert told.err.splitlines()[-1].startswith("data_prep: 7/10 units, 5 MB of text, ")
    assert (meter.done, meter.text_bytes) == (7, 5_000_000)


def test_a_terminal_gets_a_bar_that_goes_also_when_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyError), ProgressMeter(units=10, done=4) as meter:
        meter.add(text_bytes=3_000_000, units=1)
        assert meter._bar is not None
        meter._bar.refresh()
        assert "5/10 units" in screen.getvalue()
        raise KeyError("in the middle")
    assert "data_prep:" not in screen.getvalue(), "no lines beside a bar"
    assert screen.getvalue().count("\x1b[?25h") == screen.getvalue().count("\x1b[?25l") == 1, "the cursor is back"


def counts(documents: int, tokens: int) -> Counts:
    return Counts(documents=documents, sequences=documents, tokens=tokens)


def dataset(
    name: str, train: int, valid: int, skipped: dict[str, int] | None = None, empty: int = 0, special_tokens: int = 0
) -> DatasetEntry:
    """A dataset's entry; three tokens in each document."""
    return DatasetEntry(
        name=name, weight=1.0, path="p", revision=None, files=1, documents=train + valid, empty=empty,
        tokens=3 * (train + valid), text_bytes=0, skipped=skipped or {}, truncated=0, special_tokens=special_tokens,
        splits={"train": counts(train, 3 * train), "valid": counts(valid, 3 * valid), "test": counts(0, 0)},
    )  # fmt: skip


def manifest_of(*datasets: DatasetEntry) -> Manifest:
    splits = {name: add_counts(d.splits[name] for d in datasets) for name in ("train", "valid", "test")}
    tokenizer = TokenizerEntry("t", None, "0", "tokenizer", 10, 2, "</s>")
    shards = [ShardEntry("train", f"train/data_0000{n}", "d", 1, 1, 3, 6, "b", "i", []) for n in range(2)]
    versions = {"engine": "fastokens"}
    return Manifest(2, "b[/x]", "h", tokenizer, "uint16", {}, list(datasets), splits, shards, versions)


def test_the_table_has_the_splits_that_have_documents_and_a_sum(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(
        manifest_of(dataset("one", 1000, 20, skipped={"null": 2, "short": 1000}), dataset("two", 30, 0)), None
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "blend b[/x]"
    assert "valid (documents / tokens)" in lines[1]
    assert "test" not in lines[1]
    cells = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert cells["one"][:8] == ["1,020", "3,060", "1,000", "/", "3,000", "20", "/", "60"]
    assert cells["one"][8:] == ["2", "null,", "1,000", "short"]
    assert cells["two"] == ["30", "90", "30", "/", "90", "0", "/", "0", "-"]
    assert cells["all"] == ["1,050", "3,150", "1,030", "/", "3,090", "20", "/", "60"]
    assert len(lines) == 5


def test_a_table_on_a_terminal_shows_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich takes them for markup: it would drop some, and stop at others."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    print_summary(manifest_of(dataset("one", 5, 0), dataset("two[train]", 6, 0)), None)
    assert "blend b[/x]" in screen.getvalue()
    assert "two[train]" in screen.getvalue()


def test_one_dataset_needs_no_sum_and_oddities_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter(1, 0)
    meter.add(text_bytes=9)
    print_summary(manifest_of(dataset("one", 5, 0, empty=1234, special_tokens=7)), meter)
    out = capsys.readouterr().out
    assert "\nall" not in out
    assert "1,234 empty document(s)" in out
    assert "7 special token(s) occurred literally in the text" in out
    assert "\n2 shards in " in out
    assert "engine fastokens" in out


# The proof


def worker_of(folder: Path, tokenizer: Path, paths: list[Path], **keys: Any) -> tuple[Worker, Engines]:
    """A worker for datasets, one of each path."""
    sources = [source(path, name=f"d{number}") for number, path in enumerate(paths)]
    plan_path = plan_build(sources, options(folder / "out", tokenizer, **keys), "test")
    plan = load_plan(plan_path)
    engines = load_engines(plan.tokenizer.file, False, fast=True)
    encoders = reference_encoder(engines.reference), fast_encoder(engines.fast, False)
    return Worker(plan, plan_path.parent, *encoders), engines


def wrong_at(word: str, right: Encoder) -> Encoder:
    """An encoder that takes a word for another."""

    def encode(batch: list[str]) -> Encoded:
        ids, lengths = right([text.replace(word, word.upper()) for text in batch])
        return np.array(ids), lengths

    return encode


def test_the_proof_looks_at_the_start_of_every_dataset(tmp_path: Path, byte_bpe: Path) -> None:
    paths = [
        write(tmp_path / f"{n}.jsonl", [*texts(50, seed=n), *(["the needle"] if n == 2 else [])]) for n in range(3)
    ]
    worker, engines = worker_of(tmp_path, byte_bpe, paths)
    assert engine_check.compare_engines(worker, engines) == ""
    worker.fast = wrong_at("needle", worker.reference)
    assert engine_check.compare_engines(worker, engines) == "fastokens gives other ids than tokenizers for 'the needle'"
    worker.fast = None
    assert engine_check.compare_engines(worker, engines) == "", "without the fast engine there is nothing to prove"


def test_the_proof_takes_no_more_text_than_it_says(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long document, many short ones, and a large dataset beside a small one."""
    monkeypatch.setattr(engine_check, "SAMPLE_CHARS", 3000)
    monkeypatch.setattr(engine_check, "MAX_TEXT_CHARS", 400)
    long = write(tmp_path / "long.jsonl", ["x" * 5000, "y" * 300, "", "z" * 5000])
    short = write(tmp_path / "short.jsonl", ["short text"] * 500)
    small = write(tmp_path / "small.jsonl", ["a", "b", "c"])
    worker, _ = worker_of(tmp_path, byte_bpe, [long, short, small])
    found = engine_check.sample_texts(worker)
    assert found[:4] == ["x" * 400, "y" * 300, "", "z" * 300]
    assert found[4:104] == ["short text"] * 100
    assert found[104:] == ["a", "b", "c"]


def test_a_fault_in_the_data_is_not_the_proofs_to_tell(tmp_path: Path, byte_bpe: Path) -> None:
    """The run tells it, with its row."""
    paths = [write(tmp_path / name, texts(30)) for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl")]
    worker, engines = worker_of(tmp_path, byte_bpe, paths, valid_fraction=0.0, test_fraction=0.0)
    paths[0].unlink()
    data = bytearray(paths[1].read_bytes())
    data[12] ^= 0xFF
    paths[1].write_bytes(data)
    assert engine_check.sample_texts(worker) == texts(30)
    assert engine_check.compare_engines(worker, engines) == ""
