"""A hash of the token ids that the steps were fed, for the metrics.

A line of metrics.jsonl has `data_hash`, the sum over all samples of the last `data_hash_steps` iterations, modulo
2**48, of the XXH3 hash of the sample's input ids as little-endian int64. The sum does not depend on ranks or micro
batches, and a float holds it exactly. `nano3 trace RUN --audit` computes it again from the data.
"""

from collections.abc import Callable
from typing import Any

import xxhash

MODULUS = 1 << 48
HASH, STEPS = "data_hash", "data_hash_steps"


def sample_hash(tokens: Any) -> int:
    """Return the hash of the input ids of one sample, an int64 array of numpy."""
    return xxhash.xxh3_64_intdigest(tokens.data) % MODULUS


class FedTokens:
    """Adds up the hashes of the samples of this rank since the last line of metrics."""

    def __init__(self) -> None:
        self._sum = self._steps = self._samples = 0

    def add(self, tokens: Any) -> None:
        """Add the samples of a micro batch, an int64 tensor of shape [samples, seq_length]."""
        for row in tokens.cpu().contiguous().numpy():
            self._sum += sample_hash(row)
            self._samples += 1

    def end_step(self) -> None:
        """Count an iteration."""
        self._steps += 1

    def metrics(self, sum_over_ranks: Callable[[int], int], counts: bool = True) -> dict[str, int]:
        """Return the values for a line of metrics, and begin again. Every rank calls it at the same iterations.

        Args:
            sum_over_ranks: Returns the sum of a number over all ranks.
            counts: Whether this rank's samples count; others read the same samples if the model is split.
        """
        total = sum_over_ranks(self._sum % MODULUS if counts else 0) % MODULUS
        steps, self._sum, self._steps = self._steps, 0, 0
        return {HASH: total, STEPS: steps} if steps and self._samples else {}
