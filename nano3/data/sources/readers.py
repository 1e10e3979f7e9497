"""Read a file, or a range of it, as batches of document texts.

`READERS`, at the end of this module, names the reader of each format in `formats.FORMATS`:

| format           | reader            | record           | key               | offset                             |
|------------------|-------------------|------------------|-------------------|------------------------------------|
| jsonl            | `read_jsonl`      | line             | byte offset       | the same                           |
| json             | `read_json`       | the file         | index of object   | evenly over the file               |
| txt              | `read_txt`        | the file         | 0                 | 0                                  |
| parquet          | `read_parquet`    | row group        | row               | evenly over the row group          |
| arrow            | `read_arrow`      | the file         | row               | evenly over the record batch       |
| gz, zst, bz2, xz | `read_compressed` | the file         | as decompressed   | position in the compressed file    |

A document's *key* is an integer that is unique in its file, counted from 0. Dataset, file, and key identify a document
permanently.

A document's *offset* is an integer from 0 up to, but not including, the file's estimated bytes of text. It grows with
the key, and roughly with the text before the document. The plan cuts datasets into units and shards at offsets, so no
file has to be read to make a plan. A *record* is what cannot be cut: it belongs to the range in which it starts.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, cast

import numpy as np

from nano3.data.sources import discovery
from nano3.data.sources.compressed import Decompressor
from nano3.data.sources.formats import FORMATS, HEAD_SIZE, REFUSED, UTF8_BOM, detect_format, refusal
from nano3.data.sources.jsonl import BadRow, JsonRows, line_blocks, skip_to_line
from nano3.utils.errors import Failure, UserError

BATCH_BYTES = 4 << 20  # target size of the texts in a batch
MAX_BATCH_ROWS = 4096
ROW_WIDTH = 4096  # offsets per row if only the first rows of a file are read
MAX_ARRAY_BYTES = 512 << 20  # a JSON array has to be held in memory


@dataclass
class Batch:
    """Documents in file order.

    Attributes:
        texts: One text per document.
        keys: int64[texts].
        offsets: int64[texts].
        bad: Rows without usable text.
    """

    texts: list[str]
    keys: np.ndarray
    offsets: np.ndarray
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True)
class FileRange:
    """What to read of a file: the records that start at `start` <= offset < `stop`.

    Attributes:
        root: Root of the dataset.
        name: Path of the file relative to `root`.
        format: Key of `formats.FORMATS`.
        size: Bytes in the file when the plan was made.
        estimated_bytes: The file's offsets are below this number. With `rows`, it is ROW_WIDTH times the rows.
        start: First offset.
        stop: Offset after the last one.
        text_field: Key or column of the text.
        rows: If set, read only this many first rows of the file.
    """

    root: str
    name: str
    format: str
    size: int
    estimated_bytes: int
    start: int
    stop: int
    text_field: str
    rows: int | None = None

    @property
    def path(self) -> str:
        """Path or URL of the file."""
        return discovery.join(self.root, self.name)


@contextlib.contextmanager
def open_planned_file(file_range: FileRange) -> Iterator[IO[bytes]]:
    """Open the file of a range.

    Raises:
        Failure: The file cannot be read, also while it is open, or its size differs from the plan's.
    """
    try:
        with discovery.open_file(file_range.root, file_range.name) as f:
            if (size := discovery.size_of(f)) != file_range.size:
                raise discovery.size_changed_error(file_range.path, file_range.size, size)
            yield f
    except discovery.read_errors(file_range.root) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Failure(f"{file_range.path}: cannot be read: {reason}") from error


def read_documents(file_range: FileRange) -> Iterator[Batch]:
    """Yield the documents of a range in order.

    Raises:
        Failure: The file is damaged, cannot be read, or changed since the plan was made.
        UserError: It has no such text field.
    """
    with open_planned_file(file_range) as f:
        batches = READERS[file_range.format](f, file_range)
        yield from batches if file_range.rows is None else take_first_rows(batches, file_range.rows)


def take_first_rows(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """Yield the first `rows` rows, counting bad ones, with new offsets: each row is ROW_WIDTH wide."""
    seen = 0
    for batch in batches:
        row_keys = np.sort(np.concatenate([batch.keys, np.array([b[0] for b in batch.bad], np.int64)]))[: rows - seen]
        count = int(np.searchsorted(batch.keys, row_keys[-1], "right")) if len(row_keys) else 0
        keys = batch.keys[:count]
        offsets = (seen + np.searchsorted(row_keys, keys)) * ROW_WIDTH
        bad = [b for b in batch.bad if len(row_keys) and b[0] <= row_keys[-1]]
        yield Batch(batch.texts[:count], keys, offsets, bad)
        seen += len(row_keys)
        if seen >= rows:
            return


# JSON lines, JSON array, plain text


def read_jsonl(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
    """Read the lines that start in the range; offsets are byte offsets."""
    rows = JsonRows(file_range.text_field)
    stop = min(file_range.stop, file_range.size)
    start = skip_to_line(f, file_range.start, stop)
    for block in line_blocks(cast(io.BufferedIOBase, f).readinto, start, stop):
        texts, keys, bad = rows.parse_lines(block)
        del block  # free a long block before the caller works on its texts
        yield Batch(texts, keys, keys, bad)


def read_json(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
    """Read one JSON array of objects, or objects over several lines."""
    yield parse_json_file(f.read(MAX_ARRAY_BYTES + 1), file_range)


def parse_json_file(data: bytes, file_range: FileRange) -> Batch:
    """Parse a file with one JSON array, or objects over several lines; raise UserError if it is too large."""
    if len(data) > MAX_ARRAY_BYTES:
        is_array = data[:HEAD_SIZE].removeprefix(UTF8_BOM).lstrip().startswith(b"[")
        what, elements = ("a JSON array", "'.[]'") if is_array else ("JSON objects over several lines", ".")
        raise UserError(
            f"{file_range.path}: {what} of more than {MAX_ARRAY_BYTES >> 20} MB. Convert it: "
            f"jq -c {elements} OLD > NEW.jsonl"
        )
    texts, keys, bad = JsonRows(file_range.text_field).parse_array(data, file_range.path)
    offsets = interpolate_offsets(keys, len(texts) + len(bad), 0, file_range.estimated_bytes)
    return Batch(texts, keys, offsets, bad)


def read_txt(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
    """Read the whole file as one document."""
    yield parse_text_file(f.read())


def parse_text_file(data: bytes) -> Batch:
    """Return the content of a text file as one document."""
    zero = np.zeros(1, np.int64)
    try:
        return Batch([data.removeprefix(UTF8_BOM).decode()], zero, zero)
    except UnicodeDecodeError as error:
        return Batch([], zero[:0], zero[:0], [(0, "not_utf8", f"not UTF-8 at byte {error.start:,}")])


def interpolate_offsets(keys: np.ndarray, rows: int, low: int, high: int) -> np.ndarray:
    """Return the offsets of some of the rows 0..rows-1, which are spread evenly over low <= offset < high.

    Args:
        keys: int64, row numbers.
        rows: Number of all rows.
        low: Offset of row 0.
        high: Offset after the last row.
    """
    return low + keys * (high - low) // max(rows, 1)


# Compressed streams: always read from the start


def read_compressed(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
    """Read compressed JSON lines, a compressed JSON array or objects over several lines, or a compressed text file."""
    stream = Decompressor(f, file_range.format, file_range.path)
    head = stream.read(HEAD_SIZE)
    kind = detect_format(head, file_range.name, unpacked=True)
    if kind == "txt":
        yield parse_text_file(head + stream.read_all())
    elif kind == "json":
        yield parse_json_file(head + stream.read_all(MAX_ARRAY_BYTES), file_range)
    elif kind == "jsonl":
        yield from read_compressed_lines(head, stream, file_range)
    elif kind in REFUSED:
        raise UserError(f"{file_range.path}: decompressed, it {refusal(kind)}")
    else:
        content = "nothing" if not head else kind or "an unknown format"
        raise UserError(
            f"{file_range.path}: {file_range.format} of {content}; compressed files must hold JSON lines, a JSON "
            f"array or .txt."
        )


def read_compressed_lines(head: bytes, stream: Decompressor, file_range: FileRange) -> Iterator[Batch]:
    """Read compressed JSON lines.

    The lines of a block are spread evenly between the compressed positions before and after the block.

    Args:
        head: Bytes already read from the stream.
        stream: The rest of the file.
        file_range: The whole file.
    """
    rows = JsonRows(file_range.text_field)
    unread_head = io.BytesIO(head)
    low = 0

    def fill(memory: memoryview) -> int:
        data = unread_head.read(len(memory))
        data += stream.read(len(memory) - len(data))
        memory[: len(data)] = data
        return len(data)

    for block in line_blocks(fill, 0, None):
        position = stream.position * file_range.estimated_bytes // file_range.size
        high = max(low, min(file_range.estimated_bytes - 1, position))
        texts, keys, bad = rows.parse_lines(block)
        offsets = interpolate_offsets(keys - block.offset, block.size, low, high)
        del block  # free a long block before the caller works on its texts
        yield Batch(texts, keys, offsets, bad)
        low = high


# Columns: parquet and Arrow


@dataclass(frozen=True)
class RowGroup:
    """A parquet row group or an Arrow record batch.

    Attributes:
        first_row: Its first row, counted from the start of the file.
        rows: Number of its rows.
        low: Offset of its first row.
        high: Offset after its last row.
    """

    first_row: int
    rows: int
    low: int
    high: int


def read_parquet(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
    """Read the row groups that start in the range.

    Each row group covers offsets in proportion to the uncompressed size of its text column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(f, buffer_size=1 << 20)
        column = find_text_column(file.schema_arrow.names, file_range)
        sizes = row_group_sizes(file.metadata, column)
        total = max(sum(size for size, _ in sizes), 1)
        first_row = low = done = 0
        for number, (size, rows) in enumerate(sizes):
            done += size
            high = done * file_range.estimated_bytes // total
            if rows and file_range.start <= low < file_range.stop:
                group = RowGroup(first_row, rows, low, high)
                batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))
                row = first_row
                for box in iter_row_group(file, number, column, batch_rows):
                    count = len(box[0])
                    yield make_column_batch(box.pop(), row, group, file_range)
                    row += count
            first_row += rows
            low = high
    except pa.ArrowInvalid as error:
        raise Failure(f"{file_range.path}: damaged parquet: {error}") from error


