"""Which split a document is in.

The rule:

1. The hash of a document is the high half of XXH3-128 of its text in UTF-8 with TEXT_SEED (`text_hashes`).
2. It is in valid if hash < bounds[0], else in test if hash < bounds[1], else in train.
3. bounds[0] is floor(valid_fraction * 2^64), bounds[1] is floor((valid_fraction + test_fraction) * 2^64).

So equal texts share a split, in all datasets, and the split depends neither on the number of shards nor on the number
of workers. By rule 3 alone, a small dataset might have no validation documents. Planning therefore reads documents
from the beginning of the dataset until each requested split has one. If the dataset ends first, texts are moved to the
split (see `moved_texts`). If SCAN_BYTES of text are read first, rule 3 holds.

With split_by=position, as in versions without this option, rule 1 is: a document's key is its row number in the file,
counted from 0, or the byte offset of its line (JSON lines); its hash is a uint64 of dataset name, file name relative to
the dataset's root, and key (`document_hash`). If a dataset ends before each split has a document, its bounds are set to
quantiles of its hashes instead, so that each split gets its share and at least one document (`fit_bounds`).
"""

import hashlib
from collections.abc import Callable, Iterator
from itertools import repeat

import numpy as np
import xxhash

from nano3.config import PrepOptions
from nano3.data.planning.plan import SPLITS, DatasetPlan, Plan
from nano3.data.sources.formats import UTF8_BOM
from nano3.data.sources.readers import Batch, FileRange, read_documents, row_number
from nano3.data.sources.text_field import NO_FIELD
from nano3.utils.errors import Failure, UserError

FULL = 1 << 64
SCAN_BYTES = 256 << 20  # most text that is read in search of a document of each split
TEXT_SEED = 0x6E616E6F33  # "nano3"
HASH_CHARS = 8 << 20  # longer texts are encoded and hashed in parts, to save memory


