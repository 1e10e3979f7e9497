"""The plan: what is read, how it is cut into units of work, and which document goes to which split and shard.

Deterministic, and made without reading the data (but for a little of its start, see `splits.py`): a dataset is a
line of places, its files laid end to end (`readers.py`). Units of work and shards are intervals on that line, so
10^5 files and 10^4 shards are a few arrays. A unit is tokenized once; a document goes to the split its hash says,
and in it to the shard its place falls into.
"""

import hashlib
import heapq
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nano3.config import PrepOptions
from nano3.data.sources.discovery import WHOLE_FILE_LIMIT
from nano3.data.sources.formats import FORMATS
from nano3.data.sources.readers import FileRange
from nano3.data.tokenization.tokenizer import TokenizerInfo
from nano3.utils.errors import Failure
from nano3.utils.files import write_text

PLAN_FORMAT = 3  # part of every plan's hash: raise it when the same plan would give other bytes or receipts
SPLITS = ("train", "valid", "test")
MIN_UNIT, MAX_UNIT, WANTED_UNITS = 8 << 20, 128 << 20, 64
FILES_IN_UNIT = 4096  # about, at most: opening a file takes time too
# Options that leave the bytes as they are.
NOT_HASHED = (
    "output_dir", "tokenizer_model", "engine", "check_every", "bad_rows", "hf_files", "force", "workers", "dtype",
)  # fmt: skip


