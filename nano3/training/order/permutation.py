"""Keyed permutations of a range that are computed, not stored, forward and backward.

A permutation of [0, size) is a Feistel network over a x b values with a, b close to the root of the size, repeated
until the result is below the size (cycle walking): J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains",
CT-RSA 2002. The round function is the finalizer of SplitMix64: G. Steele, D. Lea and C. Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014. It shuffles; it hides nothing.

All functions take one int, or a numpy array of uint64. This module does not import numpy.
"""

import hashlib
from functools import lru_cache
from math import isqrt
from typing import Any

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ROUNDS = 6


def mix64(x: Any) -> Any:
    """Return the finalizer of SplitMix64, a bijection of 64-bit numbers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@lru_cache(maxsize=4096)
def key_of(*parts: Any) -> int:
    """Return a 64-bit key that depends on all parts: the seed, a name, an epoch."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def permute(x: Any, size: int, key: int) -> Any:
    """Return where a permutation of [0, size) sends x.

    Args:
        x: One number below `size`, or a uint64 array of them.
        size: Size of the range, at least 1.
        key: Chooses the permutation.
    """
    return _walk(_forward, x, size, key)


def unpermute(x: Any, size: int, key: int) -> Any:
    """Return what `permute` sends to x, given the same arguments."""
    return _walk(_backward, x, size, key)


def _walk(step: Any, x: Any, size: int, key: int) -> Any:
    if size <= 1:
        return x
    rows = isqrt(size - 1) + 1
    columns, keys = -(-size // rows), _round_keys(key)
    x = step(x, rows, columns, keys)
    if isinstance(x, int):
        while x >= size:
            x = step(x, rows, columns, keys)
        return x
    while (outside := x >= size).any():
        x[outside] = step(x[outside], rows, columns, keys)
    return x


@lru_cache(maxsize=4096)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple(mix64((key + GOLDEN * (number + 1)) & MASK) for number in range(ROUNDS))


def _forward(x: Any, rows: int, columns: int, keys: tuple[int, ...]) -> Any:
    row, column = x // columns, x % columns
    for number in range(0, ROUNDS, 2):
        row = (row + (mix64(column ^ keys[number]) >> 32)) % rows
        column = (column + (mix64(row ^ keys[number + 1]) >> 32)) % columns
    return row * columns + column


def _backward(x: Any, rows: int, columns: int, keys: tuple[int, ...]) -> Any:
    row, column = x // columns, x % columns
    for number in range(ROUNDS - 2, -1, -2):
        # The multiple of the size keeps the difference above 0, since uint64 has no negative numbers.
        column = (column + columns - (mix64(row ^ keys[number + 1]) >> 32) % columns) % columns
        row = (row + rows - (mix64(column ^ keys[number]) >> 32) % rows) % rows
    return row * columns + column