def file_seed(dataset: str, key: str) -> int:
    """Return the number of a file that enters the hashes of its documents: 64 bits of BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(f"{dataset}\0{key}".encode(), digest_size=8).digest(), "little")


def document_hash(seed: int, keys: np.ndarray) -> np.ndarray:
    """Return the hashes of documents: the finalizer of splitmix64 applied to seed + (key + 1) * 0x9E3779B97F4A7C15.

    Args:
        seed: `file_seed` of the file.
        keys: int64 keys of the documents in it.

    Returns:
        uint64 hashes.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (keys.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def text_hashes(texts: list[str]) -> np.ndarray:
    """Return XXH3-128 of the UTF-8 form of each text with TEXT_SEED, as uint64[texts, 2]: high half, low half.

    This is cheap for texts that an engine has encoded before: their strings then hold their UTF-8 form.
    """
    if max(map(len, texts), default=0) < HASH_CHARS:
        return hash_texts(texts)
    return np.concatenate([hash_texts([text]) if len(text) < HASH_CHARS else hash_long_text(text) for text in texts])


def hash_texts(texts: list[str]) -> np.ndarray:
    """Return the hashes of texts of less than HASH_CHARS characters, as `text_hashes` does.

    Copies and digests are freed one by one, so they stay in the processor's cache.
    """
    digests = map(xxhash.xxh3_128_digest, map(str.encode, texts), repeat(TEXT_SEED))
    return digests_to_array(np.fromiter(digests, "S16", len(texts)))


def hash_long_text(text: str) -> np.ndarray:
    """Return the hash of one text as `text_hashes` does; only HASH_CHARS characters are encoded at a time."""
    state = xxhash.xxh3_128(seed=TEXT_SEED)
    for start in range(0, len(text), HASH_CHARS):
        state.update(text[start : start + HASH_CHARS].encode())
    return digests_to_array(state.digest())


def digests_to_array(digests: bytes | np.ndarray) -> np.ndarray:
    """Return big-endian digests of 16 bytes, back to back, as uint64[digests, 2]."""
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


def splits_in_plan(plan: Plan, dataset: DatasetPlan, hashes: np.ndarray) -> np.ndarray:
    """Return the split of each document of a dataset as int8, by the plan's bounds and moved texts.

    Args:
        plan: The plan.
        dataset: One of its datasets.
        hashes: uint64 hashes of the documents.
    """
    splits = split_of(hashes, dataset.bounds)
    if plan.moved:
        moved, targets = plan.moved_arrays
        found = np.minimum(np.searchsorted(moved, hashes), len(moved) - 1)
        splits = np.where(moved[found] == hashes, targets[found], splits)
    return splits


def split_of(hashes: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """Return the split of each document by its hash alone as int8: 0 train, 1 valid, 2 test.

    Args:
        hashes: uint64 hashes of the documents.
        bounds: `DatasetPlan.bounds`.
    """
    valid, test = (np.uint64(min(b, FULL - 1)) for b in bounds)
    return np.where(hashes < valid, 1, np.where(hashes < test, 2, 0)).astype(np.int8)


def set_bounds(
    dataset: DatasetPlan,
    options: PrepOptions,
    read_range: Callable[[FileRange], Iterator[Batch]] = read_documents,
) -> np.ndarray | None:
    """Set `dataset.bounds` by the rule of this module; add warnings about splits that may be or will be empty.

    Args:
        dataset: The dataset; its beginning is read.
        options: Rule and fractions of the splits, and how bad rows and short documents are treated.
        read_range: Reads a file.

    Returns:
        With the text rule, the uint64 hashes of the documents read, for `move_texts`; None with the position rule, or
        if no split needs them.

    Raises:
        UserError: No row at the beginning of a file has the text field.
        Failure: A row is bad, or a file cannot be read.
    """
    fractions = (options.valid_fraction, options.test_fraction)
    dataset.bounds = plain = (int(fractions[0] * FULL), int((fractions[0] + fractions[1]) * FULL))
    needed = {0} | {i + 1 for i, share in enumerate(fractions) if share > 0}
    if needed == {0}:
        return None
    by_text = options.split_by == "text"
    hashes: list[np.ndarray] = []
    found: set[int] = set()
    read = 0
    for file, key in enumerate(dataset.keys):
        seed = file_seed(dataset.name, key)
        whole = dataset.whole_file(file)
        for batch in read_range(whole):
            if read > SCAN_BYTES:
                warn_of_unmet_splits(dataset, needed - found, sum(map(len, hashes)), read)
                return None
            check_bad_rows(batch, whole, options, dataset.name)
            min_chars = max(options.min_doc_chars, 1)
            if by_text:
                hashes.append(text_hashes([text for text in batch.texts if len(text) >= min_chars])[:, 0])
            else:
                kept = np.array([len(text) >= min_chars for text in batch.texts], bool)
                hashes.append(document_hash(seed, batch.keys[kept]))
            found.update(np.unique(split_of(hashes[-1], plain)).tolist())
            read += sum(map(len, batch.texts))
            if found >= needed:
                return np.concatenate(hashes) if by_text else None
    all_hashes = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    if by_text:
        return all_hashes
    fit_bounds(dataset, np.sort(all_hashes), fractions)
    return None


def warn_of_unmet_splits(dataset: DatasetPlan, splits: set[int], documents: int, read: int) -> None:
    """Add a warning that the beginning of a large dataset has no document of these splits.

    Args:
        dataset: The dataset.
        splits: The splits without a document.
        documents: Number of documents at the beginning.
        read: Characters of text in them.
    """
    names = " and ".join(SPLITS[i] for i in sorted(splits))
    dataset.warnings.append(
        f"dataset {dataset.name!r}: no document of {names} among its first {documents:,} ({read / 1e6:,.0f} MB of "
        f"text). If the rest has none either, there will be another warning at the end."
    )


def fit_bounds(dataset: DatasetPlan, hashes: np.ndarray, fractions: tuple[float, float]) -> None:
    """Set `dataset.bounds` so that these documents are split in the given proportion.

    A split with a fraction above 0 gets the nearest number of documents to its share, but at least one. If there are
    too few, train comes first, then valid, then test.

    Args:
        dataset: The dataset; a warning is added for each split that stays empty.
        hashes: Sorted uint64 hashes of all its documents.
        fractions: Shares of valid and test.
    """
    count = len(hashes)
    takes = [max(1, round(share * count)) if share > 0 else 0 for share in fractions]
    while sum(takes) > max(count - 1, 0):
        takes[1 if takes[1] >= takes[0] else 0] -= 1
    ends = (takes[0], takes[0] + takes[1])
    dataset.bounds = (int(hashes[ends[0]]), int(hashes[ends[1]])) if count else (0, 0)
    for i, share in enumerate(fractions):
        if share > 0 and takes[i] == 0:
            dataset.warnings.append(
                f"dataset {dataset.name!r}: {count} document(s), too few for a {SPLITS[i + 1]} split. "
                f"Take more documents, or set {SPLITS[i + 1]}_fraction=0."
            )


def check_bad_rows(batch: Batch, source: FileRange, options: PrepOptions, dataset: str) -> None:
    """Raise an error for the first bad row of a batch, unless bad rows are skipped.

    Args:
        batch: A batch of the file.
        source: What is read of the file.
        options: The options; `bad_rows` is used.
        dataset: Name of the dataset.

    Raises:
        UserError: The file begins with rows none of which has the text field, or text in it: the field is probably
            wrong.
        Failure: A row is bad.
    """
    if not batch.bad or options.bad_rows == "skip":
        return
    key, _, reason = batch.bad[0]
    if key <= len(UTF8_BOM) and not batch.texts and all(detail.startswith(NO_FIELD) for _, _, detail in batch.bad):
        missing, _, fields = reason.removeprefix(f"{NO_FIELD} ").partition("; ")
        what = f"text_field={source.text_field}"
        if missing != repr(source.text_field):  # a template
            what = f"field {missing} of {what}"
        raise UserError(
            f"dataset {dataset!r}: {what} is in none of the first {len(batch.bad):,} rows of {source.path}; "
            f"{fields}. Set the dataset's text_field to the one that holds the text, or bad_rows=skip to leave such "
            "rows out."
        )
    if _no_row_has_text(batch):
        raise UserError(
            f"dataset {dataset!r}: text_field={source.text_field}: {reason}, in each of the first "
            f"{len(batch.bad):,} rows of {source.path}. Set the dataset's text_field to the one that holds the text, "
            "or bad_rows=skip to leave such rows out."
        )
    raise bad_row_error(source, key, dataset, reason)


def _no_row_has_text(batch: Batch) -> bool:
    """Return whether a file begins with several rows that all have a value of another type in their text field."""
    key, kind, reason = batch.bad[0]
    others = {(other, detail) for _, other, detail in batch.bad}
    several = key <= len(UTF8_BOM) and not batch.texts and len(batch.bad) > 1
    return several and kind == "no_text" and not reason.startswith(NO_FIELD) and others == {(kind, reason)}


def bad_row_error(source: FileRange, key: int, dataset: str, reason: str) -> Failure:
    """Return the error for a bad row.

    Args:
        source: A range of its file.
        key: Its key.
        dataset: Name of the dataset.
        reason: What is wrong with it.
    """
    return Failure(
        f"{source.path}: row {row_number(source, key):,} (dataset {dataset!r}): {reason}. Fix the row, or set "
        f"bad_rows=skip to leave such rows out and count them."
    )
