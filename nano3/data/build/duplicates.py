"""Find documents with equal texts, within datasets and between them.

Each unit writes hashes of its texts. At the end, the hashes of all units are sorted together, a range of values at a
time to bound the memory. Documents without text have no duplicates.

    dedup=none     .hash holds uint64 high halves of the hashes of the unit's different texts, sorted. That is enough to
                   count: for a billion texts, 0.03 are expected to be counted as duplicates by mistake.
    dedup=exact    .hash holds uint64 high halves of all documents, sorted; their uint64 low halves; and the uint32
                   numbers of the documents in the unit, counted in the order of its fragments' splits and shards. All
                   128 bits are compared: among a billion texts, two different ones agree with probability 1.5e-21.

With dedup=exact, all documents but the first with a text are dropped when shards are merged. The order is that of the
blend's datasets, their files, and rows, which is the order of units. As equal texts share a split, it is within a unit
the order of split, shard, and document.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nano3.data.build.direct_writer import DirectWriter
from nano3.data.build.receipts import UnitReceipt, unit_hashes_path
from nano3.data.dataset.dropped import DroppedWriter
from nano3.data.planning.plan import Plan
from nano3.data.planning.splits import text_hashes

ROWS_AT_ONCE = 1 << 24  # hashes sorted together: about 1 GB of memory
COUNT_BYTES, EXACT_BYTES = 8, 20  # of a row in a .hash file


class DuplicateCounts(NamedTuple):
    """Counts of equal texts of a dataset.

    Attributes:
        duplicates: Documents whose text an earlier document of the dataset has.
        shared: Different texts that an earlier dataset of the blend has too.
    """

    duplicates: int
    shared: int


class Rows(NamedTuple):
    """Sorted hashes of several units. `lows` and `numbers` are empty with dedup=none.

    Attributes:
        highs: uint64 high halves.
        lows: uint64 low halves.
        numbers: uint32 numbers of the documents in their units.
        units: Index of each row's unit among the units.
        new: Whether the text of each row differs from that of the row before.
    """

    highs: np.ndarray
    lows: np.ndarray
    numbers: np.ndarray
    units: np.ndarray
    new: np.ndarray


def write_unit_hashes(build: Path, number: int, hashes: list[np.ndarray], exact: bool) -> tuple[int, str]:
    """Write the hashes of a unit's texts.

    Args:
        build: Folder of the build.
        number: Number of the unit in the plan.
        hashes: With `exact`, results of `text_hashes` for all its documents in the order of its fragments' splits and
            shards; else their high halves in any order.
        exact: Whether the plan has dedup=exact.

    Returns:
        Number of documents with text, and the checksum of the file.
    """
    empty = text_hashes([""])[0]
    writer = DirectWriter(unit_hashes_path(build, number))
    try:
        if exact:
            rows = np.concatenate([*hashes, np.empty((0, 2), np.uint64)])
            numbers = np.flatnonzero((rows != empty).any(axis=1)).astype("<u4")
            order = np.argsort(np.ascontiguousarray(rows[numbers, 0]), kind="stable")
            numbers = numbers[order]
            columns = [np.ascontiguousarray(rows[numbers, half], "<u8") for half in (0, 1)]
            hashed = len(numbers)
            for column in (*columns, numbers):
                writer.write(column.data)
        else:
            highs = np.concatenate([*hashes, np.empty(0, np.uint64)])
            highs.sort()
            low, high = np.searchsorted(highs, empty[0], "left"), np.searchsorted(highs, empty[0], "right")
            hashed = len(highs) - int(high - low)
            different = np.ones(len(highs), bool)
            different[1:] = highs[1:] != highs[:-1]
            different[low:high] = False
            writer.write(np.ascontiguousarray(highs[different], "<u8").data)
        return hashed, writer.commit(sync=False)
    except BaseException:
        writer.discard()
        raise


def count_duplicates(
    plan: Plan, build: Path, units: list[UnitReceipt], dropped: DroppedWriter | None = None
) -> list[DuplicateCounts]:
    """Count the equal texts of each dataset.

    Args:
        plan: The plan of the build.
        build: Its folder.
        units: Receipts of all units that read anything, in any order.
        dropped: With dedup=exact, where to mark the duplicates; made by `open_dropped`.
    """
    exact = plan.options.dedup == "exact"
    ordered = sorted(units, key=lambda unit: unit.unit)
    unit_datasets = np.array([plan.unit(unit.unit)[0] for unit in ordered], np.int64)
    documents = np.bincount(unit_datasets, [unit.hashed for unit in ordered], len(plan.datasets)).astype(np.int64)
    different, first = np.zeros_like(documents), np.zeros_like(documents)
    for rows in sorted_ranges([unit_hashes_path(build, unit.unit) for unit in ordered], exact):
        datasets = unit_datasets[rows.units]
        new_pair = rows.new.copy()
        new_pair[1:] |= datasets[1:] != datasets[:-1]
        different += np.bincount(datasets[new_pair], minlength=len(documents))
        first += np.bincount(datasets[rows.new], minlength=len(documents))
        if exact and dropped:
            dropped.drop(rows.units[~rows.new], rows.numbers[~rows.new])
    counts = zip((documents - different).tolist(), (different - first).tolist(), strict=True)
    return [DuplicateCounts(duplicates, shared) for duplicates, shared in counts]


def open_dropped(plan: Plan, build: Path, units: list[UnitReceipt]) -> DroppedWriter:
    """Return a writer in which no document is dropped yet; the arguments are those of `count_duplicates`."""
    ordered = sorted(units, key=lambda unit: unit.unit)
    fragments = [[((f.split, plan.unit(u.unit)[0], f.shard), f.documents) for f in u.fragments] for u in ordered]
    return DroppedWriter(build, plan.shards(), fragments)


def sorted_ranges(paths: list[Path], exact: bool) -> Iterator[Rows]:
    """Yield the hashes in files, a range of values at a time, sorted by hash, then file and number in it.

    Args:
        paths: The files of the units, in the order of the units.
        exact: Whether the plan has dedup=exact.
    """
    row_bytes = EXACT_BYTES if exact else COUNT_BYTES
    total = sum(path.stat().st_size for path in paths) // row_bytes
    ranges = -(-total // ROWS_AT_ONCE)
    for i in range(ranges):
        low, high = (i << 64) // ranges, ((i + 1) << 64) // ranges
        parts = [read_range(path, low, high, exact) for path in paths]
        highs, lows, numbers = (np.concatenate([part[column] for part in parts]) for column in range(3))
        order = np.argsort(highs, kind="stable")
        same = np.diff(highs[order]) == 0
        if exact and np.any(np.diff(lows[order])[same]):  # hardly ever
            order = np.lexsort((lows, highs))
        highs, lows, numbers = highs[order], lows[order] if exact else lows, numbers[order] if exact else numbers
        new = np.ones(len(highs), bool)
        new[1:] = highs[1:] != highs[:-1]
        if exact:
            new[1:] |= lows[1:] != lows[:-1]
        yield Rows(highs, lows, numbers, np.repeat(np.arange(len(paths)), [len(part[0]) for part in parts])[order], new)


def read_range(path: Path, low: int, high: int, exact: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return high halves, low halves, and numbers of the rows in a .hash file whose high half is in [low, high).

    Args:
        path: The file.
        low: First value.
        high: Value after the last one.
        exact: Whether the plan has dedup=exact; else there are no low halves and numbers.
    """
    rows = path.stat().st_size // (EXACT_BYTES if exact else COUNT_BYTES)
    nothing = np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint32)
    if not rows:
        return nothing
    data = np.memmap(path, np.uint8, "r")
    highs = data[: 8 * rows].view("<u8")
    start = int(np.searchsorted(highs, np.uint64(low)))
    stop = int(np.searchsorted(highs, np.uint64(high))) if high < 1 << 64 else rows
    if not exact:
        return np.array(highs[start:stop], np.uint64), *nothing[1:]
    lows, numbers = data[8 * rows : 16 * rows].view("<u8"), data[16 * rows :].view("<u4")
    chosen = slice(start, stop)
    return np.array(highs[chosen], np.uint64), np.array(lows[chosen], np.uint64), np.array(numbers[chosen], np.uint32)


def may_hold_texts(build: Path, number: int, hashes: set[int], exact: bool) -> bool:
    """Return whether a unit may hold texts.

    Args:
        build: Folder of the build.
        number: Number of the unit in the plan.
        hashes: High halves of the hashes of the texts.
        exact: Whether the plan has dedup=exact.
    """
    try:
        highs = read_range(unit_hashes_path(build, number), 0, 1 << 64, exact)[0]
    except FileNotFoundError:
        return True
    return bool(np.isin(highs, np.array(sorted(hashes), np.uint64)).any())
