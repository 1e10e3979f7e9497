"""Which split a document is in, and which documents a sample takes.

The split is a hash of (dataset, file, key), so it depends neither on the number of shards nor on workers. Plain
hashing may leave a small dataset without validation documents; so the plan reads its start until it has met a
document of every split, and when the dataset ends before that, moves the bounds so that each split gets its share
and at least one.
"""

import hashlib

import numpy as np

from nano3.config import PrepOptions
from nano3.data.plan import SPLITS, DatasetPlan
from nano3.data.readers import ROW_COST, FilePart, read_part, row_number
from nano3.errors import Failure

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
        part = dataset.whole(file)
        for batch in read_part(part):
            refuse(batch.bad, part, options, dataset.name)
            least = max(options.min_doc_chars, 1)
            kept = np.array([len(text) >= least for text in batch.texts], bool)
            found = document_hash(seed, batch.keys[kept])
            hashes.append(found)
            met.update(np.unique(split_of(found, plain)).tolist())
            read += sum(map(len, batch.texts))
            if met >= needed:
                return
            if read > SCAN_BYTES:
                break
        if read > SCAN_BYTES:
            break
    adapt(dataset, np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64), wanted)


def adapt(dataset: DatasetPlan, hashes: np.ndarray, wanted: tuple[float, float]) -> None:
    """Give every split its share of these documents and at least one, train first, then valid, then test."""
    count = len(hashes)
    takes = [max(1, round(share * count)) if share > 0 else 0 for share in wanted]
    while sum(takes) > max(count - 1, 0):
        takes[1 if takes[1] >= takes[0] else 0] -= 1
    ends = (takes[0], takes[0] + takes[1])
    dataset.bounds = (int(hashes[ends[0]]), int(hashes[ends[1]])) if count else (0, 0)
    for i, share in enumerate(wanted):
        if share > 0 and takes[i] == 0:
            dataset.notes.append(
                f"dataset {dataset.name!r}: {len(hashes)} document(s), too few for a {SPLITS[i + 1]} split. "
                f"Take more documents, or set {SPLITS[i + 1]}_fraction=0."
            )


def refuse(bad: list[tuple[int, str, str]], part: FilePart, options: PrepOptions, dataset: str) -> None:
    """Raise `Failure` for the first bad row unless bad rows are skipped."""
    if not bad or options.bad_rows == "skip":
        return
    key, _, what = bad[0]
    raise Failure(
        f"{part.path}: row {row_number(part, key):,} (dataset {dataset!r}): {what}. Mend the row, or set "
        f"bad_rows=skip to leave "
        f"such rows out and count them."
    )


def sample_rows(dataset: DatasetPlan, wanted: int) -> None:
    """Limit a dataset to its first rows of files spread over it: `wanted` rows in all, or as many as there are.

    Files get quotas by size; what a file lacks is taken from the others. Counting reads no more of a file than its
    quota.
    """
    count = len(dataset.keys)
    order = range(count) if wanted >= count else [i * count // wanted for i in range(wanted)]
    sizes = np.array([dataset.sizes[i] for i in order], np.float64)
    want = np.maximum(1, np.floor(sizes / sizes.sum() * wanted)).astype(int)
    have: dict[int, int] = {}
    full = dict.fromkeys(order, False)
    for i, n in zip(order, want.tolist(), strict=True):
        have[i] = count_rows(dataset, i, n)
        full[i] = have[i] < n
    while (missing := wanted - sum(have.values())) > 0 and not all(full.values()):
        open_files = [i for i in order if not full[i]]
        for i in open_files[:missing]:
            n = have[i] + max(1, missing // len(open_files))
            have[i] = count_rows(dataset, i, n)
            full[i] = have[i] < n
    for i in sorted(have, key=lambda i: (-have[i], i)):
        if (extra := sum(have.values()) - wanted) <= 0:
            break
        have[i] -= min(extra, have[i] - 1)
    kept = [i for i in order if have[i] > 0]
    for name in ("keys", "sizes", "prints", "formats"):
        values = getattr(dataset, name)
        setattr(dataset, name, [values[i] for i in kept])
    dataset.rows = [have[i] for i in kept]
    dataset.costs = [n * ROW_COST for n in dataset.rows]


def count_rows(dataset: DatasetPlan, file: int, limit: int) -> int:
    """Rows of a file, counted up to `limit`."""
    part = dataset.whole(file)
    limited = FilePart(**{**part.__dict__, "rows": limit})
    return sum(len(batch.keys) + len(batch.bad) for batch in read_part(limited))
