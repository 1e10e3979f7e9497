"""From a file, or a part of one, to batches of document texts.

Every document has a *key* inside its file: its row number (parquet, Arrow, JSON array; from 0), the offset of its
line in the uncompressed bytes (JSON lines), or 0 (plain text). Together with dataset and file it names the document
for ever.

Every document also has a *offset*: a number from 0 to the file's cost that grows with the key and, roughly, with the
text before it. The plan cuts datasets at offsets, so nothing has to be read to make a plan: an atom (a line, a
parquet row group, or a whole file of the other formats) belongs to the interval in which it starts.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, cast

import numpy as np

from nano3.data.sources import discovery
from nano3.data.sources.compressed import Decompressor
from nano3.data.sources.formats import FORMATS, HEAD_SIZE, detect_format
from nano3.data.sources.jsonl import BOM, JsonRows, line_blocks, skip_to_line
from nano3.utils.errors import Failure, UserError

BATCH_BYTES = 4 << 20  # bytes of text in a batch, about
MAX_BATCH_ROWS = 4096
ROW_WIDTH = 4096  # offsets of a row when files are limited to their first rows
MAX_ARRAY_BYTES = 512 << 20  # a JSON array has to be read whole


@dataclass
class Batch:
    """Documents in file order. `keys` and `offsets` are int64, one per text; `bad` holds (key, kind, what is wrong)."""

    texts: list[str]
    keys: np.ndarray
    offsets: np.ndarray
    bad: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class FileRange:
    """What to read of a file: the atoms that start at offsets `start` <= p < `stop`; with `rows`, only that many
    first rows.

    `estimated_bytes` is the file's width in offsets. With `rows` every row is ROW_COST wide.
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
        """For messages."""
        return discovery.join(self.root, self.name)


def read_documents(part: FileRange) -> Iterator[Batch]:
    """Read the documents of a part in order.

    Raises `Failure` naming the file when it is damaged or not the planned one, `UserError` when it has no such text
    field.
    """
    try:
        with discovery.open_file(part.root, part.name) as f:
            if (size := discovery.size_of(f)) != part.size:
                raise discovery.size_changed_error(part.path, part.size, size)
            batches = READERS[part.format](f, part)
            yield from batches if part.rows is None else take_first_rows(batches, part.rows)
    except discovery.read_errors(part.root) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Failure(f"{part.path}: cannot be read: {reason}") from error


