"""Stop a build with bad_rows=skip that leaves out more rows than `max_bad_rows` allows.

The limit holds for each dataset. Before anything is published it is checked exactly, by adding up the receipts of all
units. During the build, a process also stops as soon as the units that it has finished leave out more rows than the
whole dataset may; a share is then taken of the rows that the dataset will have if its other units are like these.
"""

from collections.abc import Iterable

from nano3.data.build.receipts import BadFile, UnitReceipt
from nano3.data.planning.plan import Plan
from nano3.data.sources.readers import row_number
from nano3.utils.errors import Failure, Nano3Error

FILTERS = ("short",)  # reasons to skip a row that is not bad


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


def check_dataset(plan: Plan, number: int, receipts: list[UnitReceipt], complete: bool) -> str:
    """Return the error for one dataset with too many bad rows, or "".

    Args:
        plan: The plan.
        number: Number of the dataset in the plan.
        receipts: Receipts of its finished units.
        complete: Whether these are all of its units.
    """
    limit = plan.options.max_bad_rows or 0.0
    bad = sum(bad_rows(r) for r in receipts)
    if not bad:
        return ""
    rows = sum(r.documents + sum(r.skipped.values()) for r in receipts)
    allowed = limit
    if limit < 1:
        allowed = limit * (rows if complete else projected_rows(plan, number, receipts, rows))
    if bad <= allowed:
        return ""
    dataset, base = plan.datasets[number], plan.first_units[number]
    finished = {r.unit - base for r in receipts}
    complete = complete or all(u in finished or not dataset.file_ranges(u) for u in range(dataset.units))
    most = f"{int(limit):,} rows" if limit >= 1 else f"{100 * limit:g} % of the rows"
    so_far = "" if complete else " read so far"
    kinds: dict[str, int] = {}
    for receipt in receipts:
        for kind, count in receipt.skipped.items():
            kinds[kind] = kinds.get(kind, 0) + count * (kind not in FILTERS)
    what = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()) if count)
    return (
        f"dataset {dataset.name!r}: {bad:,} of {rows:,} rows{so_far} are bad ({what}), and "
        f"max_bad_rows={limit:g} allows {most}. {worst_file(plan, number, receipts)}Correct the files, or set "
        f"max_bad_rows to a larger share or number of rows; finished work is kept."
    )


def bad_rows(receipt: UnitReceipt) -> int:
    """Return the number of bad rows that a unit left out."""
    return sum(count for kind, count in receipt.skipped.items() if kind not in FILTERS)


def projected_rows(plan: Plan, number: int, receipts: list[UnitReceipt], rows: int) -> float:
    """Return the number of rows of a dataset if its unfinished units have as many for their size as the others.

    Args:
        plan: The plan.
        number: Number of the dataset in the plan.
        receipts: Receipts of its finished units.
        rows: Number of rows in these units.
    """
    dataset, base = plan.datasets[number], plan.first_units[number]
    bounds = dataset.unit_bounds
    done = sum(int(bounds[r.unit - base + 1] - bounds[r.unit - base]) for r in receipts)
    return rows * dataset.extent / max(done, 1)


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
