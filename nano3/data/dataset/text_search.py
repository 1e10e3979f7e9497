"""Find the documents of prepared data that contain a text.

The tokens of the words between the first and the last one do not depend on what surrounds the text. They are searched
in the .bin files, and the documents found are decoded and compared. A text of fewer than three words has no such
tokens; then every document is decoded.
"""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import Manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DECODED_AT_A_TIME = 256


class FoundDocument(NamedTuple):
    """A document of a shard: the shard's prefix in the data folder, and the number of the document in it."""

    shard: str
    document: int


def find_text(folder: Path, manifest: Manifest, tokenizer: "Tokenizer", text: str) -> Iterator[FoundDocument]:
    """Yield the documents that contain a text, in the order of the shards.

    Args:
        folder: Data folder.
        manifest: Its manifest.
        tokenizer: Its tokenizer.
        text: What to search for, with upper and lower case as in the documents.
    """
    inner = inner_tokens(tokenizer, text)
    for shard in manifest.shards:
        indexed = IndexedFile(folder / shard.prefix)
        candidates = _with_tokens(indexed, inner) if inner else range(len(indexed.bounds) - 1)
        for first in range(0, len(candidates), DECODED_AT_A_TIME):
            numbers = candidates[first : first + DECODED_AT_A_TIME]
            ids = [indexed.document(number).tolist() for number in numbers]
            texts = tokenizer.decode_batch(ids, skip_special_tokens=False)
            yield from (
                FoundDocument(shard.prefix, n) for n, found in zip(numbers, texts, strict=True) if text in found
            )


def inner_tokens(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Return the tokens of the words of a text between the first and the last one, with the space before each."""
    spaces = [match.start() for match in re.finditer(r"(?<=\S)\s+(?=\S)", text)]
    if len(spaces) < 2:
        return []
    encoded = tokenizer.encode(text, add_special_tokens=False)
    ends = zip(encoded.ids, encoded.offsets, strict=True)
    return [number for number, (begin, end) in ends if begin >= spaces[0] and end <= spaces[-1]]


def _with_tokens(indexed: IndexedFile, wanted: list[int]) -> list[int]:
    """Return the documents of a shard that contain these tokens, one after the other."""
    pattern, size = np.array(wanted, indexed.dtype).tobytes(), indexed.dtype.itemsize
    found: dict[int, None] = {}
    if not len(indexed.tokens):
        return []
    with indexed.bin_path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(pattern)
        while at >= 0:
            if at % size:
                at = content.find(pattern, at + 1)
                continue
            sequence = int(np.searchsorted(indexed.offsets, at, "right")) - 1
            found[int(np.searchsorted(indexed.bounds, sequence, "right")) - 1] = None
            end = int(indexed.offsets[sequence]) + int(indexed.lengths[sequence]) * size
            at = content.find(pattern, end)
    return list(found)