def iter_row_group(file: Any, number: int, column: str, batch_rows: int) -> Iterator[list[Any]]:
    """Yield the values of a column in a row group, each array in a list of one.

    The caller takes the array out of the list, so that nothing here keeps it in memory. The parquet reader, which
    keeps a page of text, is released before the last array is yielded.

    Args:
        file: A `pyarrow.parquet.ParquetFile`.
        number: Number of the row group.
        column: Name of the column.
        batch_rows: Rows in each array.
    """
    import pyarrow as pa

    left = file.metadata.row_group(number).num_rows
    reader = file.iter_batches(batch_rows, row_groups=[number], columns=[column], use_threads=False)
    while left > 0:
        box = [batch.column(0) for batch in islice(reader, 1)]
        if not box:
            raise pa.ArrowInvalid(f"row group {number} ends {left:,} rows before its end")
        left -= len(box[0])
        if left <= 0:
            del reader
        yield box


def row_group_sizes(metadata: Any, column: str) -> list[tuple[int, int]]:
    """Return (uncompressed bytes of the text column, rows) of each row group."""
    sizes = []
    index = None
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if index is None:
            paths = [group.column(i).path_in_schema for i in range(group.num_columns)]
            index = paths.index(column) if column in paths else 0
        sizes.append((max(1, group.column(index).total_uncompressed_size), group.num_rows))
    return sizes


