"""Texts to token ids: one small interface over two engines, and the proof that they agree.

An encoder takes a list of texts and gives their ids back to back (uint32) and the number of ids of each text
(int64), without the special tokens a post-processor would add.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Encoded = tuple[np.ndarray, np.ndarray]
Encoder = Callable[[list[str]], Encoded]


def fast_encoder(tokenizer: Any, split_special_tokens: bool) -> Encoder:
    """Encoder on fastokens."""

    def encode(texts: list[str]) -> Encoded:
        ids, offsets = tokenizer.encode_batch_flat(texts, False, split_special_tokens)
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64).astype(np.int64))

    return encode


def reference_encoder(tokenizer: Any) -> Encoder:
    """Encoder on tokenizers."""

    def encode(texts: list[str]) -> Encoded:
        rows = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.fromiter((i for row in rows for i in row), np.uint32, int(lengths.sum()))
        return ids, lengths

    return encode


def first_difference(one: Encoder, other: Encoder, texts: list[str]) -> int | None:
    """Number of the first text that the encoders see differently, or None."""
    if not texts:
        return None
    ids, lengths = one(texts)
    right, right_lengths = other(texts)
    if np.array_equal(lengths, right_lengths) and np.array_equal(ids, right):
        return None
    ends, right_ends = np.cumsum(lengths), np.cumsum(right_lengths)
    for i in range(len(texts)):
        mine = ids[ends[i] - lengths[i] : ends[i]]
        if not np.array_equal(mine, right[right_ends[i] - right_lengths[i] : right_ends[i]]):
            return i
    return None


def edge_cases(special: list[str]) -> list[str]:
    """Texts on which tokenizers have been seen to differ; `special` are the tokenizer's own added tokens."""
    words = [
        "hello",
        "Hello World",
        "don't",
        "I'LL",
        "naïve",
        "ÀÉÎ",
        "straße",
        "ﬁﬂ",
        "ｆｕｌｌ　ｗｉｄｔｈ",
        "Ελλάδα",
        "русский",
    ]
    scripts = [
        "日本語のテキスト",
        "中文分词",
        "한국어",
        "ไทยไม่มีช่องว่าง",
        "हिन्दी",
        "العربية ١٢٣",
        "עברית",
        "தமிழ்",
        "ქართული",
    ]
    signs = [
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "👍🏽",
        "e\u0301",
        "\u0301",
        "a\u200db",
        "\u200b",
        "\ufeff",
        "\u2028\u2029",
        "\ufffd",
        "\U0010ffff",
    ]
    space = [
        "",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\r",
        "\t\t x",
        " \n \n ",
        "\u00a0",
        "\u3000",
        "a \nb",
        "x  \n\n\n  y",
        " lead",
        "trail ",
    ]
    odd = ["\x00", "a\x00b", "\x00\x01\x02\x7f", "\x85", "\x1b[0m", "İi̇ı", "ŉ", "ǅ", "ß" * 50, "Ⅷ", "①²½", "٣", "𝟘𝟙"]
    digits = ["0", "12", "123", "1234567890", "3.14159", "1,000,000", "0x1F", "1e-5", "2024-01-01T00:00:00Z"]
    code = [
        "def f(x):\n\treturn x  # ok\n",
        "if(a&&b){c++;}",
        "<a href='x'>&amp;</a>",
        "\\frac{1}{2}",
        "$$x^2$$",
        "a_b-c.d/e\\f",
    ]
    long = [
        "a" * 5000,
        "ab" * 3000,
        "1" * 1000,
        " " * 1000,
        "\n" * 500,
        "!" * 700,
        "日" * 700,
        "é" * 700,
        "-=" * 400,
        "Zq" * 1500,
    ]
    code_points = ["".join(chr(c) for c in range(a, a + 256)) for a in range(0, 0x3400, 256)]
    planes = [
        "".join(chr(c) for c in range(a, a + 64))
        for a in (0xA640, 0xFB00, 0xFE00, 0xFFC0, 0x1D400, 0x1F300, 0x1F900, 0xE0100)
    ]
    literal = [f"{a}{token}{b}" for token in special for a, b in (("", ""), ("a ", " b"), ("x", "y"))]
    if special:
        literal += ["".join(special), " ".join(special), special[0][:-1], special[-1] * 3, special[0].upper()]
    mixed = [" ".join(words + scripts + signs), "\n".join(code + digits), "".join(space)]
    return [*words, *scripts, *signs, *space, *odd, *digits, *code, *long, *code_points, *planes, *literal, *mixed]


class SpecialCounter:
    """Counts ids that belong to special tokens: literal special-token text inside documents."""

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
        """Number of special ids in a uint32 array. A few ranges are compared directly, which is far faster than a
        table.
        """
        if self._table is not None:
            return int(np.count_nonzero(self._table[ids[ids < len(self._table)]]))
        return sum(int(np.count_nonzero((ids - start) <= width)) for start, width in self._ranges)
