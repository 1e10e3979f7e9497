"""Find the source file and row of a document in prepared data.

A shard holds its documents in the order in which they were read. Document n is found by reading the shard's source
files again without tokenizing. The plan, which is kept with the data, says where they begin.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano3.data.dataset.dropped import DroppedDocuments
from nano3.data.dataset.manifest import Manifest
from nano3.data.dataset.output_dir import build_dir
from nano3.data.planning.plan import SPLITS, DatasetPlan, Plan, load_plan
from nano3.data.planning.shard_assignment import assign_shards, drop_short
from nano3.data.planning.splits import document_hash, file_seed, splits_in_plan, text_hashes
from nano3.data.sources.discovery import find_changed_files
from nano3.data.sources.reader_process import ReaderProcess
from nano3.data.sources.readers import keys_are_rows
from nano3.utils.errors import Failure


@dataclass(frozen=True)
class SourceRow:
    """The source of a document.

    Attributes:
        path: Path or URL of the file.
        key: Row number, counted from 0, or byte offset of the line in the uncompressed file.
        is_row: Whether `key` is a row number.
    """

    path: str
    key: int
    is_row: bool

    @property
    def position(self) -> str:
        """The key in words; rows are counted from 1, as in error messages."""
        return f"row {self.key + 1:,}" if self.is_row else f"byte {self.key:,}"


def load_build_plan(folder: Path, manifest: Manifest) -> Plan:
    """Return the plan that prepared data was made from; raise Failure if it is gone."""
    plan = load_plan(build_dir(folder, manifest.plan_hash) / "plan.json")
    plan.output_dir = str(Path(folder).absolute())  # the folder may have been moved
    return plan


def find_source_rows(plan: Plan, split: str, shard: int, numbers: Iterable[int]) -> dict[int, SourceRow]:
    """Find the sources of documents of a shard, by reading its source files up to the last of the documents.

    Args:
        plan: Plan of the data.
        split: Name of the split.
        shard: The number in the names of the shard's files.
        numbers: Numbers of the documents in the shard, counted from 0.

    Returns:
        The source of each document by its number.

    Raises:
        Failure: A source file has changed, is gone, or has fewer documents now.
    """
    wanted = sorted(set(numbers))
    found: dict[int, SourceRow] = {}
    split_number = SPLITS.index(split)
    number = next(d for d in range(len(plan.datasets)) if plan.first_shard(split_number, d + 1) > shard)
    dataset = plan.datasets[number]
    count = 0
    checked = -1
    by_row = False
    for file, keys in read_shard_documents(plan, dataset, split_number, shard - plan.first_shard(split_number, number)):
        if file != checked:
            check_unchanged(dataset, file)
            checked, by_row = file, keys_are_rows(dataset.whole_file(file))
        while len(found) < len(wanted) and (n := wanted[len(found)] - count) < len(keys):
            path = dataset.whole_file(file).path
            found[wanted[len(found)]] = SourceRow(path, int(keys[n]), by_row)
        count += len(keys)
        if len(found) == len(wanted):
            return found
    raise Failure(
        f"{dataset.path}: shard {shard} of {split} has a document {wanted[len(found)]:,}, but its sources now give "
        f"{count:,}. They have changed since the data was prepared."
    )


def read_shard_documents(plan: Plan, dataset: DatasetPlan, split: int, shard: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (file number, int64 keys) of the documents of a dataset's shard, in order."""
    by_text = plan.options.split_by == "text"
    dropped = None
    if plan.drops_documents:
        build = build_dir(Path(plan.output_dir), plan.hash)
        number = plan.datasets.index(dataset)
        dropped = DroppedDocuments(build, plan.shards()).of_shard((split, number, shard))
    read = 0
    first, last = dataset.units_of_shard(split, shard)
    ranges = [pair for unit in range(first, last + 1) for pair in dataset.file_ranges(unit)]
    with ReaderProcess() as process:
        for file, file_range in ranges:
            seed = file_seed(dataset.name, file_range.name)
            for batch in process.documents(file_range):
                texts, keys, offsets = drop_short(batch, plan.options.min_doc_chars)
                hashes = text_hashes(texts)[:, 0] if by_text else document_hash(seed, keys)
                splits = splits_in_plan(plan, dataset, hashes)
                shards = assign_shards(dataset, splits, offsets + int(dataset.file_offsets[file]))
                mine = keys[(splits == split) & (shards == shard)]
                read += len(mine)
                yield file, mine if dropped is None else mine[~dropped[read - len(mine) : read]]


def check_unchanged(dataset: DatasetPlan, file: int) -> None:
    """Raise Failure if a source file has changed since it was tokenized."""
    if changed := find_changed_files(dataset.root, [dataset.file_version(file)]):
        raise Failure(f"{changed[0]}: has changed since the data was prepared, so its rows cannot be identified.")
