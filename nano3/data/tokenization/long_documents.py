"""Encode a document of any length in chunks, so that memory holds its text once and little else.

Cutting a text changes the ids around the cut, unless the tokenizer has a boundary there anyway. The engine is asked at
each cut: the text around it must have the same ids whether it is cut or not. If no such cut is found, the chunk is
extended. A tokenizer that treats a text as one word (SentencePiece without pre-tokenizer) gets the whole text.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from nano3.data.tokenization.encoders import EncodeError, Encoder

LONG = 8 << 20  # characters from which a document is encoded in chunks
CHUNK_CHARS = 2 << 20  # approximate length of a chunk
SEARCH_CHARS = 64 << 10  # characters at the end of a chunk that are searched for a cut
CONTEXT_CHARS = 2048  # characters on each side of a cut for which the engine is asked
UNCUT = 2  # chunks of so many times the length have no cut where one was expected
TRIES = 3  # cuts of each kind that are tried
# Where tokenizers usually have a boundary, the most reliable first: between words, after a line, after a full stop.
LIKELY_BOUNDARIES = (
    re.compile(r"[a-z](?= [a-z])"),
    re.compile(r"\n(?=\w)"),
    re.compile(r"\w(?= \w)"),
    re.compile(r"[。．.](?=\w)"),
)


def encode_chunks(text: str, encode: Encoder) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the uint32 ids and the text of each chunk; together the ids are those of the whole text.

    Chunks without a cut are encoded first, since an engine may fail on them: then nothing has been yielded.

    Raises:
        EncodeError: The engine cannot encode a chunk.
    """
    starts = [0]
    while starts[-1] < len(text):
        starts.append(find_cut(text, starts[-1], encode))
    chunks = list(pairwise(starts))
    uncut = {a: encode([text[a:b]])[0] for a, b in chunks if b - a > UNCUT * CHUNK_CHARS}
    for a, b in chunks:
        chunk = text[a:b]
        yield uncut.pop(a) if a in uncut else encode([chunk])[0], chunk


def find_cut(text: str, start: int, encode: Encoder) -> int:
    """Return the end of the chunk that begins at `start`."""
    end = start + CHUNK_CHARS
    while end + CONTEXT_CHARS < len(text):
        for pattern in LIKELY_BOUNDARIES:
            found = [m.end() for m in pattern.finditer(text, end - SEARCH_CHARS, end)]
            for cut in reversed(found[-TRIES:]):
                if is_boundary(text, cut, encode):
                    return cut
        end += CHUNK_CHARS
    return len(text)


def is_boundary(text: str, cut: int, encode: Encoder) -> bool:
    """Return whether the text around a cut has the same ids with and without the cut."""
    left, right = text[max(0, cut - CONTEXT_CHARS) : cut], text[cut : cut + CONTEXT_CHARS]
    try:
        ids, lengths = encode([left, right, left + right])
    except EncodeError:
        return False
    separate = int(lengths[0] + lengths[1])
    return separate == int(lengths[2]) and bool(np.array_equal(ids[:separate], ids[separate:]))
