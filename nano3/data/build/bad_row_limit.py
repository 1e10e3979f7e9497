"""Stop a build with bad_rows=skip that leaves out more rows than `max_bad_rows` allows.

The limit holds for each dataset. Before anything is published it is checked exactly, by adding up the receipts of all
units. During the build, a process also stops as soon as the units that it has finished leave out more rows than the
whole dataset may; a share is then taken of the rows that the dataset will have if its other units are like these.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from nano3.data.build.receipts import BadFile, UnitReceipt
from nano3.data.planning.plan import Plan
from nano3.data.sources.readers import row_number
from nano3.utils.errors import Failure, Nano3Error

FILTERS = ("short", "duplicate", "not_sampled")  # reasons to skip a row that is not bad


def check_bad_row_limit(plan: Plan, receipts: Iterable[UnitReceipt], complete: bool = False) -> None:
    """Raise Failure if a dataset has more bad rows than `max_bad_rows` allows.

    Args:
        plan: The plan.
        receipts: Receipts of finished units.
        complete: Whether these are all units of the plan, so that the numbers of rows are known.

    Raises:
        Failure: With the counts and the file with the most bad rows, for each dataset.
    """
    if plan.options.bad_rows != "skip" or plan.options.max_bad_rows is None:
        return
    by_dataset: dict[int, list[UnitReceipt]] = {}
    for receipt in receipts:
        by_dataset.setdefault(plan.unit(receipt.unit)[0], []).append(receipt)
    problems = [check_dataset(plan, number, found, complete) for number, found in sorted(by_dataset.items())]
    if any(problems):
        raise Failure(problem for problem in problems if problem)


class BadRowLimit:
    """The limit during a build. Each finished unit costs the same, however many there are.

    Args:
        plan: The plan.
        receipts: Receipts of the units that are already finished.

    Raises:
        Failure: A dataset already has too many bad rows.
    """

    def __init__(self, plan: Plan, receipts: Iterable[UnitReceipt]) -> None:
        self._plan = plan
        self._active = plan.options.bad_rows == "skip" and plan.options.max_bad_rows is not None
        self._totals: dict[int, RowTotals] = {}
        finished = list(receipts)
        check_bad_row_limit(plan, finished)
        for receipt in finished:
            self._count(receipt)

    def add(self, receipt: UnitReceipt) -> None:
        """Add a finished unit.

        Raises:
            Failure: Its dataset has more bad rows than `max_bad_rows` allows.
        """
        if not self._active:
            return
        number, totals = self._count(receipt)
        if receipt.bad_file and totals.bad > totals.allowed(self._plan, number):
            raise Failure(check_dataset(self._plan, number, totals.receipts, complete=False))

    def _count(self, receipt: UnitReceipt) -> tuple[int, "RowTotals"]:
        """Add a unit to the totals of its dataset, and return the dataset's number and totals."""
        number, unit = self._plan.unit(receipt.unit)
        totals = self._totals.setdefault(number, RowTotals())
        totals.add(receipt, self._plan.datasets[number].unit_bounds[unit : unit + 2])
        return number, totals


def check_dataset(plan: Plan, number: int, receipts: list[UnitReceipt], complete: bool) -> str:
    """Return the error for one dataset with too many bad rows, or "".

    Args:
        plan: The plan.
        number: Number of the dataset in the plan.
        receipts: Receipts of its finished units.
        complete: Whether these are all of its units.
    """
    limit = plan.options.max_bad_rows or 0.0
    dataset, base = plan.datasets[number], plan.first_units[number]
    totals = RowTotals()
    for r in receipts:
        totals.add(r, dataset.unit_bounds[r.unit - base : r.unit - base + 2])
    bad, rows = totals.bad, totals.rows
    if bad <= (limit * rows if complete and limit < 1 else totals.allowed(plan, number)):
        return ""
    finished = {r.unit - base for r in receipts}
    complete = complete or all(u in finished or not dataset.file_ranges(u) for u in range(dataset.units))
    most = f"{int(limit):,} row{'s' * (limit > 1)}" if limit >= 1 else f"{100 * limit:g} % of the rows"
    so_far = "" if complete else " read so far"
    kinds: dict[str, int] = {}
    for receipt in receipts:
        for kind, count in receipt.skipped.items():
            kinds[kind] = kinds.get(kind, 0) + count * (kind not in FILTERS)
        kinds["not tokenized"] = kinds.get("not tokenized", 0) + receipt.unencoded
    what = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()) if count)
    return (
        f"dataset {dataset.name!r}: {bad:,} of {rows:,} rows{so_far} are bad ({what}), and "
        f"max_bad_rows={limit:g} allows {most}. {worst_file(plan, number, receipts)}Correct the files, or set "
        f"max_bad_rows to a larger share or number of rows; finished work is kept."
    )


def bad_rows(receipt: UnitReceipt) -> int:
    """Return the number of bad rows that a unit left out."""
    return receipt.unencoded + sum(count for kind, count in receipt.skipped.items() if kind not in FILTERS)


@dataclass
class RowTotals:
    """Totals of the finished units of a dataset.

    Attributes:
        bad: Bad rows.
        rows: All rows.
        extent: Length of the units on the dataset's axis.
        receipts: Receipts of the units.
    """

    bad: int = 0
    rows: int = 0
    extent: int = 0
    receipts: list[UnitReceipt] = field(default_factory=list)

    def add(self, receipt: UnitReceipt, bounds: np.ndarray) -> None:
        """Add a unit with the given bounds on the axis."""
        self.bad += bad_rows(receipt)
        self.rows += receipt.documents + sum(receipt.skipped.values())
        self.extent += int(bounds[1] - bounds[0])
        self.receipts.append(receipt)

    def allowed(self, plan: Plan, number: int) -> float:
        """Return how many bad rows dataset `number` may have.

        A share is taken of its rows if its unfinished units have as many for their size as the finished ones.
        """
        limit = plan.options.max_bad_rows or 0.0
        return limit if limit >= 1 else limit * self.rows * plan.datasets[number].extent / max(self.extent, 1)


def worst_file(plan: Plan, number: int, receipts: list[UnitReceipt]) -> str:
    """Return a sentence about the file with the most bad rows, or "" if no receipt names one.

    Args:
        plan: The plan.
        number: Number of the dataset in the plan.
        receipts: Receipts of its units.
    """
    files: dict[int, BadFile] = {}
    for bad in (r.bad_file for r in sorted(receipts, key=lambda r: r.unit)):
        if bad:
            known = files.setdefault(bad.file, BadFile(bad.file, 0, bad.key, bad.reason))
            known.rows += bad.rows
    if not files:
        return ""
    worst = max(files.values(), key=lambda bad: bad.rows)
    whole = plan.datasets[number].whole_file(worst.file)
    try:
        row = f"row {row_number(whole, worst.key):,}"
    except (Nano3Error, OSError):  # the file is gone by now
        row = f"key {worst.key:,}"
    return f"Most are in {whole.path}: {worst.rows:,}, the first in {row}: {worst.reason}. "
