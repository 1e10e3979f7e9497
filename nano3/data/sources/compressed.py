"""Decompress gzip, bzip2, xz, and zstd streams, and raise an error if one is truncated or damaged.

Concatenated streams in one file are read as one.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

from nano3.utils.errors import Failure, UserError

# Compressed bytes read at a time. Document offsets are computed from the position in the compressed file, and shards
# are assigned by offset, so these sizes must not change.
READ_SIZE = 64 << 10
FEED_SIZE = 8 << 10  # for bzip2 and xz, as in Python's own readers


class CountingReader:
    """A file object that reads in small chunks and counts the bytes."""

    closed = False

    def __init__(self, f: IO[bytes]) -> None:
        self._f = f
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        """Read at most READ_SIZE bytes."""
        data = self._f.read(READ_SIZE if size < 0 else min(size, READ_SIZE))
        self.position += len(data)
        return data

    def readable(self) -> bool:
        """Return True; pyarrow asks."""
        return True

    def seekable(self) -> bool:
        """Return False; pyarrow asks."""
        return False

    def close(self) -> None:
        """Do nothing: the caller owns the file."""


class ConcatenatedStreams:
    """Reader of bzip2 or xz streams in one file.

    Bytes after a stream must start another one, or be padding (NUL bytes). Python's `BZ2File` and `LZMAFile` treat
    anything else as the end of the file, and would silently lose the text after it.
    """

    def __init__(self, raw: CountingReader, make_decoder: Callable[[], Any]) -> None:
        self._raw = raw
        self._make_decoder = make_decoder
        self._decoder = make_decoder()

    def read1(self, size: int) -> bytes:
        """Return between 1 and `size` decompressed bytes, or b"" at the end."""
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0")
                while not rest:
                    if not (data := self._raw.read(FEED_SIZE)):
                        return b""
                    rest = data.lstrip(b"\0")
                self._decoder = self._make_decoder()
            else:
                rest = self._raw.read(FEED_SIZE) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not rest:
                    raise EOFError("it ends before its end-of-stream marker")
            if data := self._decoder.decompress(rest, size):
                return bytes(data)


class Decompressor:
    """Sequential reader of a compressed file.

    Args:
        f: The compressed file.
        kind: "gz", "bz2", "xz", or "zst", a key of `formats.FORMATS`.
        path: Name of the file in error messages.
    """

    def __init__(self, f: IO[bytes], kind: str, path: str) -> None:
        self._raw = CountingReader(f)
        self._path = path
        self._kind = kind
        self._decompressed = 0
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
        """Number of compressed bytes read so far."""
        return self._raw.position

    def read(self, size: int) -> bytes:
        """Return `size` decompressed bytes, or fewer at the end.

        Raises:
            Failure: The stream is damaged or truncated.
            UserError: zstd's window is larger than pyarrow reads.
        """
        chunks = []
        try:
            # Not `read`: it drops the bytes before the damage.
            while size > 0 and (data := self._stream.read1(size)):
                chunks.append(data)
                size -= len(data)
                self._decompressed += len(data)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            if "requires too much memory" in str(error):
                raise UserError(
                    f"{self._path}: compressed with a window too large to be read here (zstd --long). Compress it "
                    f"again: zstd -dc --long=31 OLD | zstd -o NEW"
                ) from error
            raise Failure(
                f"{self._path}: {self._kind} stream damaged or truncated after {self._decompressed:,} bytes of text "
                f"({error}). Copy the file again, or remove it from the dataset."
            ) from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def read_all(self, limit: int = 1 << 40) -> bytes:
        """Return the rest of the stream, or its first `limit` bytes and up to 1 MB more."""
        chunks = []
        while limit > 0 and (data := self.read(1 << 20)):
            chunks.append(data)
            limit -= len(data)
        return b"".join(chunks)
