"""Which split a document is in.

The split is a hash of (dataset, file, key), so it depends neither on the number of shards nor on workers. Plain
hashing may leave a small dataset without validation documents; so the plan reads its start until it has met a
document of every split, and when the dataset ends before that, moves the bounds so that each split gets its share
and at least one. Only then: bounds that fit the few documents of a large dataset's start would be wrong for the rest.
"""

import hashlib

import numpy as np

from nano3.config import PrepOptions
from nano3.data.planning.plan import SPLITS, DatasetPlan
from nano3.data.sources.formats import UTF8_BOM
from nano3.data.sources.jsonl import NO_FIELD
from nano3.data.sources.readers import Batch, FileRange, read_documents, row_number
from nano3.utils.errors import Failure, UserError

FULL = 1 << 64
SCAN_BYTES = 256 << 20  # text read at most in search of a document of every split


def file_seed(dataset: str, key: str) -> int:
    """The number that stands for a file in the hash of its documents."""
    return int.from_bytes(hashlib.blake2b(f"{dataset}\0{key}".encode(), digest_size=8).digest(), "little")


def document_hash(seed: int, keys: np.ndarray) -> np.ndarray:
    """uint64 hash of documents by file seed and key (int64): the finalizer of splitmix64 on seed + key * golden
    ratio.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (keys.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def split_of(hashes: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """int8: 0 train, 1 valid, 2 test."""
    valid, test = (np.uint64(min(b, FULL - 1)) for b in bounds)
    return np.where(hashes < valid, 1, np.where(hashes < test, 2, 0)).astype(np.int8)


def set_bounds(dataset: DatasetPlan, options: PrepOptions) -> None:
    """Choose `dataset.bounds`; note it when a split must stay empty because there are too few documents."""
    wanted = (options.valid_fraction, options.test_fraction)
    dataset.bounds = plain = (int(wanted[0] * FULL), int((wanted[0] + wanted[1]) * FULL))
    needed = {0} | {i + 1 for i, share in enumerate(wanted) if share > 0}
    if needed == {0}:
        return
    hashes: list[np.ndarray] = []
    met: set[int] = set()
    read = 0
    for file, key in enumerate(dataset.keys):
        seed = file_seed(dataset.name, key)
        part = dataset.whole_file(file)
        for batch in read_documents(part):
            if read > SCAN_BYTES:
                warn_of_unmet_splits(dataset, needed - met, sum(map(len, hashes)), read)
                return
            check_bad_rows(batch, part, options, dataset.name)
            least = max(options.min_doc_chars, 1)
            kept = np.array([len(text) >= least for text in batch.texts], bool)
            found = document_hash(seed, batch.keys[kept])
            hashes.append(found)
            met.update(np.unique(split_of(found, plain)).tolist())
            read += sum(map(len, batch.texts))
            if met >= needed:
                return
    fit_bounds(dataset, np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64), wanted)


def warn_of_unmet_splits(dataset: DatasetPlan, splits: set[int], documents: int, read: int) -> None:
    """Tell that a large dataset's start has no document of these splits; hashing will probably give them some."""
    names = " and ".join(SPLITS[i] for i in sorted(splits))
    dataset.warnings.append(
        f"dataset {dataset.name!r}: no document of {names} among its first {documents:,} ({read / 1e6:,.0f} MB of "
        f"text). If there is none in the rest either, the end of the run tells it."
    )


def fit_bounds(dataset: DatasetPlan, hashes: np.ndarray, wanted: tuple[float, float]) -> None:
    """Give every split its share of these documents and at least one, train first, then valid, then test."""
    count = len(hashes)
    takes = [max(1, round(share * count)) if share > 0 else 0 for share in wanted]
    while sum(takes) > max(count - 1, 0):
        takes[1 if takes[1] >= takes[0] else 0] -= 1
    ends = (takes[0], takes[0] + takes[1])
    dataset.bounds = (int(hashes[ends[0]]), int(hashes[ends[1]])) if count else (0, 0)
    for i, share in enumerate(wanted):
        if share > 0 and takes[i] == 0:
            dataset.warnings.append(
                f"dataset {dataset.name!r}: {len(hashes)} document(s), too few for a {SPLITS[i + 1]} split. "
                f"Take more documents, or set {SPLITS[i + 1]}_fraction=0."
            )


def check_bad_rows(batch: Batch, part: FileRange, options: PrepOptions, dataset: str) -> None:
    """Raise `Failure` for the first bad row unless bad rows are skipped; `UserError` when a file begins with rows of
    which none has the text field: then it is the field that is wrong.
    """
    if not batch.bad or options.bad_rows == "skip":
        return
    key, _, what = batch.bad[0]
    if key <= len(UTF8_BOM) and not batch.texts and all(detail.startswith(NO_FIELD) for _, _, detail in batch.bad):
        raise UserError(
            f"dataset {dataset!r}: text_field={part.text_field} is in none of the first {len(batch.bad):,} rows of "
            f"{part.path}; {what.partition('; ')[2]}. Set the dataset's text_field to the one that holds the text, or "
            "bad_rows=skip to leave such rows out."
        )
    raise Failure(
        f"{part.path}: row {row_number(part, key):,} (dataset {dataset!r}): {what}. Mend the row, or set "
        f"bad_rows=skip to leave "
        f"such rows out and count them."
    )
