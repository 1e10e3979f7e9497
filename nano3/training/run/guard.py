"""The guard: detects iterations whose loss or gradient norm is abnormal, and decides what follows.

A value is abnormal if it is not finite, or if it exceeds

    median + max(guard.threshold * 1.4826 * MAD, share * |median|)

over the last guard.window iterations, where MAD is the median absolute deviation, 1.4826 * MAD estimates the standard
deviation of normal noise (Rousseeuw and Croux, 1993), and `share` is guard.min_loss_rise or guard.min_grad_norm_rise.
Up to half of the window may be abnormal without moving the median far, so abnormal values enter the window too: after
a lasting change the guard adapts within half a window.

All ranks call the guard with the same numbers and restore the same window, so all ranks decide alike.
"""

import errno
import json
import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from nano3.config import PretrainConfig
from nano3.config.guard import GuardConfig
from nano3.training.run.resume import ResumePoint
from nano3.training.run.skips import DROPPED, ROLLED_BACK, SkippedRange, SkipRecord, read_skips
from nano3.utils.console import say, warn
from nano3.utils.disk_errors import allow_full_disk
from nano3.utils.errors import Failure, Nano3Error
from nano3.utils.files import complete_lines

FILE = "guard.jsonl"
# Standard deviation of a normal distribution over its median absolute deviation.
MAD_SCALE = 1.4826
Statistic = Literal["loss", "grad_norm"]
Verdict = Literal["continue", "skip", "rollback"]
# One iteration of the window: iteration, loss, gradient norm.
Observation = tuple[int, float, float]


@dataclass(frozen=True)
class Anomaly:
    """An abnormal value. `median` and `limit` are None if the value is not finite and the window is not full."""

    iteration: int
    statistic: Statistic
    value: float
    median: float | None
    limit: float | None

    def __str__(self) -> str:
        """Return the sentence for the log."""
        name = {"loss": "loss", "grad_norm": "gradient norm"}[self.statistic]
        if self.limit is None or self.median is None:
            return f"iteration {self.iteration}: {name} {self.value:.4g}"
        return (
            f"iteration {self.iteration}: {name} {self.value:.4g} is above {self.limit:.4g} (median {self.median:.4g})"
        )


class Detector:
    """Compares each iteration with the window before it."""

    def __init__(self, config: GuardConfig, ignore_first: int, window: Iterable[Sequence[float]] = ()) -> None:
        """Create a detector.

        Args:
            config: The section `guard`.
            ignore_first: Iterations of the run in which only values that are not finite are abnormal.
            window: What `observations` returned at the checkpoint that the run resumes from.
        """
        self.config, self.ignore_first = config, ignore_first
        kept = [(int(iteration), loss, norm) for iteration, loss, norm in window]
        self._window: deque[Observation] = deque(kept, maxlen=config.window)

    def observations(self, until: int) -> list[Observation]:
        """Return the window without the iterations after `until`."""
        return [one for one in self._window if one[0] <= until]

    def limit(self, statistic: Statistic, iteration: int) -> tuple[float, float] | None:
        """Return the median and the largest normal value; None in the first iterations and until the window is full.

        Args:
            statistic: What is compared.
            iteration: The iteration, from 1.
        """
        if iteration <= self.ignore_first or len(self._window) < self.config.window:
            return None
        share = self.config.min_loss_rise if statistic == "loss" else self.config.min_grad_norm_rise
        values = [one[1] if statistic == "loss" else one[2] for one in self._window]
        median = statistics.median(values)
        deviation = MAD_SCALE * statistics.median(abs(value - median) for value in values)
        return median, median + max(self.config.threshold * deviation, share * abs(median))

    def observe(self, iteration: int, loss: float, grad_norm: float) -> Anomaly | None:
        """Return what is abnormal about an iteration, and add it to the window.

        Args:
            iteration: The iteration, from 1.
            loss: Mean loss in nats per token.
            grad_norm: Norm of the gradient before clipping.
        """
        found = self._compare(iteration, "loss", loss) or self._compare(iteration, "grad_norm", grad_norm)
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._window.append((iteration, loss, grad_norm))
        return found

    def _compare(self, iteration: int, statistic: Statistic, value: float) -> Anomaly | None:
        bounds = self.limit(statistic, iteration)
        if math.isfinite(value) and (bounds is None or value <= bounds[1]):
            return None
        median, limit = bounds or (None, None)
        return Anomaly(iteration, statistic, value, median, limit)


