"""Which documents a sample takes: the first rows of files spread over the dataset.

Rows are counted without decoding texts: from a parquet file's metadata, and by the lines of JSON lines.
"""

from typing import IO, Any, NamedTuple

import numpy as np

from nano3.data.planning.plan import DatasetPlan
from nano3.data.sources.compressed import Decompressor
from nano3.data.sources.formats import FORMATS, HEAD_SIZE, UTF8_BOM, detect_format
from nano3.data.sources.readers import ROW_WIDTH, FileRange, open_planned_file, read_documents
from nano3.utils.errors import Failure

CHUNK = 4 << 20


class Count(NamedTuple):
    """Rows of a file's start, and about how much text is in them."""

    rows: int
    text_bytes: int


def sample_rows(dataset: DatasetPlan, wanted: int) -> None:
    """Limit a dataset to its first rows of files spread over it: `wanted` rows in all, or as many as there are.

    Files get quotas by size; what a file lacks is taken from the others. Counting reads no more of a file than its
    quota.
    """
    count = len(dataset.keys)
    order = list(range(count)) if wanted >= count else [i * count // wanted for i in range(wanted)]
    spare = sorted(set(range(count)) - set(order), reverse=True)
    sizes = np.array([dataset.sizes[i] for i in order], np.float64)
    want = np.maximum(1, np.floor(sizes / sizes.sum() * wanted)).astype(int)
    have: dict[int, Count] = {}
    full: set[int] = set()

    def take(file: int, rows: int) -> None:
        have[file] = count_rows(dataset, file, rows)
        if have[file].rows < rows:
            full.add(file)

    for i, n in zip(order, want.tolist(), strict=True):
        take(i, n)
    while (missing := wanted - sum(c.rows for c in have.values())) > 0:
        open_files = [i for i in have if i not in full]
        if not open_files and not spare:
            break
        for i in open_files[:missing]:
            take(i, have[i].rows + max(1, missing // len(open_files)))
        if not open_files:
            take(spare.pop(), missing)
    set_row_limits(dataset, have, wanted)


def set_row_limits(dataset: DatasetPlan, have: dict[int, Count], wanted: int) -> None:
    """Set the dataset's rows, `wanted` at most; what is too much goes from the fullest files."""
    rows = {i: c.rows for i, c in have.items()}
    for i in sorted(rows, key=lambda i: (-rows[i], i)):
        if (extra := sum(rows.values()) - wanted) <= 0:
            break
        rows[i] -= min(extra, rows[i] - 1)
    kept = [i for i in sorted(rows) if rows[i] > 0]
    for name in ("keys", "sizes", "fingerprints", "formats", "times"):
        values = getattr(dataset, name)
        setattr(dataset, name, [values[i] for i in kept])
    dataset.rows = [rows[i] for i in kept]
    dataset.estimated_bytes = [n * ROW_WIDTH for n in dataset.rows]
    dataset.sampled_bytes = sum(have[i].text_bytes * rows[i] // have[i].rows for i in kept)


def count_rows(dataset: DatasetPlan, file: int, limit: int) -> Count:
    """Rows of a file, counted up to `limit`."""
    part = dataset.whole_file(file)
    with open_planned_file(part) as f:
        if part.format == "parquet":
            return parquet_rows(f, part, limit)
        if part.format == "jsonl":
            return count_lines(f.read, limit)
        if FORMATS[part.format].compressed:
            stream = Decompressor(f, part.format, part.path)
            head = stream.read(HEAD_SIZE)
            if detect_format(head, part.name, unpacked=True) == "jsonl":
                return count_lines(stream.read, limit, head)
    limited = FileRange(**{**part.__dict__, "rows": limit})
    batches = [(len(b.keys) + len(b.bad), sum(map(len, b.texts))) for b in read_documents(limited)]
    return Count(sum(rows for rows, _ in batches), sum(size for _, size in batches))


def parquet_rows(f: IO[bytes], part: FileRange, limit: int) -> Count:
    """From the metadata at the file's end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(f)
    except pa.ArrowInvalid as error:
        raise Failure(f"{part.path}: damaged parquet: {error}") from error
    rows = min(limit, metadata.num_rows)
    size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        size += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == part.text_field)
    return Count(rows, size * rows // max(metadata.num_rows, 1))


def count_lines(read: Any, limit: int, head: bytes = b"") -> Count:
    """Lines that are not blank, up to `limit`, and their bytes; `head` was read before."""
    rows = size = 0
    begun = False  # whether the line at hand has anything in it yet
    data = (head or read(CHUNK)).removeprefix(UTF8_BOM)
    while data:
        line, *others = data.split(b"\n")
        begun = begun or bool(line.strip())
        for following in others:
            rows += begun
            size += len(line) + 1
            if rows >= limit:
                return Count(rows, size)
            line, begun = following, bool(following.strip())
        size += len(line)
        data = read(CHUNK)
    return Count(rows + begun, size)
