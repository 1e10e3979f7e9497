"""Where a document of prepared data came from: the file and the row.

A shard holds its documents in the order in which they are read, so the n-th one is found by reading the sources of the
shard again, without tokenizing; the plan, which stays beside the data, tells where they begin.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano3.data.dataset.manifest import Manifest
from nano3.data.dataset.output_dir import build_dir
from nano3.data.planning.plan import SPLITS, DatasetPlan, Plan, load_plan
from nano3.data.planning.shard_assignment import assign_shards, drop_short
from nano3.data.planning.splits import document_hash, file_seed, split_of
from nano3.data.sources.discovery import find_changed_files
from nano3.data.sources.readers import read_documents
from nano3.utils.errors import Failure

BY_ROW = ("parquet", "arrow", "json")


@dataclass(frozen=True)
class SourceRow:
    """A document's file, and its key in it: a row number from 0, or the byte offset of its line in the uncompressed
    file.
    """

    path: str
    key: int
    is_row: bool

    @property
    def place(self) -> str:
        """In words: rows are counted from 1, as in messages about them."""
        return f"row {self.key + 1:,}" if self.is_row else f"byte {self.key:,}"


def load_build_plan(folder: Path, manifest: Manifest) -> Plan:
    """The plan that prepared data was made by. Raises `Failure` when it is not there."""
    return load_plan(build_dir(folder, manifest.plan_hash) / "plan.json")


def find_source_rows(plan: Plan, split: str, shard: int, numbers: Iterable[int]) -> dict[int, SourceRow]:
    """Origins of documents by their number, from 0, in a shard; `shard` is the number in the names of its files.

    Reads the shard's sources up to the last of the documents. Raises `Failure` when a source was changed, is gone, or
    holds fewer documents than it did.
    """
    wanted = sorted(set(numbers))
    found: dict[int, SourceRow] = {}
    part = SPLITS.index(split)
    number = next(d for d in range(len(plan.datasets)) if plan.first_shard(part, d + 1) > shard)
    dataset = plan.datasets[number]
    count = 0
    checked = -1
    for file, keys in read_shard_documents(plan, dataset, part, shard - plan.first_shard(part, number)):
        if file != checked:
            check_unchanged(dataset, file)
            checked = file
        while len(found) < len(wanted) and (n := wanted[len(found)] - count) < len(keys):
            whole = dataset.whole_file(file)
            found[wanted[len(found)]] = SourceRow(whole.path, int(keys[n]), whole.format in BY_ROW)
        count += len(keys)
        if len(found) == len(wanted):
            return found
    raise Failure(
        f"{dataset.path}: shard {shard} of {split} has a document {wanted[len(found)]:,}, but its sources now give "
        f"{count:,}. They were changed since the data was prepared."
    )


def read_shard_documents(plan: Plan, dataset: DatasetPlan, split: int, shard: int) -> Iterator[tuple[int, np.ndarray]]:
    """(file number, int64 keys) of the documents of a dataset's shard, in their order in it."""
    first, last = dataset.units_of_shard(split, shard)
    for unit in range(first, last + 1):
        for file, part in dataset.file_ranges(unit):
            seed = file_seed(dataset.name, part.name)
            for batch in read_documents(part):
                _, keys, places = drop_short(batch, plan.options.min_doc_chars)
                splits = split_of(document_hash(seed, keys), dataset.bounds)
                shards = assign_shards(dataset, splits, places + int(dataset.file_offsets[file]))
                yield file, keys[(splits == split) & (shards == shard)]


def check_unchanged(dataset: DatasetPlan, file: int) -> None:
    """Raise `Failure` when a file is no longer what it was."""
    time = dataset.times[file] if dataset.times else 0
    identity = (dataset.keys[file], dataset.sizes[file], dataset.fingerprints[file], time)
    if changed := find_changed_files(dataset.root, iter([identity])):
        raise Failure(f"{changed[0]}: was changed since the data was prepared; its rows cannot be told any more.")
