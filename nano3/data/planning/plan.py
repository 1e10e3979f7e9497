"""The plan: which files are read, how they are cut into units, and which split and shard each document goes to.

A plan is deterministic, and is made without reading the data, except for the first documents (see `splits`).
A dataset is an axis of offsets on which its files lie end to end; a file is as long as its estimated bytes of
text. Units and shards are intervals of that axis, so 100,000 files and 10,000 shards are a few arrays. Each unit is
tokenized once. A document goes to the split that its hash selects and, within the split, to the shard that contains
its offset.
"""

import hashlib
import heapq
from bisect import bisect_right
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nano3.config import PrepOptions
from nano3.data.sources.discovery import WHOLE_FILE_LIMIT, FileVersion
from nano3.data.sources.formats import FORMATS
from nano3.data.sources.readers import FileRange
from nano3.data.tokenization.tokenizer import TokenizerInfo
from nano3.utils.errors import Failure
from nano3.utils.files import write_text
from nano3.utils.records import is_intact, seal

PLAN_FORMAT = 3  # part of every plan's hash: raise it when the same plan would give other bytes or receipts
SPLITS = ("train", "valid", "test")
MIN_UNIT, MAX_UNIT, WANTED_UNITS = 8 << 20, 128 << 20, 64
FILES_IN_UNIT = 4096  # approximate upper bound: opening a file takes time too
# Options that do not change the bytes of the data.
NOT_HASHED = (
    "output_dir", "tokenizer_model", "engine", "check_every", "bad_rows", "max_bad_rows", "hf_files", "force",
    "workers", "dtype",
    # Hashed if they are not as in versions without them, whose plans keep their hashes.
    "split_by", "dedup", "sample_tokens",
    "eod_token",  # its id is hashed
)  # fmt: skip


