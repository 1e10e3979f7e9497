"""gzip, bzip2, xz and zstd streams read from start to end; truncation and damage are errors, concatenated streams
are one.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

from nano3.utils.errors import Failure, UserError

READ_SIZE = 64 << 10  # compressed bytes handed to a decompressor at a time: `position` then depends on nothing else
FEED_SIZE = 8 << 10  # the same for bzip2 and xz; places of rows come of it, so it may not change


class CountingReader:
    """A file object that hands out small pieces and knows how many bytes it gave."""

    closed = False

    def __init__(self, f: IO[bytes]) -> None:
        self._f = f
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        """At most PIECE bytes."""
        data = self._f.read(READ_SIZE if size < 0 else min(size, READ_SIZE))
        self.position += len(data)
        return data

    def readable(self) -> bool:
        """Part of the file interface."""
        return True

    def seekable(self) -> bool:
        """Part of the file interface."""
        return False

    def close(self) -> None:
        """The file belongs to the caller."""


class ConcatenatedStreams:
    """bzip2 or xz streams, one after another. What follows a stream and begins none is damage, unless it is padding
    (NUL bytes); Python's `BZ2File` and `LZMAFile` take it for the end, and so would lose the text after it.
    """

    def __init__(self, raw: CountingReader, make: Callable[[], Any]) -> None:
        self._raw = raw
        self._make = make
        self._decoder = make()

    def read1(self, size: int) -> bytes:
        """Some decompressed bytes, at most `size`; none at the end."""
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0")
                while not rest:
                    if not (data := self._raw.read(FEED_SIZE)):
                        return b""
                    rest = data.lstrip(b"\0")
                self._decoder = self._make()
            else:
                rest = self._raw.read(FEED_SIZE) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not rest:
                    raise EOFError("it ends before its end-of-stream marker")
            if found := self._decoder.decompress(rest, size):
                return bytes(found)


class Decompressor:
    """`read(n)` gives n decompressed bytes, fewer only at the end. Raises `Failure` naming the file when the stream
    is damaged, `UserError` when it is packed in a way that is not read.
    """

    def __init__(self, f: IO[bytes], kind: str, path: str) -> None:
        self._raw = CountingReader(f)
        self._path = path
        self._kind = kind
        self._given = 0
        raw: Any = self._raw
        self._stream: Any
        if kind == "gz":
            self._stream = gzip.GzipFile(fileobj=raw, mode="rb")
        elif kind == "bz2":
            self._stream = ConcatenatedStreams(self._raw, bz2.BZ2Decompressor)
        elif kind == "xz":
            self._stream = ConcatenatedStreams(self._raw, lzma.LZMADecompressor)
        else:
            import pyarrow as pa

            self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), "zstd")

    @property
    def position(self) -> int:
        """Compressed bytes taken so far."""
        return self._raw.position

    def read(self, size: int) -> bytes:
        """`size` decompressed bytes, fewer at the end."""
        pieces = []
        try:
            # read1, since read drops what it has when it then meets the damage
            while size > 0 and (data := self._stream.read1(size)):
                pieces.append(data)
                size -= len(data)
                self._given += len(data)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            if "requires too much memory" in str(error):
                raise UserError(
                    f"{self._path}: compressed with a larger window (zstd --long) than is read here. Pack it again: "
                    f"zstd -dc --long=31 OLD | zstd -o NEW"
                ) from error
            raise Failure(
                f"{self._path}: {self._kind} stream damaged or cut short after {self._given:,} bytes of text "
                f"({error}). "
                f"Fetch the file again, or remove it from the dataset."
            ) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_all(self, limit: int = 1 << 40) -> bytes:
        """The rest, at most `limit` bytes and a little more."""
        pieces = []
        while limit > 0 and (data := self.read(1 << 20)):
            pieces.append(data)
            limit -= len(data)
        return b"".join(pieces)
