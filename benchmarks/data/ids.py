"""Do two outputs hold the same token ids? Read back from disk, whatever the tool's file layout."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOCABULARY = 131_072
BLOCK = 16_000_000  # ids read at a time


@dataclass(frozen=True)
class Ids:
    """Totals of an output folder. `counts` ignores the order of documents (some peers shuffle); `stream` does not."""

    tokens: int
    documents: int | None  # None where the layout does not tell
    counts: str  # SHA-256 of how often every id occurs
    stream: str  # SHA-256 of all ids, files in the order of their names


def read(folder: Path) -> Ids:
    """Totals of all .bin/.idx pairs, or all of dolma's raw .npy files, under `folder` (4 bytes a token)."""
    files = sorted([*folder.rglob("*.bin"), *folder.rglob("*.npy")])
    counts = np.zeros(VOCABULARY, np.int64)
    stream, tokens = hashlib.sha256(), 0
    for path in files:
        data = np.memmap(path, np.int32, "r")
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            counts += np.bincount(block, minlength=VOCABULARY)
            stream.update(block)
        tokens += len(data)
    indexed = [path.with_suffix(".idx") for path in files if path.suffix == ".bin"]
    documents = sum(map(document_count, indexed)) if indexed else None
    return Ids(tokens, documents, hashlib.sha256(counts.tobytes()).hexdigest(), stream.hexdigest())


def document_count(index: Path) -> int:
    """Documents in an MMIDIDX file: after magic (9 bytes), version (8) and dtype (1), sequences and document bounds."""
    header = index.read_bytes()[:34]
    if header[:9] != b"MMIDIDX\0\0":
        raise ValueError(f"{index} is not a Megatron index")
    return int.from_bytes(header[26:34], "little") - 1
