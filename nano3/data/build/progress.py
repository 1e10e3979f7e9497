"""Show progress: a bar on a terminal, else a line every few seconds; and a table at the end."""

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nano3.data.dataset.manifest import Manifest
from nano3.data.tokenization.tokenizer import describe_framing
from nano3.utils.console import console, say, table, write

LINE_SECONDS = 10.0


class ProgressMeter:
    """Count text, finished units, and merged shards, and show them while the context is open.

    Attributes:
        units: Number of units.
        done: Number of finished units.
        text_bytes: Bytes of text encoded.
        shards: Number of shards to merge.
        merged: Number of merged shards.
    """

    def __init__(self, units: int, done: int) -> None:
        self.units, self.done = units, done
        self.text_bytes = self.shards = self.merged = 0
        self._created = self._line_at = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "ProgressMeter":
        if sys.stderr.isatty():
            columns = (
                TextColumn("tokenizing"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} units"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=self.units, completed=self.done, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return time.monotonic() - self._created

    def add(self, text_bytes: int = 0, units: int = 0, shards: int = 0) -> None:
        """Count text, units and shards, and refresh the display.

        Args:
            text_bytes: Bytes of text encoded.
            units: Units finished.
            shards: Shards merged.
        """
        self.text_bytes += text_bytes
        self.done += units
        self.merged += shards
        merging = f", {self.merged:,}/{self.shards:,} shards merged" if self.merged and self.done >= self.units else ""
        rate = f"{self.text_bytes / 1e6 / max(self.seconds, 1e-3):,.1f} MB/s{merging}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif time.monotonic() - self._line_at > LINE_SECONDS:
            self._line_at = time.monotonic()
            write(
                f"data_prep: {self.done}/{self.units} units, {self.text_bytes / 1e6:,.0f} MB of text, {rate}, "
                f"{self.seconds:,.0f} s\n",
                stderr=True,
            )


def print_summary(manifest: Manifest, meter: ProgressMeter | None) -> None:
    """Print the table of documents and tokens.

    Args:
        manifest: Manifest of the data.
        meter: Progress of the build, to print its speed; None for existing data.
    """
    names = [name for name, counts in manifest.splits.items() if counts.documents]
    rows = []
    for d in manifest.datasets:
        cells = [f"{d.splits[s].documents:,} / {d.splits[s].tokens:,}" for s in names]
        skipped = ", ".join(f"{n:,} {reason}" for reason, n in d.skipped.items())
        rows.append([d.name, f"{d.documents:,}", f"{d.tokens:,}", *cells, skipped or "-"])
    total = [f"{s.documents:,} / {s.tokens:,}" for s in (manifest.splits[n] for n in names)]
    documents, tokens = sum(d.documents for d in manifest.datasets), sum(d.tokens for d in manifest.datasets)
    if len(rows) > 1:
        rows.append(["all", f"{documents:,}", f"{tokens:,}", *total, ""])
    columns = ["dataset", "documents", "tokens", *(f"{s} (documents / tokens)" for s in names), "skipped"]
    if any(d.duplicates or d.shared for d in manifest.datasets):
        cells = [f"{d.duplicates or 0:,} / {d.shared or 0:,}" for d in manifest.datasets]
        sums = [sum(d.duplicates or 0 for d in manifest.datasets), sum(d.shared or 0 for d in manifest.datasets)]
        for row, cell in zip(rows, [*cells, f"{sums[0]:,} / {sums[1]:,}"], strict=False):
            row.insert(-1, cell)
        columns.insert(-1, "duplicates (own / of earlier datasets)")
    if not any(d.skipped for d in manifest.datasets):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    table(f"blend {manifest.blend}", columns, rows, right=[name for name in columns[1:] if name != "skipped"])
    token, add_bos, add_eos = manifest.tokenizer, manifest.options.get("add_bos"), manifest.options.get("add_eos")
    bos, eod = (token.bos_token, token.bos_id), (token.eod_token, token.eod_id)
    say(f"tokenizer {token.model}: {describe_framing(bos, eod, bool(add_bos), bool(add_eos))}.")
    empty, special = sum(d.empty for d in manifest.datasets), sum(d.special_tokens for d in manifest.datasets)
    if empty:
        say(f"{empty:,} empty document(s): no tokens, no end-of-document token.")
    if unencoded := sum(d.unencoded for d in manifest.datasets):
        say(f"{unencoded:,} of them could not be tokenized (bad_rows=skip).")
    if special:
        say(
            f"{special:,} special token(s) occurred literally in the text and were encoded as such "
            f"(split_special_tokens=false)."
        )
    if meter and meter.text_bytes:
        speed = meter.text_bytes / 1e6 / meter.seconds
        say(
            f"{len(manifest.shards)} shards in {meter.seconds:.1f} s, {speed:,.1f} MB/s, engine "
            f"{manifest.versions['engine']}"
        )
