"""Megatron's indexed dataset on disk (MMIDIDX version 1): how a .bin/.idx pair is written and read.

`.bin` is the token ids of all sequences, back to back. `.idx` is, little-endian and without padding:

    9 bytes  b"MMIDIDX\\0\\0"    uint64 version = 1    uint8 dtype code    uint64 S sequences    uint64 D + 1
    document bounds int32[S] tokens of each sequence    int64[S] byte offset of each sequence in .bin    int64[D + 1]
    first sequence of each document

A document without tokens has a bound but no sequence, as Megatron-LM's tools/preprocess_data.py writes it. The
format is that of megatron/core/datasets/indexed_dataset.py.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from nano3.utils.errors import Failure

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {"int32": 4, "uint16": 8}
UINT16_VOCAB = 65500  # Megatron's own limit (DType.optimal_dtype), a little under 65536
CHUNK = 1 << 20


def smallest_dtype(vocab_size: int) -> str:
    """The dtype Megatron picks for a vocabulary: uint16 below 65,500 ids, else int32."""
    return "uint16" if vocab_size < UINT16_VOCAB else "int32"


def write_index(
    write: Callable[[bytes | memoryview], object],
    lengths: Callable[[], Iterator[np.ndarray]],
    sequences: int,
    documents: int,
    dtype: str,
) -> None:
    """Write an .idx file piece by piece, so that memory does not grow with the number of documents.

    `lengths()` starts a new pass over the tokens of each document (int32 arrays, 0 for an empty document); three
    passes are made. `sequences` counts the documents with tokens, `documents` all of them.
    """
    itemsize = np.dtype(dtype).itemsize
    write(HEADER.pack(MAGIC, 1, DTYPE_CODES[dtype], sequences, documents + 1))
    for part in lengths():
        write(part[part > 0].astype("<i4", copy=False).data)
    offset = 0
    for part in lengths():
        ends = offset + np.cumsum(part[part > 0], dtype=np.int64) * itemsize
        if len(ends):
            write(np.concatenate([[offset], ends[:-1]]).astype("<i8", copy=False).data)
            offset = int(ends[-1])
    bound = 0
    write(struct.pack("<q", 0))
    for part in lengths():
        bounds = bound + np.cumsum(part > 0, dtype=np.int64)
        if len(bounds):
            write(bounds.astype("<i8", copy=False).data)
            bound = int(bounds[-1])


class IndexedFile:
    """A .bin/.idx pair, memory-mapped and checked.

    `lengths` int32[S], `offsets` int64[S] and `bounds` int64[D + 1] are views of the .idx file; `tokens` of the .bin
    file. Raises `Failure` naming the file when it is missing, cut short, or contradicts itself.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        self.bin_path = self.prefix.with_name(self.prefix.name + ".bin")
        self.idx_path = self.prefix.with_name(self.prefix.name + ".idx")
        self._read_header()
        self.tokens: np.ndarray = np.empty(0, self.dtype)
        if self._bin_bytes():
            self.tokens = np.memmap(self.bin_path, dtype=self.dtype, mode="r")

    def _read_header(self) -> None:
        try:
            size = self.idx_path.stat().st_size
            with self.idx_path.open("rb") as f:
                head = f.read(HEADER.size)
        except OSError as error:
            raise Failure(f"{self.idx_path}: {error.strerror}") from error
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise Failure(f"{self.idx_path}: not a Megatron index (MMIDIDX header missing)")
        _, version, code, sequences, bounds = HEADER.unpack(head)
        names = {c: name for name, c in DTYPE_CODES.items()}
        if version != 1 or code not in names:
            raise Failure(
                f"{self.idx_path}: version {version}, dtype code {code} is not known (version 1, codes {names})"
            )
        expected = HEADER.size + sequences * 12 + bounds * 8
        if size != expected:
            raise Failure(f"{self.idx_path}: {size:,} bytes, but its header says {expected:,}: damaged or cut short")
        self.dtype = np.dtype(names[code])
        raw = np.memmap(self.idx_path, dtype=np.uint8, mode="r")
        a, b = HEADER.size + sequences * 4, HEADER.size + sequences * 12
        self.lengths = raw[HEADER.size : a].view("<i4")
        self.offsets = raw[a:b].view("<i8")
        self.bounds = raw[b:].view("<i8")

    def _bin_bytes(self) -> int:
        try:
            size = self.bin_path.stat().st_size
        except OSError as error:
            raise Failure(f"{self.bin_path}: {error.strerror}") from error
        expected = int(self.offsets[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if len(self.offsets) else 0
        if size != expected:
            raise Failure(f"{self.bin_path}: {size:,} bytes, but {self.idx_path.name} says {expected:,}")
        return size

    def __len__(self) -> int:
        """Number of documents, empty ones included."""
        return len(self.bounds) - 1

    def document(self, number: int) -> np.ndarray:
        """Token ids of one document, counted from 0."""
        first, last = int(self.bounds[number]), int(self.bounds[number + 1])
        if first == last:
            return np.empty(0, self.dtype)
        start = int(self.offsets[first]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[first:last].sum())]

    def close(self) -> None:
        """Let go of the mapped files."""
        self.lengths = self.offsets = self.bounds = self.tokens = np.empty(0)
