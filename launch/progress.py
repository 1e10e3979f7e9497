"""How far a run is: iteration, loss, time left and the age of its last line, read from the end of its files."""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nano3.utils.console import duration_text

_METRICS_TAIL_BYTES = 1 << 16
# A run is called silent if its last line is older than this, and three times as old as any pause in its recent lines.
_SILENT_S = 120
_SILENT_FACTOR = 3


@dataclass(frozen=True)
class Progress:
    """What the end of metrics.jsonl and the log say about a run."""

    # The newest line with a "loss"; {} if there is none yet.
    metrics: dict[str, Any]
    # The iteration at which the run ends, None if unknown.
    total: int | None = None
    # Of the newest start, with validations and saves; None if unknown.
    seconds_per_iteration: float | None = None
    # Seconds since the run wrote to its metrics or to the log of rank 0; None if it has not written yet.
    age: float | None = None
    # The longest time between two of its recent lines of metrics, in seconds.
    longest_pause: float | None = None

    @property
    def iteration(self) -> int:
        """The newest iteration; 0 before the first one."""
        return int(self.metrics.get("iteration", 0))

    def iteration_text(self) -> str:
        """Return "25/100", "25" if the end is unknown, "" before the first iteration."""
        if not self.iteration:
            return ""
        return f"{self.iteration}/{self.total}" if self.total else str(self.iteration)

    def left_text(self) -> str:
        """Return the time that the rest of the iterations will take, "" if unknown."""
        if self.total is None or self.seconds_per_iteration is None:
            return ""
        return whole_duration(max(self.total - self.iteration, 0) * self.seconds_per_iteration)

    def age_text(self) -> str:
        """Return the age of the last line, marked if the run is silent for longer than it ever was recently."""
        if self.age is None:
            return ""
        pause = self.longest_pause
        silent = pause is not None and self.age > max(_SILENT_S, _SILENT_FACTOR * pause)
        return whole_duration(self.age) + (", silent" if silent else "")


def read_progress(run_dir: Path, logs: Iterable[Path] = ()) -> Progress:
    """Return how far a run is.

    Args:
        run_dir: Run folder.
        logs: Logs of rank 0, for the age of the last line.
    """
    newest = list(_lines_from_end(run_dir))
    began = next((number for number, line in enumerate(newest) if "start" in line), len(newest))
    timed = [line for line in newest[:began] if isinstance(line.get("time"), int | float)]
    trained = [line for line in timed if "loss" in line and "iteration" in line]
    rate = None
    if trained and (done := trained[0]["iteration"] - trained[-1]["iteration"]) > 0:
        rate = (trained[0]["time"] - trained[-1]["time"]) / done
    pauses = [after["time"] - before["time"] for after, before in pairwise(timed)]
    return Progress(
        metrics=next((line for line in newest if "loss" in line), {}),
        total=last_iteration(run_dir),
        seconds_per_iteration=rate,
        age=_age([run_dir / "metrics.jsonl", *logs]),
        longest_pause=max(pauses, default=None),
    )


def _age(files: Iterable[Path]) -> float | None:
    """Return the seconds since one of these files was written to, None if there is none."""
    written = []
    for file in files:
        try:
            written.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(time.time() - max(written), 0.0) if written else None


def _lines_from_end(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the last lines of RUN_DIR/metrics.jsonl, newest first, without those that are cut off."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _METRICS_TAIL_BYTES))
            lines = f.read().splitlines()
    except FileNotFoundError:
        return
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line may be incomplete, and the first line read may be cut
        if isinstance(value, dict):
            yield value


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """Return the newest record of RUN_DIR/metrics.jsonl that has a "loss", {} if there is none yet."""
    return next((line for line in _lines_from_end(run_dir) if "loss" in line), {})


def last_iteration(run_dir: Path) -> int | None:
    """Return the iteration at which a run ends, read from config.yaml without parsing it: a sweep has many of them."""
    try:
        text = (run_dir / "config.yaml").read_text(errors="replace")
    except OSError:
        return None
    numbers = re.findall(r"^  (?:train_iters|exit_iteration): (\d+)$", text, re.MULTILINE)
    return min(map(int, numbers), default=None)


def loss_text(metrics: dict[str, Any]) -> str:
    """Return the loss of a record as a table cell, "" if there is none."""
    loss = metrics.get("loss")
    return f"{loss:.4f}" if isinstance(loss, float) else str("" if loss is None else loss)


def whole_duration(seconds: float) -> str:
    """Return a duration in whole seconds or more, for tables that are drawn again and again."""
    return duration_text(round(seconds))