class DatasetPlan(
    msgspec.Struct, dict=True, rename={"fingerprints": "prints", "estimated_bytes": "costs", "warnings": "notes"}
):
    """One dataset of a plan. The lists that describe files have equal lengths.

    Attributes:
        name: Name of the dataset in its blend.
        weight: Weight of the dataset in its blend.
        path: Where the text is, as configured.
        text_field: Column or key that holds a document's text.
        root: Local folder or URL that `keys` are relative to.
        revision: Commit of a dataset on the Hub.
        keys: Paths of the files.
        sizes: Bytes of the files.
        fingerprints: Fingerprints of the files' contents.
        formats: Formats of the files (see `nano3.data.sources.formats`).
        estimated_bytes: Lengths of the files on the dataset's axis: about the bytes of text in them.
        times: Modification times of the files in nanoseconds.
        ctimes: Change times of their inodes in nanoseconds; 0 if unknown, empty in plans of earlier versions.
        budget: epochs, tokens and max_epochs of the dataset in its blend, if they are set.
        rows: For a sample, the number of first rows that are taken from each file.
        sampled_bytes: For a sample, about the bytes of text in it.
        bounds: A document is in valid if its hash is below bounds[0], else in test if it is below bounds[1], else
            in train.
        shards: Number of shards of each split.
        cells_per_shard: The axis is divided into `shards[0] * cells_per_shard` equal cells.
        cells_per_unit: Number of adjacent cells in a unit.
        warnings: What to warn about before the dataset is tokenized.
        text_separator: Joins the strings of a list.
    """

    name: str
    weight: float
    path: str
    text_field: str
    root: str
    revision: str | None
    keys: list[str]
    sizes: list[int]
    fingerprints: list[str]
    formats: list[str]
    estimated_bytes: list[int]
    times: list[int] = []
    rows: list[int] | None = None
    sampled_bytes: int = 0
    bounds: tuple[int, int] = (0, 0)
    shards: tuple[int, int, int] = (1, 0, 0)
    cells_per_shard: int = 1
    cells_per_unit: int = 1
    warnings: list[str] = []
    text_separator: str | None = None
    ctimes: list[int] = []
    budget: dict[str, float] = {}

    @cached_property
    def file_offsets(self) -> np.ndarray:
        """int64[files + 1]: the offset at which each file begins, and the end of the last one."""
        return np.concatenate([[0], np.cumsum(np.array(self.estimated_bytes, np.int64))])

    @property
    def extent(self) -> int:
        """Length of the dataset's axis."""
        return int(self.file_offsets[-1])

    @cached_property
    def unit_bounds(self) -> np.ndarray:
        """int64[units + 1]: unit u reads the records whose offset is in [unit_bounds[u], unit_bounds[u + 1])."""
        cells = self.shards[0] * self.cells_per_shard
        edges = np.minimum(np.arange(0, cells + self.cells_per_unit, self.cells_per_unit), cells)
        return split_evenly(self.extent, cells, edges)

    @property
    def text_bytes(self) -> int:
        """About the bytes of text in the dataset, or in its sample."""
        return self.extent if self.rows is None else self.sampled_bytes

    @property
    def identities(self) -> list[tuple[object, ...]]:
        """For each file, the values that differ once the file is edited.

        The fingerprint of a large file does not cover every byte, so its modification time is included.
        """
        times = self.times or [0] * len(self.keys)
        rows = zip(self.keys, self.sizes, self.fingerprints, self.formats, times, strict=True)
        return [(key, size, fp, kind, time if size > WHOLE_FILE_LIMIT else 0) for key, size, fp, kind, time in rows]

    def file_version(self, file: int) -> FileVersion:
        """Return what identified file number `file` when the plan was made."""
        return FileVersion(
            self.keys[file],
            self.sizes[file],
            self.fingerprints[file],
            self.times[file] if self.times else 0,
            self.ctimes[file] if self.ctimes else 0,
        )

    @property
    def layout(self) -> tuple[object, ...]:
        """Everything that determines which documents units and shards hold."""
        shape = tuple(self.bounds), tuple(self.shards), self.cells_per_shard, self.cells_per_unit
        return self.estimated_bytes, self.rows, *shape

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.unit_bounds) - 1

    @cached_property
    def shard_bounds(self) -> list[np.ndarray]:
        """For each split int64[shards + 1]: the offset at which each shard begins, and the end of the last one."""
        return [split_evenly(self.extent, n, np.arange(n + 1)) for n in self.shards]

    def splittable(self, file: int) -> bool:
        """Whether a unit can start inside the file."""
        return self.rows is None and FORMATS[self.formats[file]].splittable

    def file_ranges(self, unit: int) -> list[tuple[int, FileRange]]:
        """Return (file number, range to read) of each file that a unit opens."""
        low, high = int(self.unit_bounds[unit]), int(self.unit_bounds[unit + 1])
        if low >= high:
            return []
        first = int(np.searchsorted(self.file_offsets, low, "right")) - 1
        last = int(np.searchsorted(self.file_offsets, high - 1, "right")) - 1
        ranges = []
        for file in range(first, last + 1):
            base = int(self.file_offsets[file])
            if self.splittable(file):
                stop = min(high - base, self.estimated_bytes[file])
                ranges.append((file, self.file_range(file, max(0, low - base), stop)))
            elif base >= low:
                ranges.append((file, self.whole_file(file)))
        return ranges

    def file_range(self, file: int, start: int, stop: int) -> FileRange:
        """Return the range [start, stop) of a file, in offsets from the file's own beginning."""
        return FileRange(
            root=self.root,
            name=self.keys[file],
            format=self.formats[file],
            size=self.sizes[file],
            estimated_bytes=self.estimated_bytes[file],
            start=start,
            stop=stop,
            text_field=self.text_field,
            rows=self.rows[file] if self.rows else None,
            text_separator=self.text_separator,
        )

    def whole_file(self, file: int) -> FileRange:
        """Return the range that covers a whole file."""
        return self.file_range(file, 0, self.estimated_bytes[file])

    def units_of_shard(self, split: int, shard: int) -> tuple[int, int]:
        """Return the first and last unit that may have documents of a shard; (0, -1) if none can.

        A record may extend beyond the unit in which it starts, but not beyond its file.
        """
        low, high = (int(b) for b in self.shard_bounds[split][shard : shard + 2])
        if low >= high:
            return 0, -1
        file = int(np.searchsorted(self.file_offsets, low, "right")) - 1
        start = low if self.rows is None and self.formats[file] == "jsonl" else int(self.file_offsets[file])
        first = int(np.searchsorted(self.unit_bounds, start, "right")) - 1
        last = int(np.searchsorted(self.unit_bounds, high - 1, "right")) - 1
        return first, last


