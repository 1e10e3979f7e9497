"""Count documents with equal texts, within datasets and between them.

Each unit writes the 128-bit hashes of its different texts, sorted, as pairs of uint64. Documents without text are not
counted. At the end, the hashes of all units are sorted together, a range of values at a time to bound the memory.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from nano3.data.build.direct_writer import DirectWriter
from nano3.data.build.receipts import UnitReceipt, unit_hashes_path
from nano3.data.planning.plan import Plan
from nano3.data.planning.splits import text_hashes

ROWS_AT_ONCE = 1 << 24  # hashes sorted together: about 1 GB of memory
ROW_BYTES = 16


class DuplicateCounts(NamedTuple):
    """Counts of equal texts of a dataset.

    Attributes:
        duplicates: Documents whose text an earlier document of the dataset has.
        shared: Different texts that an earlier dataset of the blend has too.
    """

    duplicates: int
    shared: int


def write_unit_hashes(build: Path, number: int, hashes: list[np.ndarray]) -> tuple[int, str]:
    """Write the hashes of a unit's different texts.

    Args:
        build: Folder of the build.
        number: Number of the unit in the plan.
        hashes: Results of `text_hashes` for all its documents.

    Returns:
        Number of documents with text, and the checksum of the file.
    """
    rows = np.concatenate([*hashes, np.empty((0, 2), np.uint64)])
    empty = rows == text_hashes([""])[0]
    if empty[:, 0].any():
        rows = rows[~(empty[:, 0] & empty[:, 1])]
    different, _ = sort_rows(rows)
    writer = DirectWriter(unit_hashes_path(build, number))
    try:
        writer.write(np.ascontiguousarray(different[new_rows(different)], "<u8").data)
        return len(rows), writer.commit(sync=False)
    except BaseException:
        writer.discard()
        raise


def sort_rows(rows: np.ndarray, stable: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of uint64 pairs in order, and the order itself."""
    order = np.argsort(np.ascontiguousarray(rows[:, 0]), kind="stable" if stable else "quicksort")
    found = rows[order]
    same = found[1:, 0] == found[:-1, 0]
    if same.any() and np.any(found[1:, 1][same] != found[:-1, 1][same]):  # hardly ever
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        found = rows[order]
    return found, order


def new_rows(rows: np.ndarray) -> np.ndarray:
    """Return for each of sorted rows whether it differs from the one before."""
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:, 0] != rows[:-1, 0]) | (rows[1:, 1] != rows[:-1, 1])
    return new


def count_duplicates(plan: Plan, build: Path, units: list[UnitReceipt]) -> list[DuplicateCounts]:
    """Count the equal texts of each dataset.

    Args:
        plan: The plan of the build.
        build: Its folder.
        units: Receipts of all units that read anything, in any order.
    """
    ordered = sorted(units, key=lambda unit: unit.unit)
    files = [(plan.unit(unit.unit)[0], unit_hashes_path(build, unit.unit)) for unit in ordered]
    documents = np.zeros(len(plan.datasets), np.int64)
    for (dataset, _), unit in zip(files, ordered, strict=True):
        documents[dataset] += unit.hashed
    different, first = np.zeros_like(documents), np.zeros_like(documents)
    ranges = max(1, -(-sum(path.stat().st_size for _, path in files) // (ROW_BYTES * ROWS_AT_ONCE)))
    for i in range(ranges):
        low, high = (i << 64) // ranges, ((i + 1) << 64) // ranges
        parts = [(dataset, read_range(path, low, high)) for dataset, path in files]
        rows, order = sort_rows(
            np.concatenate([part for _, part in parts]) if parts else np.empty((0, 2), np.uint64), stable=True
        )
        datasets = np.repeat([dataset for dataset, _ in parts], [len(part) for _, part in parts])[order]
        new_text = new_rows(rows)
        new_pair = new_text.copy()
        new_pair[1:] |= datasets[1:] != datasets[:-1]
        different += np.bincount(datasets[new_pair], minlength=len(documents))
        first += np.bincount(datasets[new_text], minlength=len(documents))
    counts = zip((documents - different).tolist(), (different - first).tolist(), strict=True)
    return [DuplicateCounts(duplicates, shared) for duplicates, shared in counts]


def read_range(path: Path, low: int, high: int) -> np.ndarray:
    """Return the rows of a unit's hashes whose high half is in [low, high)."""
    if not path.stat().st_size:
        return np.empty((0, 2), np.uint64)
    rows = np.memmap(path, "<u8", "r").reshape(-1, 2)
    start = int(np.searchsorted(rows[:, 0], np.uint64(low)))
    stop = int(np.searchsorted(rows[:, 0], np.uint64(high))) if high < 1 << 64 else len(rows)
    return np.array(rows[start:stop], np.uint64)


def may_hold_texts(build: Path, number: int, hashes: set[int]) -> bool:
    """Return whether a unit may hold texts.

    Args:
        build: Folder of the build.
        number: Number of the unit in the plan.
        hashes: High halves of the hashes of the texts.
    """
    try:
        rows = np.fromfile(unit_hashes_path(build, number), "<u8")
    except FileNotFoundError:
        return True
    return bool(np.isin(rows[::2], np.array(sorted(hashes), np.uint64)).any())
