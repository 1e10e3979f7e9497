"""Which documents `sample=N` takes of a dataset: the first rows of files that are spread evenly over it.

The rule, for a dataset of F files:

1. If N >= F, all files are chosen. Otherwise the files with the numbers i * F // N for i in 0, ..., N - 1 are.
2. Each chosen file has a quota of N rows in proportion to its size, rounded down, but at least one row.
3. Rows that files lack for their quotas are taken in equal parts from the chosen files that have more, then from the
   other files in order.
4. If there are more than N rows then, the files with the most rows lose the excess, but keep one row each.

Rows are counted without decoding text: from a parquet file's metadata, and by counting lines in JSON lines.

`sample_tokens=N` takes rows by the same rule, about twice as many as needed: their tokens are estimated from the first
rows of some files. Once they are tokenized, the excess is left out evenly (see `nano3.data.build.token_sample`).
"""

import os
from collections.abc import Callable
from typing import IO, NamedTuple

import msgspec
import numpy as np

from nano3.data.planning.plan import DatasetPlan
from nano3.data.sources.column_damage import damage_reported
from nano3.data.sources.compressed import Decompressor
from nano3.data.sources.formats import FORMATS, HEAD_SIZE, UTF8_BOM, detect_format
from nano3.data.sources.reader_process import ReaderProcess
from nano3.data.sources.readers import (
    ROW_WIDTH,
    FileRange,
    find_leaves,
    open_planned_file,
    read_documents,
)
from nano3.data.sources.text_field import parse_text_field
from nano3.data.tokenization.encoders import reference_encoder
from nano3.data.tokenization.engines import load_reference
from nano3.data.tokenization.tokenizer import TokenizerInfo

CHUNK = 4 << 20
EXCESS = 2  # rows that are tokenized for sample_tokens, relative to those that are probably needed
ESTIMATE_FILES, ESTIMATE_ROWS, ESTIMATE_CHARS = 32, 16, 20_000  # files, rows of each, and characters of each row


class RowCount(NamedTuple):
    """Number of rows at the beginning of a file, and about the bytes of text in them."""

    rows: int
    text_bytes: int