class Plan(msgspec.Struct, dict=True):
    """Everything that a worker on any machine needs to know. Stored as one JSON file.

    Attributes:
        hash: Identity of the bytes to be made (`plan_hash`).
        blend: Name of the blend.
        output_dir: Absolute path of the output folder.
        options: Options of the preparation.
        tokenizer: The tokenizer.
        dtype: NumPy name of the token dtype on disk.
        datasets: The datasets, in the order of the blend.
        format: `PLAN_FORMAT` of the nano3 that wrote the plan.
        moved: (hash, split) of the texts whose split does not follow from the bounds (see `moved_texts`), sorted.
    """

    hash: str
    blend: str
    output_dir: str
    options: PrepOptions
    tokenizer: TokenizerInfo
    dtype: str
    datasets: list[DatasetPlan]
    format: int = PLAN_FORMAT
    moved: list[tuple[int, int]] = []

    @cached_property
    def moved_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes (uint64) and splits (int8) of the moved texts."""
        return np.array([h for h, _ in self.moved], np.uint64), np.array([s for _, s in self.moved], np.int8)

    @property
    def drops_documents(self) -> bool:
        """Whether documents are left out when shards are merged: duplicates, or those beyond `sample_tokens`."""
        return self.options.dedup == "exact" or self.options.sample_tokens is not None

    @property
    def warnings(self) -> list[str]:
        """What to warn about before anything is tokenized."""
        return [*filter(None, [self.tokenizer.eod_warning]), *(w for d in self.datasets for w in d.warnings)]

    @cached_property
    def first_units(self) -> list[int]:
        """Number of the first unit of each dataset, then the number of all units: numbers run over all datasets."""
        return [0, *np.cumsum([d.units for d in self.datasets]).tolist()]

    @property
    def units(self) -> int:
        """Number of units in all datasets."""
        return self.first_units[-1]

    def unit(self, number: int) -> tuple[int, int]:
        """Return (dataset, unit within it) of a unit of the plan."""
        dataset = bisect_right(self.first_units, number) - 1
        return dataset, number - self.first_units[dataset]

    def shards(self) -> list[tuple[int, int, int]]:
        """Return (split, dataset, shard within them) of every shard, in the order of their file numbers."""
        return [
            (split, d, s)
            for split in range(len(SPLITS))
            for d, dataset in enumerate(self.datasets)
            for s in range(dataset.shards[split])
        ]

    @cached_property
    def first_shards(self) -> list[list[int]]:
        """For each split the file number of the first shard of each dataset, then the number of all shards."""
        return [[0, *np.cumsum([d.shards[s] for d in self.datasets]).tolist()] for s in range(len(SPLITS))]

    def first_shard(self, split: int, dataset: int) -> int:
        """Return the file number of a dataset's first shard in a split."""
        return self.first_shards[split][dataset]

    def shard_name(self, split: int, dataset: int, shard: int) -> str:
        """Return the prefix of a shard's files, relative to the output folder."""
        return f"{SPLITS[split]}/data_{self.first_shard(split, dataset) + shard:05d}"

    def save(self, path: Path) -> None:
        """Write the plan atomically."""
        write_text(path, seal(msgspec.json.encode(self)).decode() + "\n")


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        Failure: The file cannot be read or is damaged.
    """
    try:
        text = Path(path).read_bytes()
        plan = msgspec.json.decode(text, type=Plan)
    except PermissionError:
        raise
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {error.strerror}. Run the same command again.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: damaged ({error}). Run the same command again to make a new plan.") from error
    if not is_intact(text):
        raise Failure(f"{path}: damaged (its checksum differs). Run the same command again to make a new plan.")
    if plan.options.split_by == "auto":  # of a version without this option
        plan.options.split_by = "position"
    return plan


def split_evenly(total: int, parts: int, edges: np.ndarray) -> np.ndarray:
    """Return the positions of edges if [0, total) is divided into about equal parts.

    Args:
        total: Length to divide.
        parts: Number of parts.
        edges: int64 numbers of edges, from 0 to `parts`.

    Returns:
        int64 positions in [0, total], exact for any sizes.
    """
    whole, rest = divmod(total, max(parts, 1))
    bounds: np.ndarray = edges * whole + edges * rest // max(parts, 1)
    return bounds


def hashed_settings(options: PrepOptions, tokenizer: TokenizerInfo, dtype: str) -> bytes:
    """Return, as JSON, the settings that determine the bytes made from a text: options and tokenizer."""
    settings: dict[str, object] = {
        "format": PLAN_FORMAT,
        "options": {k: v for k, v in asdict(options).items() if k not in NOT_HASHED},
        "dtype": dtype,
        "tokenizer": [tokenizer.sha256, tokenizer.eod_id, tokenizer.bos_id if options.add_bos else None],
    }
    if options.split_by == "text":
        settings["split_by"] = "text"
    if options.dedup != "none":
        settings["dedup"] = options.dedup
    if options.sample_tokens is not None:
        settings["sample_tokens"] = int(options.sample_tokens)
    return msgspec.json.encode(settings, order="sorted")


def plan_hash(datasets: list[DatasetPlan], options: PrepOptions, tokenizer: TokenizerInfo, dtype: str) -> str:
    """Return the identity of the bytes to be made: a SHA-256 over contents, options and tokenizer.

    Weights, budgets, folders, times, the number of workers and versions are not part of it.
    """
    digest = hashlib.sha256(hashed_settings(options, tokenizer, dtype))
    for d in datasets:
        digest.update(msgspec.json.encode([d.name, d.text_field, d.keys, d.sizes, d.fingerprints, d.formats]))
        if d.text_separator is not None:  # plans without it keep their hashes
            digest.update(msgspec.json.encode({"text_separator": d.text_separator}))
    return digest.hexdigest()


def content_hash(plan: str, weights: dict[str, float], budgets: dict[str, dict[str, float]]) -> str:
    """Return the identity of prepared data for a run: a SHA-256.

    Args:
        plan: Hash of the plan.
        weights: Weight of each dataset.
        budgets: Budgets of the datasets that have any.
    """
    values: list[Any] = [plan, sorted(weights.items())]
    if budgets:  # data without them keeps its identity
        values.append(budgets)
    return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()


def lay_out(datasets: list[DatasetPlan], options: PrepOptions) -> None:
    """Set the number of shards and the units of every dataset."""
    fractions = (1 - options.valid_fraction - options.test_fraction, options.valid_fraction, options.test_fraction)
    counts = allocate_shards([[d.extent * f for f in fractions] for d in datasets], options.num_shards)
    total = sum(d.extent for d in datasets)
    unit = min(max(total // WANTED_UNITS, MIN_UNIT), MAX_UNIT)
    for d, count in zip(datasets, counts, strict=True):
        size = max(1, min(unit, d.extent * FILES_IN_UNIT // len(d.keys)))
        d.shards = (count[0], count[1], count[2])
        d.cells_per_shard = max(1, -(-d.extent // (size * count[0])))
        d.cells_per_unit = max(1, size * count[0] // max(d.extent, 1)) if d.cells_per_shard == 1 else 1


def allocate_shards(sizes: list[list[float]], shards: int) -> list[list[int]]:
    """Return the number of shards of each dataset and split.

    Each nonempty split of a dataset gets one shard. Each remaining shard goes where shards are largest at that point.

    Args:
        sizes: Size of each dataset's splits, in any unit; a split of size 0 gets no shard.
        shards: Number of shards in all; exceeded only if there are more nonempty splits than that.
    """
    counts = [[1 if size > 0 else 0 for size in row] for row in sizes]
    heap = [(-size, d, s) for d, row in enumerate(sizes) for s, size in enumerate(row) if size > 0]
    heapq.heapify(heap)
    for _ in range(shards - len(heap)):
        _, d, s = heap[0]
        counts[d][s] += 1
        heapq.heapreplace(heap, (-sizes[d][s] / counts[d][s], d, s))
    return counts
