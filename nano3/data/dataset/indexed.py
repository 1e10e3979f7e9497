r"""Megatron's indexed dataset on disk (MMIDIDX version 1): writing and reading .bin/.idx pairs.

`.bin` holds the token ids of all sequences, back to back. `.idx` holds, little-endian and without padding:

    9 bytes         b"MMIDIDX\0\0"
    uint64          version, 1
    uint8           dtype code
    uint64          S, the number of sequences
    uint64          D + 1, where D is the number of documents
    int32[S]        number of tokens of each sequence
    int64[S]        byte offset of each sequence in .bin
    int64[D + 1]    document bounds: the first sequence of each document, then S

A document without tokens has a bound but no sequence, as in Megatron-LM's tools/preprocess_data.py. The format is
defined by megatron/core/datasets/indexed_dataset.py.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nano3.utils.errors import Failure

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {"int32": 4, "uint16": 8}


class IndexHeader(NamedTuple):
    """What the header of an .idx file says."""

    dtype: np.dtype
    sequences: int
    documents: int


def read_header(path: Path) -> IndexHeader:
    """Read the header of an .idx file.

    Raises:
        Failure: The file cannot be read, is not an index, or does not have the size that its header implies.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(HEADER.size)
    except PermissionError:
        raise
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise Failure(f"{path}: not a Megatron index (MMIDIDX header missing)")
    _, version, code, sequences, bounds = HEADER.unpack(head)
    names = {c: name for name, c in DTYPE_CODES.items()}
    if version != 1 or code not in names:
        raise Failure(f"{path}: version {version}, dtype code {code} is not known (version 1, codes {names})")
    expected = HEADER.size + sequences * 12 + bounds * 8
    if size != expected:
        raise Failure(f"{path}: {size:,} bytes, but its header says {expected:,}: damaged or cut short")
    return IndexHeader(np.dtype(names[code]), sequences, bounds - 1)


def write_index(
    write: Callable[[bytes | memoryview], object],
    lengths: Callable[[], Iterator[np.ndarray]],
    sequences: int,
    documents: int,
    dtype: str,
) -> None:
    """Write an .idx file in chunks, so that memory does not grow with the number of documents.

    Args:
        write: Appends bytes to the file.
        lengths: Starts a pass over the number of tokens of each document: int32 arrays, 0 for an empty document.
            Three passes are made.
        sequences: Number of documents with tokens.
        documents: Number of all documents.
        dtype: NumPy name of the dtype of the tokens in .bin.
    """
    itemsize = np.dtype(dtype).itemsize
    write(HEADER.pack(MAGIC, 1, DTYPE_CODES[dtype], sequences, documents + 1))
    for chunk in lengths():
        write(chunk[chunk > 0].astype("<i4", copy=False).data)
    offset = 0
    for chunk in lengths():
        ends = offset + np.cumsum(chunk[chunk > 0], dtype=np.int64) * itemsize
        if len(ends):
            write(np.concatenate([[offset], ends[:-1]]).astype("<i8", copy=False).data)
            offset = int(ends[-1])
    bound = 0
    write(struct.pack("<q", 0))
    for chunk in lengths():
        bounds = bound + np.cumsum(chunk > 0, dtype=np.int64)
        if len(bounds):
            write(bounds.astype("<i8", copy=False).data)
            bound = int(bounds[-1])


class IndexedFile:
    """A .bin/.idx pair, memory-mapped.

    Attributes:
        prefix: Path of the files without suffix.
        bin_path: The .bin file.
        idx_path: The .idx file.
        dtype: Dtype of the tokens.
        tokens: The .bin file as an array of `dtype`.
        lengths: int32[S] number of tokens of each sequence.
        offsets: int64[S] byte offset of each sequence.
        bounds: int64[D + 1] first sequence of each document.

    Raises:
        Failure: A file is missing, is cut short, or the two disagree.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        self.bin_path = self.prefix.with_name(self.prefix.name + ".bin")
        self.idx_path = self.prefix.with_name(self.prefix.name + ".idx")
        header = read_header(self.idx_path)
        self.dtype = header.dtype
        raw = np.memmap(self.idx_path, dtype=np.uint8, mode="r")
        a, b = HEADER.size + header.sequences * 4, HEADER.size + header.sequences * 12
        self.lengths = raw[HEADER.size : a].view("<i4")
        self.offsets = raw[a:b].view("<i8")
        self.bounds = raw[b:].view("<i8")
        self.tokens: np.ndarray = np.empty(0, self.dtype)
        if self._bin_bytes():
            self.tokens = np.memmap(self.bin_path, dtype=self.dtype, mode="r")

    def _bin_bytes(self) -> int:
        """Return the size of the .bin file, which must be the one that the index implies."""
        try:
            size = self.bin_path.stat().st_size
        except PermissionError:
            raise
        except OSError as error:
            raise Failure(f"{self.bin_path}: {error.strerror}") from error
        expected = int(self.offsets[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if len(self.offsets) else 0
        if size != expected:
            raise Failure(f"{self.bin_path}: {size:,} bytes, but {self.idx_path.name} says {expected:,}")
        return size

    def __len__(self) -> int:
        """Number of documents, including empty ones."""
        return len(self.bounds) - 1

    def document(self, number: int) -> np.ndarray:
        """Return the token ids of a document, counted from 0."""
        first, last = int(self.bounds[number]), int(self.bounds[number + 1])
        if first == last:
            return np.empty(0, self.dtype)
        start = int(self.offsets[first]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[first:last].sum())]

    def close(self) -> None:
        """Release the memory maps."""
        self.lengths = self.offsets = self.bounds = self.tokens = np.empty(0)
