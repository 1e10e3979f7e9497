"""Read JSON lines: split a file into blocks of whole lines, and a block into texts."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import IO, Any

import msgspec
import numpy as np

from nano3.data.sources.formats import UTF8_BOM
from nano3.data.sources.text_field import LIST_ADVICE, NO_FIELD, BadRow, BadRowError, describe_type, parse_text_field
from nano3.utils.errors import Failure, list_some

BLOCK = 4 << 20  # bytes
LINE_SAMPLE = 64 << 10  # bytes of a block from which the average length of its lines is estimated
SHORT_LINE = 350  # bytes; see `line_starts`
JSON_SPACE = re.compile(r"[ \t\r\n]*")
Fill = Callable[[memoryview], int]  # like `readinto`: returns the number of bytes written, 0 at the end


@dataclass
class Block:
    """Whole lines: the first `size` bytes of `data`, from `offset` on in the uncompressed file."""

    offset: int
    data: bytes | bytearray
    size: int


def skip_to_line(f: IO[bytes], start: int, stop: int) -> int:
    """Seek to the first line that starts at or after `start`.

    Returns:
        The offset of that line; `stop` or more if none starts before `stop`.
    """
    if start == 0:
        return 0
    position = start - 1
    f.seek(position)
    while position < stop and (data := f.read(BLOCK // 16)):
        end = data.find(b"\n")
        if end >= 0:
            return f.seek(position + end + 1)
        position += len(data)
    return max(position, stop)


def line_blocks(fill: Fill, offset: int, stop: int | None) -> Iterator[Block]:
    """Yield blocks of the whole lines that start before `stop`.

    A block is valid only until the next one is requested: both use the same memory, so that no new pages are mapped.
    A line longer than BLOCK gets a longer block of its own memory. The last line may lack its newline.

    Args:
        fill: Reads the next bytes of the file, from `offset` on.
        offset: Where a line starts.
        stop: End of the range; None for the end of the file.
    """
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    held = 0  # bytes at the start of the buffer that belong to an incomplete line
    earlier: list[bytes] = []  # earlier bytes of that line, if it is longer than the buffer
    position = offset
    while stop is None or offset < stop:
        left = BLOCK if stop is None else max(stop - position, BLOCK // 16)
        got = fill(view[held : held + left])
        if not got:
            if rest := b"".join([*earlier, view[:held]]):
                yield Block(offset, rest, len(rest))
            return
        position += got
        end = held + got
        cut = buffer.rfind(b"\n", held, end) + 1
        if not cut:
            held = end
            if held == BLOCK:
                earlier.append(bytes(buffer))
                held = 0
            continue
        # In a list that is emptied, so that a long block is freed as soon as the caller drops it.
        blocks = [Block(offset, b"".join([*earlier, view[:cut]]), 0) if earlier else Block(offset, buffer, 0)]
        size = blocks[0].size = cut + len(earlier) * BLOCK
        earlier = []
        if stop is not None and offset + size > stop:
            blocks[0].size = blocks[0].data.index(b"\n", stop - 1 - offset) + 1
            yield blocks.pop()
            return
        yield blocks.pop()
        held = end - cut
        view[:held] = view[cut:end]
        offset += size


def line_starts(block: Block) -> np.ndarray:
    """Return the offset of each line in a block, int64[lines].

    Searching for each newline is 15 times as fast as comparing every byte, unless lines are short.
    """
    data, size = block.data, block.size
    if data.count(b"\n", 0, min(LINE_SAMPLE, size)) > LINE_SAMPLE // SHORT_LINE:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8, size) == ord("\n"))
    else:
        newlines = []
        at = data.find(b"\n", 0, size)
        while at >= 0:
            newlines.append(at)
            at = data.find(b"\n", at + 1, size)
        ends = np.array(newlines, np.int64)
    starts: np.ndarray = np.concatenate([np.zeros(1, np.int64), ends + 1])
    return starts[:-1] if starts[-1] == size else starts


def has_one_object_per_line(data: np.ndarray, starts: np.ndarray) -> bool:
    """Return whether every line starts with { and ends with }.

    Then no line is blank, and no object continues on the next line, because } cannot be followed by { inside an
    object. So if there are as many objects as lines, each line is one object.

    Args:
        data: uint8[bytes] of whole lines.
        starts: int64[lines], offset of each line in `data`.
    """
    if not len(starts):
        return False
    lasts = np.append(starts[1:] - 2, len(data) - 1 - int(data[-1:].tobytes() == b"\n"))
    lasts -= data[lasts] == ord("\r")
    return bool((data[starts] == ord("{")).all() and (data[lasts] == ord("}")).all())


def parse_array_with_json(data: bytes, path: str) -> Iterator[bytes]:
    """Yield the elements of an array that Python's json module accepts and msgspec does not, each as JSON.

    Such an array contains NaN or an unpaired surrogate. Each element is then parsed like a line.

    Args:
        data: The array, without a byte order mark.
        path: Name of the file in error messages.

    Raises:
        Failure: `data` is not a JSON array.
    """
    try:
        items = json.loads(data.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise Failure(f"{path}: starts like a JSON array, but is not one: {error}") from error
    for item in items:
        try:
            yield json.dumps(item, ensure_ascii=False).encode(errors="surrogateescape")
        except UnicodeEncodeError:  # an unpaired surrogate, which ASCII preserves as an escape
            yield json.dumps(item).encode()


def split_objects(data: bytes, path: str) -> Iterator[bytes]:
    """Yield JSON values that follow one another, each of which may extend over several lines.

    Args:
        data: The file, without a byte order mark.
        path: Name of the file in error messages.

    Raises:
        Failure: Something between the values is not JSON.
    """
    text, decoder = data.decode(errors="surrogateescape"), json.JSONDecoder()
    start = 0
    while (match := JSON_SPACE.match(text, start)) and (start := match.end()) < len(text):
        try:
            _, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise Failure(
                f"{path}: starts with a JSON object over several lines, but is not a sequence of objects: {error}"
            ) from error
        yield text[start:end].encode(errors="surrogateescape")
        start = end


@cache
def row_decoder(field: str) -> Any:
    """Return a decoder of the text field of an object. Cached: creating it takes longer than reading a small file."""
    row = msgspec.defstruct("Row", [("text", str)], rename={"text": field}, gc=False)
    return msgspec.json.Decoder(row)


class JsonRows:
    """Extracts the texts of JSON objects; accepts exactly what Python's json module accepts, with the same texts.

    A whole block is decoded at once. If that fails, the block is decoded again line by line to find the bad rows.

    Args:
        field: Key of the text in each object, or a path or a template (see `text_field`).
        separator: Joins the strings of a list.
    """

    def __init__(self, field: str, separator: str | None = None) -> None:
        self._field = field
        self._text_field = parse_text_field(field, separator)
        self._plain = self._text_field.plain
        if self._plain:
            self._decoder = row_decoder(field)

    def parse_lines(self, block: Block) -> tuple[list[str], np.ndarray, list[BadRow]]:
        """Parse a block of lines. Blank lines are skipped.

        Returns:
            The texts, their keys (int64[texts], the offset of each line in the file), and the bad rows.
        """
        if block.offset == 0 and block.data.startswith(UTF8_BOM) and block.size >= len(UTF8_BOM):
            block = Block(len(UTF8_BOM), block.data[len(UTF8_BOM) : block.size], block.size - len(UTF8_BOM))
        starts = line_starts(block)
        rows: list[Any] = []
        view = memoryview(block.data)[: block.size]
        if self._plain and has_one_object_per_line(np.frombuffer(view, np.uint8), starts):
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                rows = self._decoder.decode_lines(view)
        if len(rows) == len(starts):
            return [row.text for row in rows], block.offset + starts, []
        ends = [*starts[1:].tolist(), block.size]
        lines = ((block.offset + a, bytes(view[a:b]).strip()) for a, b in zip(starts.tolist(), ends, strict=True))
        return self._one_by_one((key, line) for key, line in lines if line)

    def parse_array(self, data: bytes, path: str) -> tuple[list[str], np.ndarray, list[BadRow]]:
        """Parse one JSON array of objects, or objects that follow one another.

        Args:
            data: The whole file.
            path: Name of the file in error messages.

        Returns:
            The texts, their keys (int64[texts], the index of each element), and the bad rows.

        Raises:
            Failure: `data` is neither.
        """
        data = data.removeprefix(UTF8_BOM)
        if not data.lstrip().startswith(b"["):
            return self._one_by_one(enumerate(split_objects(data, path)))
        try:
            items = msgspec.json.decode(data, type=list[msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._one_by_one(enumerate(parse_array_with_json(data, path)))
        return self._one_by_one((number, bytes(item)) for number, item in enumerate(items))

    def _one_by_one(self, rows: Iterator[tuple[int, bytes]]) -> tuple[list[str], np.ndarray, list[BadRow]]:
        texts: list[str] = []
        keys: list[int] = []
        bad: list[BadRow] = []
        for key, line in rows:
            try:
                texts.append(self._text(line))
                keys.append(key)
            except BadRowError as fault:
                bad.append((key, fault.kind, fault.detail))
        return texts, np.array(keys, np.int64), bad

    def _text(self, line: bytes) -> str:
        try:
            if not self._plain:
                return self._selected_text(msgspec.json.decode(line), line)
            text: str = self._decoder.decode(line).text
            return text
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        try:
            row = json.loads(line.decode(errors="surrogateescape"))
        except (ValueError, RecursionError) as error:
            hint = ""
            if line.endswith((b"{", b"[", b",")) or line.startswith((b'"', b"}", b"]")):
                hint = ". If objects extend over several lines, convert the file: jq -c . OLD > NEW.jsonl"
            raise BadRowError("not_json", f"not valid JSON: {error}{hint}") from error
        if not self._plain:
            return self._selected_text(row, line)
        if not isinstance(row, dict):
            raise BadRowError("not_json", f"{describe_type(row)}, not an object")
        if self._field not in row:
            raise BadRowError("no_text", f"{NO_FIELD} {self._field!r}; its fields: {list_some(row)}")
        text = row[self._field]
        if text is None:
            raise BadRowError("null", f"{self._field!r} is null")
        if not isinstance(text, str):
            advice = f". {LIST_ADVICE}" if isinstance(text, list) else ""
            raise BadRowError("no_text", f"{self._field!r} is {describe_type(text)}, not a string{advice}")
        return self._checked(text, line)

    def _selected_text(self, row: Any, line: bytes) -> str:
        if not isinstance(row, dict):
            raise BadRowError("not_json", f"{describe_type(row)}, not an object")
        return self._checked(self._text_field.text_of(row), line)

    def _checked(self, text: str, line: bytes) -> str:
        """Return a text; raise BadRowError if it cannot be encoded in UTF-8."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raw = "\udc80" <= text[error.start] <= "\udcff" and not is_utf8(line)
            what = "bytes that are not UTF-8" if raw else "an unpaired surrogate (\\ud800 to \\udfff)"
            raise BadRowError("not_utf8", f"{self._field!r} holds {what} at character {error.start:,}") from error
        return text


def is_utf8(data: bytes) -> bool:
    """Return whether the bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
