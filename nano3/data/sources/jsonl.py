"""JSON lines: from a file to blocks of whole lines, from a block to texts."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import IO, Any

import msgspec
import numpy as np

from nano3.utils.errors import Failure

BLOCK = 4 << 20
LINE_SAMPLE, SHORT_LINE = 64 << 10, 350  # bytes at a block's start that tell how long lines are; bytes of a short line
BOM = b"\xef\xbb\xbf"
BadRow = tuple[int, str, str]  # key, kind of fault, what is wrong
NO_FIELD = "no field"  # so begins what is wrong with a row that has no such key
Fill = Callable[[memoryview], int]  # like `readinto`: bytes put into the memory, 0 at the end


@dataclass
class Block:
    """Whole lines: the first `size` bytes of `data`, which stand at `offset` in the uncompressed file."""

    offset: int
    data: bytes | bytearray
    size: int


def skip_to_line(f: IO[bytes], start: int, stop: int) -> int:
    """Go to the first line that starts at or after `start`, and return its offset; `stop` or more if none starts
    before `stop`.
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
    """Blocks of whole lines that start before `stop`; `fill` must stand at `offset`, the start of a line.

    A line longer than a block makes its block longer. The last line may lack its newline. Unless it is longer, a block
    is read into the same memory as the one before, so it is good until the next one is asked for: what is read is
    copied once, and no page of memory has to be mapped for it.
    """
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    held = 0  # bytes at the start of the buffer that begin a line
    begun: list[bytes] = []  # and what lies before them, of a line that is longer
    position = offset
    while stop is None or offset < stop:
        left = BLOCK if stop is None else max(stop - position, BLOCK // 16)
        got = fill(view[held : held + left])
        if not got:
            if rest := b"".join([*begun, view[:held]]):
                yield Block(offset, rest, len(rest))
            return
        position += got
        end = held + got
        cut = buffer.rfind(b"\n", held, end) + 1
        if not cut:
            held = end
            if held == BLOCK:
                begun.append(bytes(buffer))
                held = 0
            continue
        # In a list, so that nothing here holds on to a long block while it is worked on.
        blocks = [Block(offset, b"".join([*begun, view[:cut]]), 0) if begun else Block(offset, buffer, 0)]
        size = blocks[0].size = cut + len(begun) * BLOCK
        begun = []
        if stop is not None and offset + size > stop:
            blocks[0].size = blocks[0].data.index(b"\n", stop - 1 - offset) + 1
            yield blocks.pop()
            return
        yield blocks.pop()
        held = end - cut
        view[:held] = view[cut:end]
        offset += size


def line_starts(block: Block) -> np.ndarray:
    """int64 offset of each line in a block. A search for each is 15 times as fast as a look at every byte, unless lines
    are short.
    """
    data, size = block.data, block.size
    if data.count(b"\n", 0, min(LINE_SAMPLE, size)) > LINE_SAMPLE // SHORT_LINE:
        ends = np.flatnonzero(np.frombuffer(data, np.uint8, size) == ord("\n"))
    else:
        found = []
        at = data.find(b"\n", 0, size)
        while at >= 0:
            found.append(at)
            at = data.find(b"\n", at + 1, size)
        ends = np.array(found, np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
    return starts[:-1] if starts[-1] == size else starts


def has_one_object_per_line(data: np.ndarray, starts: np.ndarray) -> bool:
    """Whether every line begins with { and ends with }. Then none is blank, and no object goes on in the next line:
    after a } in it there could not come a {. So if there are as many objects as lines, each line is one.
    """
    if not len(starts):
        return False
    lasts = np.append(starts[1:] - 2, len(data) - 1 - int(data[-1:].tobytes() == b"\n"))
    lasts -= data[lasts] == ord("\r")
    return bool((data[starts] == ord("{")).all() and (data[lasts] == ord("}")).all())


def parse_array_with_json(data: bytes, path: str) -> Iterator[bytes]:
    """The elements of an array that Python's json module reads and msgspec does not, for one of them has a NaN or half
    of a surrogate pair: each again as JSON, to be read like a line."""
    try:
        items = json.loads(data.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise Failure(f"{path}: begins like a JSON array, but is not one: {error}") from error
    for item in items:
        try:
            yield json.dumps(item, ensure_ascii=False).encode(errors="surrogateescape")
        except UnicodeEncodeError:  # half of a surrogate pair, which ASCII keeps as the escape that it was
            yield json.dumps(item).encode()


@cache
def row_decoder(field: str) -> Any:
    """Reads the one text of an object. Making it takes longer than reading a small file with it."""
    row = msgspec.defstruct("Row", [("text", str)], rename={"text": field}, gc=False)
    return msgspec.json.Decoder(row)


class JsonRows:
    """Takes the text out of JSON objects. Exact: what it accepts and the text it gives are those of Python's json
    module.

    The quick way decodes a block at once and knows nothing of faults; a block it refuses is read again line by line.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._decoder = row_decoder(field)

    def of_lines(self, block: Block) -> tuple[list[str], np.ndarray, list[BadRow]]:
        """Texts, keys (int64 offset of each line) and faults of a block. Blank lines are not rows."""
        if block.offset == 0 and block.data.startswith(BOM) and block.size >= len(BOM):
            block = Block(len(BOM), block.data[len(BOM) : block.size], block.size - len(BOM))
        starts = line_starts(block)
        rows: list[Any] = []
        view = memoryview(block.data)[: block.size]
        if has_one_object_per_line(np.frombuffer(view, np.uint8), starts):
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                rows = self._decoder.decode_lines(view)
        if len(rows) == len(starts):
            return [row.text for row in rows], block.offset + starts, []
        ends = [*starts[1:].tolist(), block.size]
        lines = ((block.offset + a, bytes(view[a:b]).strip()) for a, b in zip(starts.tolist(), ends, strict=True))
        return self._one_by_one((key, line) for key, line in lines if line)

    def of_array(self, data: bytes, path: str) -> tuple[list[str], np.ndarray, list[BadRow]]:
        """The same for one JSON array; a key is the element's number from 0."""
        try:
            items = msgspec.json.decode(data.removeprefix(BOM), type=list[msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._one_by_one(enumerate(parse_array_with_json(data.removeprefix(BOM), path)))
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
            return self._decoder.decode(line).text
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        try:
            row = json.loads(line.decode(errors="surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise BadRowError("not_json", f"not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadRowError("not_json", f"a JSON {type(row).__name__}, not an object")
        if self._field not in row:
            raise BadRowError(
                "no_text", f"{NO_FIELD} {self._field!r}; its fields: {', '.join(map(str, row)) or 'none'}"
            )
        text = row[self._field]
        if text is None:
            raise BadRowError("null", f"{self._field!r} is null")
        if not isinstance(text, str):
            raise BadRowError("no_text", f"{self._field!r} is a {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raw = "\udc80" <= text[error.start] <= "\udcff" and not is_utf8(line)
            what = "bytes that are not UTF-8" if raw else "half of a surrogate pair (\\ud800 to \\udfff)"
            raise BadRowError("not_utf8", f"{self._field!r} holds {what} at character {error.start:,}") from error
        return text


class BadRowError(Exception):
    """A row without a usable text."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