@dataclass
class Guard:
    """Decides what follows an iteration, and records the events. Every rank has one; rank 0 writes.

    Attributes:
        config: The configuration of the run.
        run_dir: The run folder.
        rank: The rank of this process.
        documents: Returns the documents of an iteration's batch; called on rank 0.
        skips: What this start leaves out.
        window: The window at the checkpoint that the run resumes from.
    """

    config: PretrainConfig
    run_dir: Path
    rank: int
    documents: Callable[[int], list[dict[str, Any]]]
    skips: SkipRecord = field(default_factory=SkipRecord)
    window: Sequence[Sequence[float]] = ()
    detector: Detector = field(init=False)
    _dropped_in_a_row: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Create the detector."""
        guard, warmup = self.config.guard, self.config.scheduler.lr_warmup_iters
        ignored = warmup if guard.ignore_first is None else guard.ignore_first
        self.detector = Detector(guard, ignored, self.window)

    @property
    def action(self) -> str:
        """guard.action."""
        return self.config.guard.action

    def verdict(self, iteration: int, loss: float, grad_norm: float, can_skip: bool = True) -> Verdict:
        """Return what follows an iteration, and record it if it is abnormal. The same on every rank.

        Args:
            iteration: The iteration, from 1.
            loss: Mean loss in nats per token over all ranks.
            grad_norm: Norm of the gradient before clipping.
            can_skip: Whether the step can still be left out.

        Raises:
            Failure: The value is not finite and the action does not remove the step, or a bound of the guard is
                reached.
        """
        found = self.detector.observe(iteration, loss, grad_norm)
        if found is None:
            self._dropped_in_a_row = 0
            return "continue"
        finite = math.isfinite(found.value)
        if self.action == "none" and finite:
            return "continue"
        verdict = self._choose(found, can_skip)
        failure = self._failure(found, verdict)
        if self.action != "none":
            self._record(found, "fail" if failure else "warn" if verdict == "continue" else verdict)
        if failure:
            raise Failure(failure)
        if verdict == "rollback":
            self._write(ROLLED_BACK, iteration, rollbacks=1)
        elif verdict == "skip":
            self._dropped_in_a_row += 1
            self._write(DROPPED, iteration)
        return verdict

    def _choose(self, found: Anomaly, can_skip: bool) -> Verdict:
        """Return what guard.action says. The last iteration cannot be left out: its end saves the run."""
        if self.action == "skip" and can_skip:
            return "skip"
        # A step that is not finite and was taken has destroyed the weights.
        wanted = self.action == "rollback" or (self.action == "skip" and not math.isfinite(found.value))
        return "rollback" if wanted and found.iteration < self.config.train.train_iters else "continue"

    def _failure(self, found: Anomaly, verdict: Verdict) -> str | None:
        """Return why the run must end, or None."""
        guard = self.config.guard
        if verdict == "continue" and not math.isfinite(found.value):
            return (
                f"Training diverged at {found}. A resume with the same settings fails at the same iteration: set "
                "guard.action=rollback to leave out its samples, lower optimizer.lr (now "
                f"{self.config.optimizer.lr:g}) or lengthen scheduler.lr_warmup_iters. The documents of that batch: "
                f"nano3 trace RUN --iteration {found.iteration}."
            )
        if verdict == "rollback" and self.skips.rollbacks >= guard.max_rollbacks:
            return (
                f"guard: {found}, after {self.skips.rollbacks} rollbacks (guard.max_rollbacks={guard.max_rollbacks}). "
                f"The data may not be the cause: see {FILE} in the run folder, lower optimizer.lr, or raise "
                "guard.max_rollbacks."
            )
        if verdict == "skip" and self._dropped_in_a_row >= guard.max_consecutive_skips:
            return (
                f"guard: {found}, after {self._dropped_in_a_row} steps in a row were left out "
                f"(guard.max_consecutive_skips={guard.max_consecutive_skips}). The data may not be the cause: see "
                f"{FILE} in the run folder, or resume from an earlier checkpoint."
            )
        return None

    def _write(self, reason: Any, iteration: int, rollbacks: int = 0) -> None:
        if self.rank == 0:
            new = read_skips(self.run_dir).with_range(SkippedRange(iteration, iteration, reason))
            SkipRecord(new.ranges, new.rollbacks + rollbacks, self.skips.order).write(self.run_dir)

    def _record(self, found: Anomaly, action: str) -> None:
        """Append the event to guard.jsonl and log it. Only rank 0 acts."""
        if self.rank != 0:
            return
        size = self.config.train.global_batch_size
        event = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "iteration": found.iteration,
            "statistic": found.statistic,
            "value": found.value if math.isfinite(found.value) else str(found.value),
            "median": found.median,
            "threshold": found.limit,
            "action": action,
            "samples": [(found.iteration - 1) * size, found.iteration * size - 1],
        }
        try:
            event["documents"] = self.documents(found.iteration)
        except (Nano3Error, OSError) as error:  # the event matters more than its documents
            event |= {"documents": [], "documents_error": str(error)}
        path = self.run_dir / FILE
        full = f"{path} lacks iteration {found.iteration}: no space left on the device"
        with allow_full_disk(lambda: warn(full)):  # what follows from the event matters more than its record
            _append(path, json.dumps(event) + "\n")
        consequence = {
            "warn": "",
            "skip": "; this step is left out",
            "rollback": "; returning to the newest checkpoint, to continue without the samples of this iteration",
            "fail": "",
        }[action]
        where = f" Documents: nano3 trace RUN --iteration {found.iteration}, and {FILE}."
        (warn if action == "warn" else say)(f"guard: {found}{consequence}.{where}")


def _append(path: Path, line: str) -> None:
    """Append a line to a file: all of it, or nothing if the disk is full."""
    text = line.encode()
    with path.open("ab", buffering=0) as f:
        begin = f.seek(0, os.SEEK_END)
        try:
            if (f.write(text) or 0) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(f.fileno())
        except OSError:
            f.truncate(begin)
            raise


def make_guard(config: PretrainConfig, run_dir: Path, rank: int, data: Path, point: ResumePoint) -> Guard:
    """Return the guard of a start.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        rank: The rank of this process.
        data: The folder of the prepared data.
        point: Where the run starts.
    """

    def documents(iteration: int) -> list[dict[str, Any]]:
        from nano3.training.run.batch_documents import describe_documents  # imports numpy

        return describe_documents(config, run_dir, data, iteration)

    return Guard(config, run_dir, rank, documents, point.skips, point.guard_window)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Return the events of guard.jsonl, oldest first, without an incomplete last line; empty if there is no file.

    Raises:
        Failure: A line is damaged.
    """
    path = Path(run_dir) / FILE
    try:
        return [json.loads(line) for line in complete_lines(path) if line]
    except ValueError as error:
        raise Failure(f"{path} is damaged ({error}). Training does not depend on it: move it away.") from error
