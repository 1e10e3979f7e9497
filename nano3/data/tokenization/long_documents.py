"""A document of any length, a piece at a time: memory then holds its text once and little else.

Cutting a text changes the ids around the cut, unless the tokenizer has a boundary there anyway. Whether it does is
asked of the engine at each cut: the text around it must have the same ids cut and whole. Where no cut is found the
piece grows; a tokenizer that sees a text as one word (SentencePiece without pre-tokenizer) is given all of it.
"""

import re
from collections.abc import Iterator

import numpy as np

from nano3.data.tokenization.encoders import Encoder

LONG = 8 << 20  # characters from which a document is taken in pieces
PIECE = 2 << 20  # characters of a piece, about
SEARCH = 64 << 10  # characters before the end of a piece in which a cut is looked for
AROUND = 2048  # characters on each side of a cut that the engine is asked about
TRIES = 3  # cuts of each kind
# Where tokenizers usually have a boundary, the surest first: between words; after a line; after a full stop.
LIKELY = (
    re.compile(r"[a-z](?= [a-z])"),
    re.compile(r"\n(?=\w)"),
    re.compile(r"\w(?= \w)"),
    re.compile(r"[。．.](?=\w)"),
)


def encode_chunks(text: str, encode: Encoder) -> Iterator[tuple[np.ndarray, str]]:
    """(ids uint32, piece) of each piece of a text in turn; together the ids of the whole text."""
    start = 0
    while start < len(text):
        stop = find_cut(text, start, encode)
        piece = text[start:stop]
        start = stop
        yield encode([piece])[0], piece


def find_cut(text: str, start: int, encode: Encoder) -> int:
    """The end of the piece that begins at `start`."""
    end = start + PIECE
    while end + AROUND < len(text):
        for likely in LIKELY:
            found = [m.end() for m in likely.finditer(text, end - SEARCH, end)]
            for cut in reversed(found[-TRIES:]):
                if is_boundary(text, cut, encode):
                    return cut
        end += PIECE
    return len(text)


def is_boundary(text: str, cut: int, encode: Encoder) -> bool:
    """Whether the text around a cut has the same ids cut and whole."""
    left, right = text[max(0, cut - AROUND) : cut], text[cut : cut + AROUND]
    ids, lengths = encode([left, right, left + right])
    apart = int(lengths[0] + lengths[1])
    return apart == int(lengths[2]) and bool(np.array_equal(ids[:apart], ids[apart:]))
