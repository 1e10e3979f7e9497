"""The documents that were left out of shards, by dedup=exact or sample_tokens.

The file stays with the plan, as `source_lookup` needs it.

    .prep/HASH/dropped    int64[shards + 1] bounds, then a byte for each document: 1 if it was dropped

The documents of shard s, counted in the order of `Plan.shards`, are bounds[s] to bounds[s + 1], in their order.
"""

import os
from pathlib import Path

import numpy as np

from nano3.utils.errors import Failure
from nano3.utils.files import temp_name

NAME = "dropped"
Shard = tuple[int, int, int]  # split, dataset, number of the shard in them


class DroppedDocuments:
    """Which documents of each shard were dropped."""

    def __init__(self, build: Path, shards: list[Shard]) -> None:
        """Open the file of a build.

        Args:
            build: Folder of the build.
            shards: `Plan.shards` of its plan.

        Raises:
            Failure: The file is missing or damaged.
        """
        path = build / NAME
        self._numbers = {shard: number for number, shard in enumerate(shards)}
        head = 8 * (len(shards) + 1)
        try:
            data = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise Failure(f"{path}: cannot be read: {error}. It lists the documents that were left out.") from error
        self._bounds = data[:head].view("<i8") if len(data) >= head else np.empty(0, np.int64)
        if len(data) < head or len(data) != head + int(self._bounds[-1]):
            raise Failure(f"{path}: damaged. It lists the documents that were left out.")
        self._dropped = data[head:].view(bool)

    def of_shard(self, shard: Shard) -> np.ndarray:
        """Return a bool for each document of a shard, in the order in which they were read."""
        number = self._numbers[shard]
        return self._dropped[int(self._bounds[number]) : int(self._bounds[number + 1])]


class DroppedWriter:
    """Writes the file. The array is a file mapped into memory, so it may be larger than the memory."""

    def __init__(self, build: Path, shards: list[Shard], units: list[list[tuple[Shard, int]]]) -> None:
        """Create the file under a temporary name.

        Args:
            build: Folder of the build.
            shards: `Plan.shards` of its plan.
            units: For each unit, in order, the shard and the documents of each fragment.
        """
        self._path = build / NAME
        self._numbers = {shard: number for number, shard in enumerate(shards)}
        fragments = [(u, *fragment) for u, found in enumerate(units) for fragment in sorted(found)]
        counts = np.array([documents for _, _, documents in fragments], np.int64)
        numbers = np.array([self._numbers[shard] for _, shard, _ in fragments], np.int64)
        bounds = np.zeros(len(self._numbers) + 1, np.int64)
        np.add.at(bounds, numbers + 1, counts)
        bounds = np.cumsum(bounds)
        order = np.argsort(numbers, kind="stable")
        starts = np.empty_like(counts)  # of each fragment in the file
        starts[order] = np.cumsum(counts[order]) - counts[order]
        self._ends = np.cumsum(counts)  # of each fragment if units lie end to end
        self._shifts = starts - (self._ends - counts)
        sizes = np.bincount([u for u, _, _ in fragments], counts, len(units)).astype(np.int64)
        self._unit_starts = np.cumsum(sizes) - sizes
        self._bounds = bounds
        self._temp = temp_name(self._path)
        with self._temp.open("wb") as f:
            f.write(np.ascontiguousarray(bounds, "<i8").data)
            f.flush()
            os.posix_fallocate(f.fileno(), 0, bounds.nbytes + int(bounds[-1]))  # so that a full disk shows here
        self._dropped = (
            np.memmap(self._temp, np.uint8, "r+", offset=bounds.nbytes) if bounds[-1] else np.empty(0, np.uint8)
        )

    def drop(self, units: np.ndarray, numbers: np.ndarray) -> None:
        """Mark documents as dropped.

        Args:
            units: Index of each document's unit.
            numbers: Numbers of the documents in their units, counted in the order of split and shard.
        """
        positions = self._unit_starts[units] + numbers
        self._dropped[positions + self._shifts[np.searchsorted(self._ends, positions, "right")]] = 1

    def of_shard(self, shard: Shard) -> np.ndarray:
        """Return the bytes of a shard's documents, to be read and changed."""
        number = self._numbers[shard]
        found: np.ndarray = self._dropped[int(self._bounds[number]) : int(self._bounds[number + 1])]
        return found

    def commit(self) -> None:
        """Give the file its name."""
        if isinstance(self._dropped, np.memmap):
            self._dropped.flush()
        self._temp.replace(self._path)