def read_arrow(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
    """Read an Arrow IPC file or stream."""
    import pyarrow as pa

    try:
        first_row = low = 0
        for values, high in iter_arrow_columns(f, file_range):
            group = RowGroup(first_row, len(values), low, high)
            step = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * len(values) // max(values.nbytes, 1)))
            for at in range(0, len(values), step):
                yield make_column_batch(values[at : at + step], first_row + at, group, file_range)
            first_row += len(values)
            low = high
    except pa.ArrowInvalid as error:
        raise Failure(f"{file_range.path}: damaged Arrow file: {error}") from error


def iter_arrow_columns(f: IO[bytes], file_range: FileRange) -> Iterator[tuple[Any, int]]:
    """Yield the text column of each record batch, and the offset at which the batch ends.

    A file may contain several streams, as `cat` makes them.
    """
    import pyarrow as pa

    source = pa.PythonFile(f, mode="r")
    if f.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        column, count = find_text_column(reader.schema.names, file_range), reader.num_record_batches
        for i in range(count):
            yield reader.get_batch(i).column(column), (i + 1) * file_range.estimated_bytes // count
        return
    f.seek(0)
    while f.tell() < file_range.size:
        reader = pa.ipc.open_stream(source)
        column = find_text_column(reader.schema.names, file_range)
        for batch in reader:
            high = f.tell() * file_range.estimated_bytes // file_range.size
            yield batch.column(column), min(file_range.estimated_bytes - 1, high)


def find_text_column(names: list[str], file_range: FileRange) -> str:
    """Return the name of the text column; raise UserError unless it occurs exactly once in `names`."""
    count = names.count(file_range.text_field)
    if count == 1:
        return file_range.text_field
    if count:
        raise UserError(
            f"{file_range.path}: there are {count} columns {file_range.text_field!r}, so the text column is "
            "ambiguous. Write the file with one, or set the dataset's text_field to another."
        )
    raise UserError(
        f"{file_range.path}: no column {file_range.text_field!r}. Columns: {', '.join(names)}. Set the dataset's "
        "text_field."
    )


def make_column_batch(values: Any, first_row: int, group: RowGroup, file_range: FileRange) -> Batch:
    """Return a batch of the texts in a slice of a column.

    Args:
        values: A pyarrow array of strings, bytes, or nulls, possibly dictionary-encoded.
        first_row: Row of `values[0]`, counted from the start of the file.
        group: The row group that contains the slice.
        file_range: What is being read.

    Raises:
        UserError: The column does not hold text.
    """
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_bytes or is_text or pa.types.is_null(kind)):
        raise UserError(
            f"{file_range.path}: column {file_range.text_field!r} is {values.type}, not text. Set the dataset's "
            "text_field."
        )
    if pa.types.is_dictionary(values.type) and values.dictionary.null_count:
        values = values.dictionary_decode()  # null_count does not count rows that refer to a null in the dictionary
    keys = np.arange(first_row, first_row + len(values), dtype=np.int64)
    offsets = interpolate_offsets(keys - group.first_row, group.rows, group.low, group.high)
    if is_text and not values.null_count:
        # pyarrow does not check UTF-8; if decoding all values fails, the loop below finds the bad ones.
        with contextlib.suppress(UnicodeDecodeError):
            return Batch(values.to_pylist(), keys, offsets)
    texts, good, bad = [], [], []
    raw = values.cast(pa.large_binary()) if not pa.types.is_null(kind) else values
    for i, value in enumerate(raw.to_pylist()):
        if value is None:
            bad.append((first_row + i, "null", "null"))
            continue
        try:
            texts.append(value.decode())
            good.append(i)
        except UnicodeDecodeError as error:
            bad.append((first_row + i, "not_utf8", f"not UTF-8 at byte {error.start:,} of the text"))
    return Batch(texts, keys[good], offsets[good], bad)


