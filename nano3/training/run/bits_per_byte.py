"""Losses in bits per byte of text, which can be compared between tokenizers.

A dataset's bytes per token come from its manifest: the UTF-8 bytes of its text over its tokens in all splits, including
the end-of-document tokens.
"""

import math
from collections.abc import Mapping

from nano3.training.dataset import TrainingData

TRAIN, VALID = "bits_per_byte", "valid_bits_per_byte"


class BitsPerByte:
    """Converts the losses of a run. A loss of a blend is converted only if all of its datasets can be."""

    def __init__(self, data: TrainingData) -> None:
        self._bytes_per_token = data.bytes_per_token
        self._train_bytes = self._mean_bytes(data.shares("train"))

    def train(self, loss: float | None, shares: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the metrics of a training loss.

        Args:
            loss: In nats per token.
            shares: Share of each dataset in the samples of that loss; None for those of the blend.
        """
        mean = self._train_bytes if shares is None else self._mean_bytes(shares)
        return {} if loss is None or mean is None else {TRAIN: _bits(loss, mean)}

    def valid(self, per_dataset: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of a validation.

        Args:
            per_dataset: Loss of each dataset in nats per token.
            shares: Share of each dataset's tokens in the blend.
        """
        known = self._bytes_per_token
        found = {f"{VALID}/{name}": _bits(loss, known[name]) for name, loss in per_dataset.items() if name in known}
        if (mean := self._mean_bytes({name: shares[name] for name in per_dataset})) is not None:
            found = {VALID: _bits(sum(shares[name] * loss for name, loss in per_dataset.items()), mean), **found}
        return found

    def _mean_bytes(self, shares: Mapping[str, float]) -> float | None:
        if not shares or not all(name in self._bytes_per_token for name in shares):
            return None
        return sum(share * self._bytes_per_token[name] for name, share in shares.items())


def _bits(loss: float, bytes_per_token: float) -> float:
    return round(loss / math.log(2) / bytes_per_token, 6)
