"""Which documents a training sample is made of, from the index that Megatron keeps of it in the run folder.

Both backends read samples from Megatron's GPTDataset, which writes the order it has drawn into RUN/index_cache, as
numpy arrays beside a description in JSON. Reading them takes neither torch nor megatron. The formats are those of
megatron/core/datasets/gpt_dataset.py and blended_dataset.py (megatron-core 0.19):

    blend:    dataset_index[sample] -> dataset, dataset_sample_index[sample] -> sample in it
    dataset:  shuffle_index[sample] -> place; sample_index[place], sample_index[place + 1] -> (entry, offset) at which
              it begins and ends; document_index[entry] -> document (a sequence of the .idx: one with tokens)
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nano3.utils.errors import Failure, UserError

BLEND, DATASET = "BlendedDataset", "GPTDataset"
LABEL = 1  # a sample has one token more than seq_length: the last label


@dataclass(frozen=True)
class TokenSpan:
    """Tokens [start, stop) of a sequence of a shard; `prefix` is the shard's path without suffix."""

    prefix: Path
    sequence: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard."""

    prefix: Path
    documents: np.ndarray
    samples: np.ndarray
    shuffle: np.ndarray

    def stretches(self, sample: int, lengths: np.ndarray) -> list[TokenSpan]:
        """The stretches of a sample, in turn; `lengths` are the tokens of each sequence of the shard."""
        place = int(self.shuffle[sample])
        (first, begin), (last, end) = self.samples[place].tolist(), self.samples[place + 1].tolist()
        found = []
        for entry in range(first, last + 1):
            sequence = int(self.documents[entry])
            stop = end + LABEL if entry == last else int(lengths[sequence])
            found.append(TokenSpan(self.prefix, sequence, begin if entry == first else 0, stop))
        return found


class SampleIndex:
    """The training samples of a run, in the order in which they are read. `samples` is their number: train_iters x
    global_batch_size. Megatron draws a few more for a blend, since it rounds up for each shard. `other_sizes` are those
    of other orders in the same cache: the run was started with other lengths too.

    Raises `UserError` when the run has no such order, `Failure` when it is damaged.
    """

    def __init__(self, cache: Path, samples: int) -> None:
        self.cache = cache
        orders = read_descriptions(cache)
        whole = [order for order in orders if not is_member(order, orders)]
        fitting = [
            order for order in whole if samples <= count_samples(order) <= samples + len(order.get("datasets", ()))
        ]
        if not fitting:
            raise UserError(missing_index_message(cache, samples, whole))
        self.description = fitting[-1]  # the newest
        self.other_sizes = sorted({count_samples(order) for order in whole} - {count_samples(self.description)})

    @cached_property
    def blend(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(int16 dataset, int64 sample in it) of each sample; None when there is one dataset only."""
        if self.description["class"] == DATASET:
            return None
        return self._load(self.description, "dataset_index"), self._load(self.description, "dataset_sample_index")

    @cached_property
    def members(self) -> list[ShardIndex]:
        """The datasets that are mixed, one for each shard."""
        return [
            ShardIndex(
                Path(one["dataset_path"]),
                self._load(one, "document_index"),
                self._load(one, "sample_index"),
                self._load(one, "shuffle_index"),
            )
            for one in self.description.get("datasets", [self.description])
        ]

    def find(self, sample: int) -> tuple[ShardIndex, int]:
        """The dataset that a sample is from, and its number there."""
        if self.blend is None:
            return self.members[0], sample
        return self.members[int(self.blend[0][sample])], int(self.blend[1][sample])

    def _load(self, description: dict[str, Any], what: str) -> np.ndarray:
        split = description.get("index_split", description.get("split"))
        path = self.cache / f"{description_hash(description)}-{description['class']}-{split}-{what}.npy"
        try:
            loaded: np.ndarray = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise Failure(
                f"{path}: cannot be read: {error}. Remove {self.cache}; the next start makes it anew."
            ) from error
        return loaded


def description_hash(description: dict[str, Any]) -> str:
    """What the files of a description's index begin with: the MD5 sum of its text."""
    return hashlib.md5(json.dumps(description, indent=4).encode(), usedforsecurity=False).hexdigest()


def read_descriptions(cache: Path) -> list[dict[str, Any]]:
    """Descriptions of the training orders in a cache, the newest last."""
    files = sorted(cache.glob("*-train-description.txt"), key=lambda path: path.stat().st_mtime_ns)
    try:
        return [json.loads(path.read_text()) for path in files]
    except ValueError as error:
        raise Failure(
            f"{cache}: a description in it is damaged: {error}. Remove the folder and start again."
        ) from error


def is_member(order: dict[str, Any], orders: list[dict[str, Any]]) -> bool:
    """Whether an order is a shard's in one of the blends."""
    return any(order in blend.get("datasets", ()) for blend in orders)


def count_samples(order: dict[str, Any]) -> int:
    """Samples in an order."""
    return int(order["size"] if order["class"] == BLEND else order["num_samples"])


def missing_index_message(cache: Path, samples: int, orders: list[dict[str, Any]]) -> str:
    """Why there is no order of that many samples."""
    if not orders:
        return f"{cache}: holds no order of samples; the run makes it when it begins to train."
    others = " and ".join(f"{n:,}" for n in sorted({count_samples(order) for order in orders}))
    return (
        f"{cache}: holds no order of {samples:,} samples (train.train_iters x train.global_batch_size), but of "
        f"{others}: the run was started with another length."
    )