def take_first_rows(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """The first `rows` rows, bad ones included; each ROW_COST wide."""
    seen = 0
    for batch in batches:
        every = np.sort(np.concatenate([batch.keys, np.array([b[0] for b in batch.bad], np.int64)]))[: rows - seen]
        keep = int(np.searchsorted(batch.keys, every[-1], "right")) if len(every) else 0
        keys = batch.keys[:keep]
        offsets = (seen + np.searchsorted(every, keys)) * ROW_WIDTH
        yield Batch(batch.texts[:keep], keys, offsets, [b for b in batch.bad if len(every) and b[0] <= every[-1]])
        seen += len(every)
        if seen >= rows:
            return


# JSON lines, JSON array, plain text


def read_jsonl(f: IO[bytes], part: FileRange) -> Iterator[Batch]:
    """Lines that start in [start, stop); an offset is a byte offset."""
    rows = JsonRows(part.text_field)
    stop = min(part.stop, part.size)
    start = skip_to_line(f, part.start, stop)
    for block in line_blocks(cast(io.BufferedIOBase, f).readinto, start, stop):
        texts, keys, bad = rows.of_lines(block)
        del block
        yield Batch(texts, keys, keys, bad)


def read_json(f: IO[bytes], part: FileRange) -> Iterator[Batch]:
    """One JSON array of objects."""
    yield from parse_json_array(f.read(MAX_ARRAY_BYTES + 1), part)


def parse_json_array(data: bytes, part: FileRange) -> Iterator[Batch]:
    if len(data) > MAX_ARRAY_BYTES:
        raise UserError(
            f"{part.path}: a JSON array of more than {MAX_ARRAY_BYTES >> 20} MB. Convert it: jq -c '.[]' OLD > NEW.jsonl"
        )
    texts, keys, bad = JsonRows(part.text_field).of_array(data, part.path)
    yield Batch(texts, keys, interpolate_offsets(keys, len(texts) + len(bad), 0, part.estimated_bytes), bad)


def read_txt(f: IO[bytes], part: FileRange) -> Iterator[Batch]:
    """The whole file is one document."""
    yield parse_text_file(f.read())


def parse_text_file(data: bytes) -> Batch:
    zero = np.zeros(1, np.int64)
    try:
        return Batch([data.removeprefix(BOM).decode()], zero, zero)
    except UnicodeDecodeError as error:
        return Batch([], zero[:0], zero[:0], [(0, "not_utf8", f"not UTF-8 at byte {error.start:,}")])


def interpolate_offsets(keys: np.ndarray, rows: int, low: int, high: int) -> np.ndarray:
    """Places of rows 0..rows-1 spread evenly over [low, high)."""
    return low + keys * (high - low) // max(rows, 1)


# Compressed streams: read from the start, always


def read_compressed(f: IO[bytes], part: FileRange) -> Iterator[Batch]:
    """A offset is the compressed position, spread evenly over the lines of a block."""
    stream = Decompressor(f, part.format, part.path)
    head = stream.read(HEAD_SIZE)
    kind = detect_format(head, part.name, unpacked=True)
    if kind == "txt":
        yield parse_text_file(head + stream.read_all())
    elif kind == "json":
        yield from parse_json_array(head + stream.read_all(MAX_ARRAY_BYTES), part)
    elif kind == "jsonl":
        yield from read_compressed_lines(head, stream, part)
    else:
        what = "nothing" if not head else kind or "an unknown format"
        raise UserError(
            f"{part.path}: {part.format} of {what}; compressed files must hold JSON lines, a JSON array or .txt."
        )


def read_compressed_lines(head: bytes, stream: Decompressor, part: FileRange) -> Iterator[Batch]:
    rows = JsonRows(part.text_field)
    begun = io.BytesIO(head)
    low = 0

    def fill(memory: memoryview) -> int:
        data = begun.read(len(memory))
        data += stream.read(len(memory) - len(data))
        memory[: len(data)] = data
        return len(data)

    for block in line_blocks(fill, 0, None):
        high = max(low, min(part.estimated_bytes - 1, stream.position * part.estimated_bytes // part.size))
        texts, keys, bad = rows.of_lines(block)
        offsets = interpolate_offsets(keys - block.offset, block.size, low, high)
        del block
        yield Batch(texts, keys, offsets, bad)
        low = high


# Columns: parquet and Arrow


def read_parquet(f: IO[bytes], part: FileRange) -> Iterator[Batch]:
    """Row groups that start in [start, stop)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(f, buffer_size=1 << 20)
        column = find_text_column(file.schema_arrow.names, part)
        widths = row_group_sizes(file.metadata, column)
        first = 0
        low = 0
        total = max(sum(w for w, _ in widths), 1)
        done = 0
        for number, (width, rows) in enumerate(widths):
            done += width
            high = done * part.estimated_bytes // total
            if rows and part.start <= low < part.stop:
                size = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows // max(width, 1)))
                at = first
                for box in iter_row_group(file, number, column, size):
                    count = len(box[0])
                    yield make_column_batch(box.pop(), at, first, rows, low, high, part)
                    at += count
            first += rows
            low = high
    except pa.ArrowInvalid as error:
        raise Failure(f"{part.path}: damaged parquet: {error}") from error


def iter_row_group(file: Any, number: int, column: str, size: int) -> Iterator[list[Any]]:
    """The column of a row group, `size` rows at a time, each in a list to be taken out of it. Nothing here holds on to
    what was given out; the reader, which keeps a page of text, is let go before the last of it.
    """
    import pyarrow as pa

    left = file.metadata.row_group(number).num_rows
    reader = file.iter_batches(size, row_groups=[number], columns=[column], use_threads=False)
    while left > 0:
        box = [batch.column(0) for batch in islice(reader, 1)]
        if not box:
            raise pa.ArrowInvalid(f"row group {number} ends {left:,} rows before its end")
        left -= len(box[0])
        if left <= 0:
            del reader
        yield box


def row_group_sizes(metadata: Any, column: str) -> list[tuple[int, int]]:
    """(uncompressed bytes of the text column, rows) of each row group."""
    widths = []
    index = None
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if index is None:
            paths = [group.column(i).path_in_schema for i in range(group.num_columns)]
            index = paths.index(column) if column in paths else 0
        widths.append((max(1, group.column(index).total_uncompressed_size), group.num_rows))
    return widths


def read_arrow(f: IO[bytes], part: FileRange) -> Iterator[Batch]:
    """Arrow IPC, file or stream; an offset is spread over each record batch."""
    import pyarrow as pa

    try:
        first = low = 0
        for values, high in iter_arrow_columns(f, part):
            step = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * len(values) // max(values.nbytes, 1)))
            for at in range(0, len(values), step):
                yield make_column_batch(values[at : at + step], first + at, first, len(values), low, high, part)
            first += len(values)
            low = high
    except pa.ArrowInvalid as error:
        raise Failure(f"{part.path}: damaged Arrow file: {error}") from error


def iter_arrow_columns(f: IO[bytes], part: FileRange) -> Iterator[tuple[Any, int]]:
    """The text column of each record batch, and the offset at which the batch ends. Streams may follow one another, as
    `cat` makes them."""
    import pyarrow as pa

    source = pa.PythonFile(f, mode="r")
    if f.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        column, count = find_text_column(reader.schema.names, part), reader.num_record_batches
        for i in range(count):
            yield reader.get_batch(i).column(column), (i + 1) * part.estimated_bytes // count
        return
    f.seek(0)
    while f.tell() < part.size:
        reader = pa.ipc.open_stream(source)
        column = find_text_column(reader.schema.names, part)
        for batch in reader:
            yield batch.column(column), min(part.estimated_bytes - 1, f.tell() * part.estimated_bytes // part.size)


def find_text_column(names: list[str], part: FileRange) -> str:
    if names.count(part.text_field) == 1:
        return part.text_field
    if part.text_field in names:
        raise UserError(
            f"{part.path}: there are {names.count(part.text_field)} columns {part.text_field!r}, and which one is "
            "meant cannot be told. Write the file with one, or set the dataset's text_field to another."
        )
    raise UserError(
        f"{part.path}: no column {part.text_field!r}. Columns: {', '.join(names)}. Set the dataset's text_field."
    )


def make_column_batch(values: Any, at: int, first: int, rows: int, low: int, high: int, part: FileRange) -> Batch:
    """A batch from a column slice whose first row is `at`, in a group of `rows` rows from row `first`, offsets [low,
    high).
    """
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_bytes or is_text or pa.types.is_null(kind)):
        raise UserError(
            f"{part.path}: column {part.text_field!r} is {values.type}, not text. Set the dataset's text_field."
        )
    if pa.types.is_dictionary(values.type) and values.dictionary.null_count:
        values = values.dictionary_decode()  # rows that point to a null are not counted as nulls
    keys = np.arange(at, at + len(values), dtype=np.int64)
    offsets = interpolate_offsets(keys - first, rows, low, high)
    if is_text and not values.null_count:
        try:
            return Batch(values.to_pylist(), keys, offsets)
        except UnicodeDecodeError:
            pass  # find out which
    texts, good, bad = [], [], []
    raw = values.cast(pa.large_binary()) if not pa.types.is_null(kind) else values
    for i, value in enumerate(raw.to_pylist()):
        if value is None:
            bad.append((at + i, "null", "null"))
            continue
        try:
            texts.append(value.decode())
            good.append(i)
        except UnicodeDecodeError as error:
            bad.append((at + i, "not_utf8", f"not UTF-8 at byte {error.start:,} of the text"))
    return Batch(texts, keys[good], offsets[good], bad)


READERS = {
    "jsonl": read_jsonl,
    "json": read_json,
    "txt": read_txt,
    "parquet": read_parquet,
    "arrow": read_arrow,
    **{name: read_compressed for name, f in FORMATS.items() if f.compressed},
}


def row_number(part: FileRange, key: int) -> int:
    """The row, from 1, of the document with this key; for JSON lines its line, which is counted by reading up to it."""
    if part.format != "jsonl" and not FORMATS[part.format].compressed:
        return key + 1
    with discovery.open_file(part.root, part.name) as f:
        stream: Any = f if part.format == "jsonl" else Decompressor(f, part.format, part.path)
        head = stream.read(min(HEAD_SIZE, key))
        if part.format != "jsonl" and detect_format(head, part.name, unpacked=True) != "jsonl":
            return key + 1
        lines, left = head.count(b"\n"), key - len(head)
        while left > 0 and (data := stream.read(min(BATCH_BYTES, left))):
            lines += data.count(b"\n")
            left -= len(data)
    return lines + 1
