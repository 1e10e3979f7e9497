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
from nano3.data.sources.column_damage import damage_reported, validate_column
from nano3.data.sources.compressed import Decompressor
from nano3.data.sources.formats import FORMATS, HEAD_SIZE, REFUSED, UTF8_BOM, detect_format, refusal
from nano3.data.sources.jsonl import JsonRows, line_blocks, skip_to_line
from nano3.data.sources.text_field import LIST_ADVICE, BadRow, BadRowError, parse_text_field
from nano3.utils.errors import Failure, UserError, list_some

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
        text_field: Key or column of the text, a path, or a template (see `text_field.py`).
        rows: If set, read only this many first rows of the file.
        text_separator: Joins the strings of a list.
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
    text_separator: str | None = None

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
        why = discovery.unreadable_reason(error, file_range.path)
        raise Failure(f"{file_range.path}: cannot be read: {why}") from error


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
    rows = JsonRows(file_range.text_field, file_range.text_separator)
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
    texts, keys, bad = JsonRows(file_range.text_field, file_range.text_separator).parse_array(data, file_range.path)
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
    rows = JsonRows(file_range.text_field, file_range.text_separator)
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

    Each row group covers offsets in proportion to the uncompressed size of its text column. The checksums of pages are
    verified where the file has them.
    """
    import pyarrow.parquet as pq

    with damage_reported(file_range.path, "parquet"):
        file = pq.ParquetFile(f, buffer_size=1 << 20, page_checksum_verification=True)
        columns = find_text_columns(file.schema_arrow.names, file_range)
        sizes = row_group_sizes(file.metadata, columns)
        total = max(sum(size for size, _ in sizes), 1)
        first_row = low = done = 0
        for number, (size, rows) in enumerate(sizes):
            done += size
            high = done * file_range.estimated_bytes // total
            if rows and file_range.start <= low < file_range.stop:
                group = RowGroup(first_row, rows, low, high)
                batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))
                row = first_row
                for box in iter_row_group(file, number, columns, batch_rows, file_range):
                    count = len(box[0])
                    yield make_batch(box.pop(), row, group, file_range)
                    row += count
            first_row += rows
            low = high


def iter_row_group(
    file: Any, number: int, columns: list[str], batch_rows: int, file_range: FileRange
) -> Iterator[list[Any]]:
    """Yield the values of a row group as `select_columns` returns them, each array in a list of one.

    The caller takes the array out of the list, so that nothing here keeps it in memory. The parquet reader, which
    keeps a page of text, is released before the last array is yielded.

    Args:
        file: A `pyarrow.parquet.ParquetFile`.
        number: Number of the row group.
        columns: Names of the columns.
        batch_rows: Rows in each array.
        file_range: What is being read.
    """
    import pyarrow as pa

    left = file.metadata.row_group(number).num_rows
    reader = file.iter_batches(batch_rows, row_groups=[number], columns=columns, use_threads=False)
    while left > 0:
        box = [select_columns(batch, columns, file_range) for batch in islice(reader, 1)]
        if not box:
            raise pa.ArrowInvalid(f"row group {number} ends {left:,} rows before its end")
        left -= len(box[0])
        if left <= 0:
            del reader
        yield box


def row_group_sizes(metadata: Any, columns: list[str]) -> list[tuple[int, int]]:
    """Return (uncompressed bytes of the text columns, rows) of each row group."""
    sizes = []
    leaves: list[int] | None = None
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if leaves is None:
            leaves = find_leaves([group.column(i).path_in_schema for i in range(group.num_columns)], columns) or [0]
        sizes.append((max(1, sum(group.column(i).total_uncompressed_size for i in leaves)), group.num_rows))
    return sizes


def find_leaves(paths: list[str], columns: list[str]) -> list[int]:
    """Return the numbers of the parquet columns that these columns, structs or lists consist of.

    Args:
        paths: Path of each parquet column in the schema.
        columns: Names from `find_text_columns`.
    """
    if len(columns) == 1 and columns[0] in paths:
        return [paths.index(columns[0])]
    return [i for i, path in enumerate(paths) if any(f"{path}.".startswith(f"{column}.") for column in columns)]


def read_arrow(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
    """Read an Arrow IPC file or stream."""
    import pyarrow as pa

    with damage_reported(file_range.path, "Arrow file"):
        first_row = low = 0
        for values, high in iter_arrow_columns(f, file_range):
            for column in values.columns if isinstance(values, pa.RecordBatch) else [values]:
                validate_column(column)
            if not isinstance(values, pa.RecordBatch) and pa.types.is_string_view(values.type):
                values = values.cast(pa.large_string())  # pyarrow up to 24 cannot tell the bytes of a string_view
            group = RowGroup(first_row, len(values), low, high)
            step = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * len(values) // max(values.nbytes, 1)))
            for at in range(0, len(values), step):
                yield make_batch(values.slice(at, step), first_row + at, group, file_range)
            first_row += len(values)
            low = high


def iter_arrow_columns(f: IO[bytes], file_range: FileRange) -> Iterator[tuple[Any, int]]:
    """Yield the text column or columns of each record batch, and the offset at which the batch ends.

    A file may contain several streams, as `cat` makes them.
    """
    import pyarrow as pa

    source = pa.PythonFile(f, mode="r")
    if f.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        columns, count = find_text_columns(reader.schema.names, file_range), reader.num_record_batches
        for i in range(count):
            yield (
                select_columns(reader.get_batch(i), columns, file_range),
                (i + 1) * file_range.estimated_bytes // count,
            )
        return
    f.seek(0)
    while f.tell() < file_range.size:
        reader = pa.ipc.open_stream(source)
        columns = find_text_columns(reader.schema.names, file_range)
        for batch in reader:
            high = f.tell() * file_range.estimated_bytes // file_range.size
            yield select_columns(batch, columns, file_range), min(file_range.estimated_bytes - 1, high)


def find_text_columns(names: list[str], file_range: FileRange) -> list[str]:
    """Return the columns that make up the text: one, or more for a template. For a field of a struct, its path.

    Args:
        names: Names of the columns in the file.
        file_range: What is being read.

    Raises:
        UserError: A column does not occur, or occurs more than once.
    """
    parsed = parse_text_field(file_range.text_field, file_range.text_separator)
    fields = [parsed.name] if parsed.name in names else parsed.fields
    return [find_column(names, field, file_range) for field in fields]


def find_column(names: list[str], field: str, file_range: FileRange) -> str:
    """Return the column, or path into a struct, of one field; raise UserError unless it occurs exactly once."""
    count = names.count(field) or names.count(field.partition(".")[0])
    if count == 1:
        return field
    if count:
        raise UserError(
            f"{file_range.path}: there are {count} columns {field!r}, so the text column is "
            "ambiguous. Write the file with one, or set the dataset's text_field to another."
        )
    raise UserError(
        f"{file_range.path}: no column {field!r}. Columns: {list_some(names)}. Set the dataset's text_field."
    )


def select_columns(batch: Any, columns: list[str], file_range: FileRange) -> Any:
    """Return the text column of a record batch, or a record batch if the text has to be made from each row."""
    if columns == [file_range.text_field] and columns[0] in batch.schema.names and file_range.text_separator is None:
        return batch.column(columns[0])
    names = [name if name in batch.schema.names else name.partition(".")[0] for name in columns]
    return batch.select(list(dict.fromkeys(names)))


def make_batch(values: Any, first_row: int, group: RowGroup, file_range: FileRange) -> Batch:
    """Return a batch of the texts in a result of `select_columns`; the arguments are those of `make_column_batch`."""
    import pyarrow as pa

    make = make_row_batch if isinstance(values, pa.RecordBatch) else make_column_batch
    return make(values, first_row, group, file_range)


def make_row_batch(rows: Any, first_row: int, group: RowGroup, file_range: FileRange) -> Batch:
    """Return a batch of the texts made from rows by a path, a template, or a separator.

    Args:
        rows: A pyarrow record batch.
        first_row: Its first row, counted from the start of the file.
        group: The row group that contains the rows.
        file_range: What is being read.
    """
    parsed = parse_text_field(file_range.text_field, file_range.text_separator)
    texts: list[str] = []
    good: list[int] = []
    bad: list[BadRow] = []
    for i in range(rows.num_rows):
        try:
            texts.append(parsed.text_of(rows.slice(i, 1).to_pylist()[0]))
            good.append(i)
        except BadRowError as fault:
            bad.append((first_row + i, fault.kind, fault.detail))
        except UnicodeDecodeError as error:  # pyarrow does not check UTF-8
            bad.append((first_row + i, "not_utf8", f"not UTF-8 at byte {error.start:,} of a string"))
    keys = first_row + np.array(good, np.int64)
    return Batch(texts, keys, interpolate_offsets(keys - group.first_row, group.rows, group.low, group.high), bad)


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
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        advice = f"{LIST_ADVICE}, or set text_field." if is_list else "Set the dataset's text_field."
        raise UserError(f"{file_range.path}: column {file_range.text_field!r} is {values.type}, not text. {advice}")
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
