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
from nano3.data.sources.readers import FileRange, keys_are_rows
from nano3.utils.errors import Failure, UserError, did_you_mean, list_some


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


def find_document(plan: Plan, path: str, position: int) -> tuple[str, int, DatasetPlan]:
    """Find the document of a source row, by reading its file and the shard that the document is in.

    Args:
        plan: Plan of the data.
        path: The file as `nano3 trace` shows it, or the end of its path.
        position: Number of the row, counted from 1, or the byte at which the line begins, counted from 0.

    Returns:
        The shard's prefix, the number of the document in the shard, and the dataset.

    Raises:
        UserError: No file, or several, have this path; or the row is no document of the data.
        Failure: The file has changed since it was tokenized.
    """
    dataset, file = _find_file(plan, path)
    check_unchanged(dataset, file)
    whole = dataset.whole_file(file)
    key, what = (position - 1, "row") if keys_are_rows(whole) else (position, "line that begins at byte")
    first, last = (int(b) for b in np.searchsorted(dataset.unit_bounds, dataset.file_offsets[[file, file + 1]], "left"))
    units = range(max(first - 1, 0), min(last, dataset.units))
    ranges = [(number, r) for unit in units for number, r in dataset.file_ranges(unit) if number == file]
    for _, keys, splits, shards in _read_documents(plan, dataset, ranges):
        if len(found := np.flatnonzero(keys == key)):
            split, shard = int(splits[found[0]]), int(shards[found[0]])
            break
    else:
        raise UserError(
            f"{whole.path}: the {what} {position:,} is no document of the data: it is empty, shorter than "
            "min_doc_chars, not part of the sample, or there is none. The numbers are those of `nano3 trace` and of "
            "error messages."
        )
    count = 0
    for number, keys in read_shard_documents(plan, dataset, split, shard):
        if number == file and len(at := np.flatnonzero(keys == key)):
            return plan.shard_name(split, plan.datasets.index(dataset), shard), count + int(at[0]), dataset
        count += len(keys)
    raise UserError(f"{whole.path}: the {what} {position:,} was left out as an exact duplicate (dedup=exact).")


def _find_file(plan: Plan, path: str) -> tuple[DatasetPlan, int]:
    """Return the dataset and number of the file with this path.

    Raises:
        UserError: There is none, or there are several.
    """
    files = [(d, n, d.whole_file(n).path) for d in plan.datasets for n in range(len(d.keys))]
    exact = [(d, n) for d, n, name in files if name == path]
    found = exact or [(d, n) for d, n, name in files if name.endswith(f"/{path.lstrip('/')}")]
    if len(found) == 1:
        return found[0]
    if found:
        names = sorted({d.whole_file(n).path for d, n in found})
        raise UserError(f"{path} is the end of {len(names)} paths: {list_some(names)}. Write one of them.")
    raise UserError(f"{path}: no file of the data has this path.{did_you_mean(path, [name for _, _, name in files])}")


def read_shard_documents(plan: Plan, dataset: DatasetPlan, split: int, shard: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (file number, int64 keys) of the documents of a dataset's shard, in order."""
    dropped = None
    if plan.drops_documents:
        build = build_dir(Path(plan.output_dir), plan.hash)
        number = plan.datasets.index(dataset)
        dropped = DroppedDocuments(build, plan.shards()).of_shard((split, number, shard))
    read = 0
    first, last = dataset.units_of_shard(split, shard)
    ranges = [pair for unit in range(first, last + 1) for pair in dataset.file_ranges(unit)]
    for file, keys, splits, shards in _read_documents(plan, dataset, ranges):
        mine = keys[(splits == split) & (shards == shard)]
        read += len(mine)
        yield file, mine if dropped is None else mine[~dropped[read - len(mine) : read]]


def _read_documents(
    plan: Plan, dataset: DatasetPlan, ranges: Iterable[tuple[int, FileRange]]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (file number, int64 keys, int8 splits, int64 shards) of the documents in ranges of files, in order."""
    by_text = plan.options.split_by == "text"
    with ReaderProcess() as process:
        for file, file_range in ranges:
            seed = file_seed(dataset.name, file_range.name)
            for batch in process.documents(file_range):
                texts, keys, offsets = drop_short(batch, plan.options.min_doc_chars)
                hashes = text_hashes(texts)[:, 0] if by_text else document_hash(seed, keys)
                splits = splits_in_plan(plan, dataset, hashes)
                yield file, keys, splits, assign_shards(dataset, splits, offsets + int(dataset.file_offsets[file]))


def check_unchanged(dataset: DatasetPlan, file: int) -> None:
    """Raise Failure if a source file has changed since it was tokenized."""
    if changed := find_changed_files(dataset.root, [dataset.file_version(file)]):
        raise Failure(f"{changed[0]}: has changed since the data was prepared, so its rows cannot be identified.")