@dataclass
class DatasetPlan:
    """One dataset. `costs` are the widths of its files in places; `rows` limits files to their first rows (sampling),
    and `sampled_bytes` is then about the text in them. `times` say when files were changed, in nanoseconds.

    `bounds`: a document whose hash is below bounds[0] is in valid, else below bounds[1] in test, else in train.
    `units` of work are joined cells of a grid of `shards[0] * cells_per_shard` equal cells, `cells_per_unit` in each.
    """

    name: str
    weight: float
    path: str
    text_field: str
    root: str
    revision: str | None
    keys: list[str]
    sizes: list[int]
    prints: list[str]
    formats: list[str]
    costs: list[int]
    times: list[int] = field(default_factory=list)
    rows: list[int] | None = None
    sampled_bytes: int = 0
    bounds: tuple[int, int] = (0, 0)
    shards: tuple[int, int, int] = (1, 0, 0)
    cells_per_shard: int = 1
    cells_per_unit: int = 1
    notes: list[str] = field(default_factory=list)

    @cached_property
    def bases(self) -> np.ndarray:
        """int64[files + 1]: the place at which each file begins."""
        return np.concatenate([[0], np.cumsum(np.array(self.costs, np.int64))])

    @property
    def width(self) -> int:
        """Places in the dataset."""
        return int(self.bases[-1])

    @cached_property
    def unit_bounds(self) -> np.ndarray:
        """int64[units + 1]: unit u reads the atoms that start at unit_bounds[u] <= place < unit_bounds[u + 1]."""
        cells = self.shards[0] * self.cells_per_shard
        edges = np.minimum(np.arange(0, cells + self.cells_per_unit, self.cells_per_unit), cells)
        return cut(self.width, cells, edges)

    @property
    def text_bytes(self) -> int:
        """Bytes of text, about."""
        return self.width if self.rows is None else self.sampled_bytes

    @property
    def identities(self) -> list[tuple[object, ...]]:
        """What tells each file from an edited one. A large file's fingerprint is not of all of it: its time counts."""
        times = self.times or [0] * len(self.keys)
        rows = zip(self.keys, self.sizes, self.prints, self.formats, times, strict=True)
        return [(key, size, was, kind, time if size > WHOLE_FILE_LIMIT else 0) for key, size, was, kind, time in rows]

    @property
    def layout(self) -> tuple[object, ...]:
        """Everything that decides what a unit and a shard hold."""
        return self.costs, self.rows, tuple(self.bounds), tuple(self.shards), self.cells_per_shard, self.cells_per_unit

    @property
    def units(self) -> int:
        """Number of units of work."""
        return len(self.unit_bounds) - 1

    @cached_property
    def shard_bounds(self) -> list[np.ndarray]:
        """For each split int64[shards + 1]: shard s of a split holds its documents with bounds[s] <= place <
        bounds[s + 1].
        """
        return [cut(self.width, n, np.arange(n + 1)) for n in self.shards]

    def splittable(self, file: int) -> bool:
        """Whether a unit can start inside the file."""
        return self.rows is None and FORMATS[self.formats[file]].splittable

    def parts(self, unit: int) -> list[tuple[int, FileRange]]:
        """(file number, part) of each file that a unit has to open."""
        low, high = int(self.unit_bounds[unit]), int(self.unit_bounds[unit + 1])
        if low >= high:
            return []
        first = int(np.searchsorted(self.bases, low, "right")) - 1
        last = int(np.searchsorted(self.bases, high - 1, "right")) - 1
        parts = []
        for file in range(first, last + 1):
            base = int(self.bases[file])
            if self.splittable(file):
                parts.append((file, self.part(file, max(0, low - base), min(high - base, self.costs[file]))))
            elif base >= low:
                parts.append((file, self.part(file, 0, self.costs[file])))
        return parts

    def part(self, file: int, start: int, stop: int) -> FileRange:
        """A part of a file, in the file's own places."""
        return FileRange(
            root=self.root,
            name=self.keys[file],
            format=self.formats[file],
            size=self.sizes[file],
            estimated_bytes=self.costs[file],
            start=start,
            stop=stop,
            text_field=self.text_field,
            rows=self.rows[file] if self.rows else None,
        )

    def whole(self, file: int) -> FileRange:
        """All of a file."""
        return self.part(file, 0, self.costs[file])

    def units_of(self, split: int, shard: int) -> tuple[int, int]:
        """First and last unit that may have documents of a shard; (0, -1) when none can.

        An atom may reach beyond the unit in which it starts, but not beyond its file.
        """
        low, high = (int(b) for b in self.shard_bounds[split][shard : shard + 2])
        if low >= high:
            return 0, -1
        file = int(np.searchsorted(self.bases, low, "right")) - 1
        start = low if self.rows is None and self.formats[file] == "jsonl" else int(self.bases[file])
        first = int(np.searchsorted(self.unit_bounds, start, "right")) - 1
        last = int(np.searchsorted(self.unit_bounds, high - 1, "right")) - 1
        return first, last


@dataclass
class Plan:
    """Everything a worker on any machine must know. Written as one JSON file."""

    hash: str
    blend: str
    output_dir: str
    options: PrepOptions
    tokenizer: TokenizerInfo
    dtype: str
    datasets: list[DatasetPlan]
    format: int = PLAN_FORMAT

    @cached_property
    def first_units(self) -> list[int]:
        """Number of the first unit of each dataset, and of all units at the end: units are numbered through."""
        return [0, *np.cumsum([d.units for d in self.datasets]).tolist()]

    @property
    def units(self) -> int:
        """Units of work in all datasets."""
        return self.first_units[-1]

    def unit(self, number: int) -> tuple[int, int]:
        """(dataset, unit in it) of a unit of the plan."""
        dataset = int(np.searchsorted(self.first_units, number, "right")) - 1
        return dataset, number - self.first_units[dataset]

    def shards(self) -> list[tuple[int, int, int]]:
        """(split, dataset, shard in it) in the order of their file numbers."""
        return [
            (split, d, s)
            for split in range(len(SPLITS))
            for d, dataset in enumerate(self.datasets)
            for s in range(dataset.shards[split])
        ]

    def first_shard(self, split: int, dataset: int) -> int:
        """File number of a dataset's first shard in a split."""
        return sum(d.shards[split] for d in self.datasets[:dataset])

    def save(self, path: Path) -> None:
        """Write the plan atomically."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["datasets"] = [{f.name: getattr(d, f.name) for f in fields(d)} for d in self.datasets]
        write_text(path, msgspec.json.encode(values).decode() + "\n")

    def shard_name(self, split: int, dataset: int, shard: int) -> str:
        """Prefix of a shard's files in the output folder."""
        return f"{SPLITS[split]}/data_{self.first_shard(split, dataset) + shard:05d}"


