"""Iterations of a run that change no weights, and their record in the run folder.

RUN/skipped.json holds the iterations that the run leaves out or has left out, with the reason: train.skip_iterations,
or a decision of the guard. A restart reads it, so the guard's decisions last until the end of the run. `nano3 trace`,
`nano3 report` and `nano3 rerun` read it too.

The samples of such an iteration are passed over: iteration i reads the same samples in every run of the same data, seed
and batch size. The record of another data order is discarded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nano3.training.order.plan import OrderPlan
from nano3.utils.records import read_record, write_record

FILE = "skipped.json"
# What decides which samples an iteration reads.
ORDER_KEYS = ("data", "train.seed", "train.seq_length", "train.global_batch_size")
# Why an iteration is left out: by the user, by a rollback, or because the guard dropped its step.
Reason = Literal["train.skip_iterations", "guard rollback", "guard skip"]
BY_USER: Reason = "train.skip_iterations"
ROLLED_BACK: Reason = "guard rollback"
DROPPED: Reason = "guard skip"


@dataclass(frozen=True)
class SkippedRange:
    """Iterations `first` to `last`, both included."""

    first: int
    last: int
    reason: Reason

    def __contains__(self, iteration: int) -> bool:
        """Return whether the iteration is in the range."""
        return self.first <= iteration <= self.last

    def __str__(self) -> str:
        """Return the range as text, such as "5 to 6 (train.skip_iterations)"."""
        span = f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"
        return f"{span} ({self.reason})"


@dataclass(frozen=True)
class SkipRecord:
    """The contents of skipped.json.

    Attributes:
        ranges: What is left out, in order.
        rollbacks: How often the guard has rolled the run back.
        order: The values of `ORDER_KEYS`.
    """

    ranges: tuple[SkippedRange, ...] = ()
    rollbacks: int = 0
    order: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SkipRecord":
        """Return the record that `dataclasses.asdict` was called on."""
        return cls(**values | {"ranges": tuple(SkippedRange(**one) for one in values["ranges"])})

    def find(self, iteration: int) -> SkippedRange | None:
        """Return the range that contains the iteration, or None."""
        return next((one for one in self.ranges if iteration in one), None)

    def after(self, iteration: int) -> list[int]:
        """Return the iterations after `iteration` that are left out, in order."""
        return sorted({i for one in self.ranges for i in range(max(one.first, iteration + 1), one.last + 1)})

    def leading(self, iteration: int) -> int:
        """Return how many iterations directly after `iteration` are left out."""
        count = 0
        while self.find(iteration + count + 1):
            count += 1
        return count

    def with_range(self, new: SkippedRange) -> "SkipRecord":
        """Return the record with one more range."""
        return replace(self, ranges=tuple(sorted({*self.ranges, new}, key=lambda one: (one.first, one.last))))

    def write(self, run_dir: Path) -> None:
        """Write skipped.json. Only rank 0 may call it."""
        write_record(run_dir / FILE, self)


def read_skips(run_dir: Path) -> SkipRecord:
    """Return the record of a run; empty if nothing was left out.

    Raises:
        DamagedRecordError: The file is damaged.
    """
    fix = "Remove it: iterations that the guard has left out are then trained."
    try:
        return read_record(Path(run_dir) / FILE, SkipRecord, fix)
    except FileNotFoundError:
        return SkipRecord()


def begin_skips(
    run_dir: Path, identity: Mapping[str, Any], chosen: Sequence[Sequence[int]], iteration: int
) -> SkipRecord:
    """Return what a start leaves out, and write it to the run folder. Call it on rank 0.

    What happened up to `iteration` is kept as it is recorded. After it, train.skip_iterations as it is now and the
    rollbacks of earlier starts apply; a dropped step is decided again.

    Args:
        run_dir: The run folder.
        identity: The run's identity.
        chosen: train.skip_iterations.
        iteration: The iterations that are done.

    Raises:
        DamagedRecordError: skipped.json is damaged.
    """
    order = {key: identity.get(key) for key in ORDER_KEYS}
    before = read_skips(run_dir)
    if before.order != order:
        before = SkipRecord()
    past = [
        replace(one, last=min(one.last, iteration))
        for one in before.ranges
        if one.first <= iteration and one.reason != ROLLED_BACK
    ]
    wanted = [SkippedRange(max(first, iteration + 1), last, BY_USER) for first, last in chosen if last > iteration]
    rolled_back = [one for one in before.ranges if one.reason == ROLLED_BACK]
    ranges = sorted({*past, *rolled_back, *wanted}, key=lambda one: (one.first, one.last))
    record = SkipRecord(tuple(merge(ranges)), before.rollbacks, order)
    if record.ranges or (run_dir / FILE).exists():
        record.write(run_dir)
    return record


def merge(ranges: Iterable[SkippedRange]) -> list[SkippedRange]:
    """Return sorted ranges with touching ones of the same reason joined."""
    merged: list[SkippedRange] = []
    for one in ranges:
        if merged and merged[-1].reason == one.reason and one.first <= merged[-1].last + 1:
            merged[-1] = replace(merged[-1], last=max(merged[-1].last, one.last))
        else:
            merged.append(one)
    return merged


def late_skip_warning(chosen: Sequence[Sequence[int]], record: SkipRecord, iteration: int) -> str | None:
    """Return a warning about iterations of train.skip_iterations that are trained already, or None.

    Args:
        chosen: train.skip_iterations.
        record: What was left out.
        iteration: The iterations that are done.
    """
    late = [
        i for first, last in chosen for i in range(first, min(last, iteration) + 1) if record.find(i) is None
    ]  # fmt: skip
    if not late:
        return None
    return (
        f"train.skip_iterations has no effect on iterations up to {iteration}, which are done (the first of them: "
        f"{late[0]}). To leave them out, resume from an earlier checkpoint: checkpoint.load=FOLDER "
        "checkpoint.keep_iteration=true, with another run.name."
    )


def moved_skips_warning(
    before: SkipRecord, now: SkipRecord, plans: tuple[OrderPlan | None, OrderPlan | None], iteration: int
) -> str | None:
    """Return a warning about recorded iterations that do not have the samples any more that they were to leave out.

    That is so if a run goes back before them and continues with another mixture or other data. None if all have them.

    Args:
        before: The record of the start before.
        now: The record of this start.
        plans: The plan of the samples at the start before, and at this one; None for Megatron's order.
        iteration: The iterations that are done.
    """
    forgotten = before.order != now.order
    moved = [one for one in before.ranges if forgotten and one.reason == ROLLED_BACK and one.last > iteration]
    former, plan = plans
    if not forgotten and former and plan:
        for one in now.ranges:
            first, last = max(one.first, iteration + 1), min(one.last, plan.stages[-1].end)
            known = any(old.reason == one.reason and old.first <= last and old.last >= first for old in before.ranges)
            if known and first <= last and former.positions(first, last) != plan.positions(first, last):
                moved.append(replace(one, first=first, last=last))
    if not moved:
        return None
    text = "; ".join(map(str, moved))
    return (
        f"{FILE} names iterations whose samples are not the same with this mixture or data: {text}. They "
        f"{'are trained' if forgotten else 'stay left out'}, and the samples that they named can come again. "
        "guard.jsonl in the run folder lists the documents of the guard's iterations; nano3 trace RUN --document "
        "SHARD:DOCUMENT shows which iterations read one now. To leave these out, stop the run and start it again with "
        "train.skip_iterations='[[FIRST, LAST]]'."
    )
