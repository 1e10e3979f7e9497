"""From texts to token ids: one interface over two engines, and the comparison of their results.

An encoder takes a list of texts. It returns their ids back to back (uint32) and the number of ids of each text
(int64), without the special tokens that a post-processor would add.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Encoded = tuple[np.ndarray, np.ndarray]
Encoder = Callable[[list[str]], Encoded]


COMPARED_AT_ONCE = 2000  # texts


class EncodeError(Exception):
    """An engine failed on a text. Both engines have limits, for example of the steps of a regular expression."""


def is_engine_error(error: BaseException) -> bool:
    """Return whether an engine raised an error, maybe a panic, which is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def fast_encoder(tokenizer: Any, split_special_tokens: bool) -> Encoder:
    """Return an encoder that uses fastokens.

    Args:
        tokenizer: A native tokenizer of fastokens.
        split_special_tokens: Whether special tokens in a text are encoded as plain text.
    """

    def encode(texts: list[str]) -> Encoded:
        try:
            ids, offsets = tokenizer.encode_batch_flat(texts, False, split_special_tokens)
        except BaseException as error:
            if not is_engine_error(error):
                raise
            raise EncodeError(f"fastokens: {error}") from error
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64).astype(np.int64))

    return encode


def reference_encoder(tokenizer: Any) -> Encoder:
    """Return an encoder that uses a `tokenizers.Tokenizer`."""

    def encode(texts: list[str]) -> Encoded:
        try:
            rows = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except BaseException as error:
            if not is_engine_error(error):
                raise
            raise EncodeError(f"tokenizers: {error}") from error
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.fromiter((i for row in rows for i in row), np.uint32, int(lengths.sum()))
        return ids, lengths

    return encode


def first_difference(one: Encoder, other: Encoder, texts: list[str]) -> int | None:
    """Return the index of the first text that two encoders encode differently, or None."""
    if not texts:
        return None
    ids, lengths = one(texts)
    other_ids, other_lengths = other(texts)
    if np.array_equal(lengths, other_lengths) and np.array_equal(ids, other_ids):
        return None
    ends, other_ends = np.cumsum(lengths), np.cumsum(other_lengths)
    for i in range(len(texts)):
        found = ids[ends[i] - lengths[i] : ends[i]]
        if not np.array_equal(found, other_ids[other_ends[i] - other_lengths[i] : other_ends[i]]):
            return i
    return None


def describe_difference(fast: Encoder, reference: Encoder, texts: list[str]) -> str:
    """Return which text the engines encode differently or one of them cannot encode, or "".

    Args:
        fast: Encoder of the fast engine.
        reference: Encoder of the reference engine.
        texts: The texts.
    """
    for start in range(0, len(texts), COMPARED_AT_ONCE):
        part = texts[start : start + COMPARED_AT_ONCE]
        try:
            wrong = first_difference(fast, reference, part)
        except EncodeError:
            if (failed := first_failure(fast, reference, part)) is None:
                raise
            return f"{failed[1]}, for {part[failed[0]][:60]!r}"
        if wrong is not None:
            return f"fastokens gives other ids than tokenizers for {part[wrong][:60]!r}"
    return ""


def first_failure(fast: Encoder, reference: Encoder, texts: list[str]) -> tuple[int, EncodeError] | None:
    """Return the index and the error of the first text that an engine cannot encode, or None."""
    for i, text in enumerate(texts):
        try:
            first_difference(fast, reference, [text])
        except EncodeError as error:
            return i, error
    return None


class SpecialTokenCounter:
    """Counts the ids of special tokens, which come from special tokens written literally in a text."""

    def __init__(self, special_ids: tuple[int, ...]) -> None:
        self._table: np.ndarray | None = None
        ids = np.array(special_ids, np.int64)
        breaks = np.flatnonzero(np.diff(ids) > 1)
        starts, ends = np.concatenate([ids[:1], ids[breaks + 1]]), np.concatenate([ids[breaks], ids[-1:]])
        self._ranges = [(np.uint32(a), np.uint32(b - a)) for a, b in zip(starts, ends, strict=True)]
        if len(self._ranges) > 8:
            self._table = np.zeros(int(ids[-1]) + 1, bool)
            self._table[ids] = True

    def __call__(self, ids: np.ndarray) -> int:
        """Return the number of special ids in a uint32 array.

        A few ranges are compared directly, which is far faster than a lookup table.
        """
        if self._table is not None:
            return int(np.count_nonzero(self._table[ids[ids < len(self._table)]]))
        # Special ids usually begin at 0, and then nothing needs to be subtracted.
        return sum(int(np.count_nonzero((ids - start if start else ids) <= width)) for start, width in self._ranges)