def cut(width: int, pieces: int, edges: np.ndarray) -> np.ndarray:
    """The edges of `pieces` about equal pieces of [0, width); exact for any sizes."""
    whole, rest = divmod(width, max(pieces, 1))
    return edges * whole + edges * rest // max(pieces, 1)


def recipe(options: PrepOptions, tokenizer: TokenizerInfo, dtype: str) -> bytes:
    """What is made of a text, as JSON: the options that decide bytes, and the tokenizer."""
    head = {
        "format": PLAN_FORMAT,
        "options": {k: v for k, v in asdict(options).items() if k not in NOT_HASHED},
        "dtype": dtype,
        "tokenizer": [tokenizer.sha256, tokenizer.eod_id, tokenizer.bos_id if options.add_bos else None],
    }
    return msgspec.json.encode(head, order="sorted")


def plan_hash(datasets: list[DatasetPlan], options: PrepOptions, tokenizer: TokenizerInfo, dtype: str) -> str:
    """Identity of the bytes to be made: contents, options and tokenizer; not weights, places, times, workers or
    versions.
    """
    digest = hashlib.sha256(recipe(options, tokenizer, dtype))
    for d in datasets:
        digest.update(msgspec.json.encode([d.name, d.text_field, d.keys, d.sizes, d.prints, d.formats]))
    return digest.hexdigest()


def content_hash(plan: str, weights: dict[str, float]) -> str:
    """Identity of prepared data as a run sees it: the bytes, which the plan's hash names, and how they are mixed."""
    return hashlib.sha256(msgspec.json.encode([plan, sorted(weights.items())])).hexdigest()


def lay_out(datasets: list[DatasetPlan], options: PrepOptions) -> None:
    """Decide the number of shards and the units of every dataset."""
    fractions = (1 - options.valid_fraction - options.test_fraction, options.valid_fraction, options.test_fraction)
    counts = share_out([[d.width * f for f in fractions] for d in datasets], options.num_shards)
    total = sum(d.width for d in datasets)
    unit = min(max(total // WANTED_UNITS, MIN_UNIT), MAX_UNIT)
    for d, count in zip(datasets, counts, strict=True):
        size = max(1, min(unit, d.width * FILES_IN_UNIT // len(d.keys)))
        d.shards = (count[0], count[1], count[2])
        d.cells_per_shard = max(1, -(-d.width // (size * count[0])))
        d.cells_per_unit = max(1, size * count[0] // max(d.width, 1)) if d.cells_per_shard == 1 else 1


def share_out(sizes: list[list[float]], shards: int) -> list[list[int]]:
    """Number of shards of each dataset and split: one each, the rest always to where shards are largest.

    A split of size 0 gets none. More than `shards` only when there are more datasets and splits than that.
    """
    counts = [[1 if size > 0 else 0 for size in row] for row in sizes]
    heap = [(-size, d, s) for d, row in enumerate(sizes) for s, size in enumerate(row) if size > 0]
    heapq.heapify(heap)
    for _ in range(shards - len(heap)):
        _, d, s = heap[0]
        counts[d][s] += 1
        heapq.heapreplace(heap, (-sizes[d][s] / counts[d][s], d, s))
    return counts


def load_plan(path: Path) -> Plan:
    """Read a plan. Raises `Failure` when there is none or it is damaged."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Plan)
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {error.strerror}. Run the same command again.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: damaged ({error}). Run the same command again: it makes the plan anew.") from error
