"""Test the progress bar, the progress lines, and the summary table."""

import io
import sys

import pytest

from nano3.data.build import progress
from nano3.data.build.manifest_builder import add_counts
from nano3.data.build.progress import ProgressMeter, print_summary
from nano3.data.dataset.manifest import Counts, DatasetEntry, Manifest, ShardEntry, TokenizerEntry


class Terminal(io.StringIO):
    """A terminal that keeps its output."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("every", "lines"), [(-1.0, 3), (1e9, 0)], ids=["due", "not_due"])
def test_a_log_gets_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every: float, lines: int
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", every)
    with ProgressMeter(units=10, done=4) as meter:
        meter.add(text_bytes=3_000_000)
        meter.add(units=1)
        meter.add(text_bytes=2_000_000, units=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == lines
    if lines:
        assert printed.err.splitlines()[-1].startswith("data_prep: 7/10 units, 5 MB of text, ")
    assert (meter.done, meter.text_bytes) == (7, 5_000_000)


def test_the_bar_is_removed_also_on_failure(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Return a dataset's entry with three tokens in each document."""
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
    return Manifest(2, "b[/x]", "h", tokenizer, "uint16", {"add_eos": True}, list(datasets), splits, shards, versions)


def test_the_table_has_nonempty_splits_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(
        manifest_of(dataset("one", 1000, 20, skipped={"null": 2, "short": 1000}), dataset("two", 30, 0)), None
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "blend b[/x]"
    assert "valid (documents / tokens)" in lines[1] and lines[1].endswith("  skipped")
    assert "test" not in lines[1]
    cells = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert cells["one"][:8] == ["1,020", "3,060", "1,000", "/", "3,000", "20", "/", "60"]
    assert cells["one"][8:] == ["2", "null,", "1,000", "short"]
    assert cells["two"] == ["30", "90", "30", "/", "90", "0", "/", "0", "-"]
    assert cells["all"] == ["1,050", "3,150", "1,030", "/", "3,090", "20", "/", "60"]
    assert lines[5:] == ["tokenizer t: each document ends with '</s>' (id 2)."]


def test_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would parse them as markup."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    print_summary(manifest_of(dataset("one", 5, 0), dataset("two[train]", 6, 0)), None)
    assert "blend b[/x]" in screen.getvalue()
    assert "two[train]" in screen.getvalue()


def test_one_dataset_has_no_totals_and_empty_documents_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter(1, 0)
    meter.add(text_bytes=9)
    print_summary(manifest_of(dataset("one", 5, 0, empty=1234, special_tokens=7)), meter)
    out = capsys.readouterr().out
    assert "\nall" not in out and "skipped" not in out
    assert "1,234 empty document(s)" in out
    assert "7 special token(s) occurred literally in the text" in out
    assert "\n2 shards in " in out
    assert "engine fastokens" in out