# A reader yields the documents of the records that start in the range; the file is positioned at its start.
READERS: dict[str, Callable[[IO[bytes], FileRange], Iterator[Batch]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "txt": read_txt,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "gz": read_compressed,
    "zst": read_compressed,
    "bz2": read_compressed,
    "xz": read_compressed,
}


def keys_are_rows(file_range: FileRange) -> bool:
    """Return whether the keys of a file's documents are row numbers, not byte offsets of lines."""
    kind: str | None = file_range.format
    if FORMATS[file_range.format].compressed:
        with discovery.open_file(file_range.root, file_range.name) as f:
            head = Decompressor(f, file_range.format, file_range.path).read(HEAD_SIZE)
        kind = detect_format(head, file_range.name, unpacked=True)
    return kind not in ("jsonl", "txt")


def row_number(file_range: FileRange, key: int) -> int:
    """Return the row, from 1, of the document with this key.

    For JSON lines this is the line number, which is counted by reading the file up to the line.
    """
    compressed = FORMATS[file_range.format].compressed
    if not compressed and file_range.format != "jsonl":
        return key + 1
    with discovery.open_file(file_range.root, file_range.name) as f:
        stream: Any = Decompressor(f, file_range.format, file_range.path) if compressed else f
        head = stream.read(HEAD_SIZE)
        if compressed and detect_format(head, file_range.name, unpacked=True) != "jsonl":
            return key + 1
        lines: int = head.count(b"\n", 0, key)
        left = key - len(head)
        while left > 0 and (data := stream.read(min(BATCH_BYTES, left))):
            lines += data.count(b"\n")
            left -= len(data)
    return lines + 1