def sample_rows(dataset: DatasetPlan, wanted: int, process: ReaderProcess) -> None:
    """Limit a dataset to a sample by the rule of this module.

    At most the rows of each file's quota are read. A dataset with fewer rows is taken completely.

    Args:
        dataset: The dataset; its files, rows and estimated bytes are changed.
        wanted: Number of rows.
        process: Counts the rows of files whose damage may crash a process.
    """
    count = len(dataset.keys)
    order = list(range(count)) if wanted >= count else [i * count // wanted for i in range(wanted)]
    spare = sorted(set(range(count)) - set(order), reverse=True)
    sizes = np.array([dataset.sizes[i] for i in order], np.float64)
    quotas = np.maximum(1, np.floor(sizes / sizes.sum() * wanted)).astype(int)
    counts: dict[int, RowCount] = {}
    exhausted: set[int] = set()

    def take(file: int, rows: int) -> None:
        counts[file] = process.call(count_rows, dataset.whole_file(file), rows)
        if counts[file].rows < rows:
            exhausted.add(file)

    for i, n in zip(order, quotas.tolist(), strict=True):
        take(i, n)
    while (missing := wanted - sum(c.rows for c in counts.values())) > 0:
        open_files = [i for i in counts if i not in exhausted]
        if not open_files and not spare:
            break
        for i in open_files[:missing]:
            take(i, counts[i].rows + max(1, missing // len(open_files)))
        if not open_files:
            take(spare.pop(), missing)
    set_row_limits(dataset, counts, wanted)


def sample_rows_for_tokens(dataset: DatasetPlan, wanted: int, tokenizer: TokenizerInfo, process: ReaderProcess) -> None:
    """Limit a dataset to rows that probably have `EXCESS` times as many tokens as wanted.

    A dataset that does not have so many rows is left as it is; its `rows` stay None.

    Args:
        dataset: The dataset; its files, rows and estimated bytes are changed.
        wanted: Number of tokens.
        tokenizer: The tokenizer.
        process: Reads files whose damage may crash a process.
    """
    rows = max(1, round(EXCESS * wanted / estimate_tokens_per_row(dataset, tokenizer, process)))
    sampled = msgspec.structs.replace(dataset)
    sample_rows(sampled, rows, process)
    if sum(sampled.rows or ()) == rows:
        for name in ("keys", "sizes", "fingerprints", "formats", "times", "rows", "estimated_bytes", "sampled_bytes"):
            setattr(dataset, name, getattr(sampled, name))


def estimate_tokens_per_row(dataset: DatasetPlan, tokenizer: TokenizerInfo, process: ReaderProcess) -> float:
    """Return the average number of tokens of the first rows of files that are spread over a dataset, at least 1.

    Args:
        dataset: The dataset.
        tokenizer: The tokenizer; the reference engine is loaded.
        process: Reads files whose damage may crash a process.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else tokenizers warns whenever this process forks
    encode = reference_encoder(load_reference(tokenizer.file, split_special_tokens=False))
    count = len(dataset.keys)
    files = min(count, ESTIMATE_FILES)
    tokens = weight = 0.0
    for file in (i * count // files for i in range(files)):
        limited = FileRange(**{**dataset.whole_file(file).__dict__, "rows": ESTIMATE_ROWS})
        texts = [text for batch in process.documents(limited) for text in batch.texts]
        if not texts:
            continue
        lengths = encode([text[:ESTIMATE_CHARS] for text in texts])[1].tolist()
        scaled = [n * max(1, len(text) / ESTIMATE_CHARS) + 1 for n, text in zip(lengths, texts, strict=True)]
        tokens += dataset.sizes[file] * sum(scaled) / len(scaled)
        weight += dataset.sizes[file]
    return tokens / weight if weight else 1.0


def set_row_limits(dataset: DatasetPlan, counts: dict[int, RowCount], wanted: int) -> None:
    """Reduce a dataset to the counted rows, at most `wanted`; the excess is removed from the files with most rows."""
    rows = {i: c.rows for i, c in counts.items()}
    extra = sum(rows.values()) - wanted
    for i in sorted(rows, key=lambda i: (-rows[i], i)):
        if extra <= 0:
            break
        less = min(extra, rows[i] - 1)
        rows[i] -= less
        extra -= less
    kept = [i for i in sorted(rows) if rows[i] > 0]
    for name in ("keys", "sizes", "fingerprints", "formats", "times", "ctimes"):
        values = getattr(dataset, name)
        setattr(dataset, name, [values[i] for i in kept])
    dataset.rows = [rows[i] for i in kept]
    dataset.estimated_bytes = [n * ROW_WIDTH for n in dataset.rows]
    dataset.sampled_bytes = sum(counts[i].text_bytes * rows[i] // counts[i].rows for i in kept)


def count_rows(whole: FileRange, limit: int) -> RowCount:
    """Count the rows of a file, up to `limit`.

    Args:
        whole: The file.
        limit: Number of rows at which counting stops.

    Raises:
        Failure: The file cannot be read, is damaged, or has changed.
    """
    with open_planned_file(whole) as f:
        if whole.format == "parquet":
            return count_parquet_rows(f, whole, limit)
        if whole.format == "jsonl":
            return count_lines(f.read, limit)
        if FORMATS[whole.format].compressed:
            stream = Decompressor(f, whole.format, whole.path)
            head = stream.read(HEAD_SIZE)
            if detect_format(head, whole.name, unpacked=True) == "jsonl":
                return count_lines(stream.read, limit, head)
    limited = FileRange(**{**whole.__dict__, "rows": limit})
    batches = [(len(b.keys) + len(b.bad), sum(map(len, b.texts))) for b in read_documents(limited)]
    return RowCount(sum(rows for rows, _ in batches), sum(size for _, size in batches))


def count_parquet_rows(f: IO[bytes], whole: FileRange, limit: int) -> RowCount:
    """Count the rows of an open parquet file, up to `limit`, from its metadata."""
    import pyarrow.parquet as pq

    with damage_reported(whole.path, "parquet"):
        metadata = pq.read_metadata(f)
        rows = min(limit, metadata.num_rows)
        size = 0
        fields = parse_text_field(whole.text_field, whole.text_separator).fields
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = [group.column(i) for i in range(group.num_columns)]
            leaves = find_leaves([c.path_in_schema for c in columns], fields)
            size += sum(columns[i].total_uncompressed_size for i in leaves)
    return RowCount(rows, size * rows // max(metadata.num_rows, 1))


def count_lines(read: Callable[[int], bytes], limit: int, head: bytes = b"") -> RowCount:
    """Count the lines that are not blank, up to `limit`, and their bytes.

    Args:
        read: Reads at most so many bytes; b"" at the end.
        limit: Number of lines at which counting stops.
        head: What was read from the file before.
    """
    rows = size = 0
    nonblank = False  # whether the current line has anything in it so far
    data = (head or read(CHUNK)).removeprefix(UTF8_BOM)
    while data:
        line, *others = data.split(b"\n")
        nonblank = nonblank or bool(line.strip())
        for following in others:
            rows += nonblank
            size += len(line) + 1
            if rows >= limit:
                return RowCount(rows, size)
            line, nonblank = following, bool(following.strip())
        size += len(line)
        data = read(CHUNK)
    return RowCount(rows + nonblank, size)
