"""The documents of each training sample, from Megatron's sample index in the run folder.

Both backends read samples from Megatron's GPTDataset, which writes the order of samples to RUN/index_cache as numpy
arrays with a JSON description. Reading them needs neither torch nor megatron. The formats are those of
megatron/core/datasets/gpt_dataset.py and blended_dataset.py (megatron-core 0.19):

    blend:    dataset_index[sample] -> dataset, dataset_sample_index[sample] -> sample in that dataset
    dataset:  shuffle_index[sample] -> row; sample_index[row] and sample_index[row + 1] -> (entry, offset) of its start
              and end; document_index[entry] -> document (a sequence of the .idx that has tokens)
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nano3.utils.errors import Failure, UserError

BLEND, DATASET = "BlendedDataset", "GPTDataset"
# Samples of a blend that are searched at a time, which bounds memory.
BLEND_CHUNK = 1 << 26
LABEL = 1  # a sample has seq_length + 1 tokens, including the last label
# A description that Megatron wrote. Its files are named after the hash of the whole object.
Description = dict[str, Any]


@dataclass(frozen=True)
class TokenSpan:
    """Tokens [start, stop) of a sequence of a shard; `prefix` is the shard's path without suffix."""

    prefix: Path
    sequence: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardIndex:
    """Megatron's index of one shard.

    `documents` is an int32 array of sequences, `samples` an int32 or int64 array of shape [samples + 1, 2], and
    `shuffle` an array of rows of `samples`. `prefix` is the shard's path without suffix.
    """

    prefix: Path
    documents: np.ndarray
    samples: np.ndarray
    shuffle: np.ndarray

    def token_spans(self, sample: int, lengths: np.ndarray) -> list[TokenSpan]:
        """Return the spans of tokens that make up a sample, in order.

        Args:
            sample: Number of the sample in this shard.
            lengths: Tokens of each sequence of the shard.
        """
        row = int(self.shuffle[sample])
        (first, start), (last, end) = self.samples[row].tolist(), self.samples[row + 1].tolist()
        spans = []
        for entry in range(first, last + 1):
            sequence = int(self.documents[entry])
            stop = end + LABEL if entry == last else int(lengths[sequence])
            spans.append(TokenSpan(self.prefix, sequence, start if entry == first else 0, stop))
        return spans

    def samples_of(self, sequence: int, lengths: np.ndarray) -> list[tuple[int, TokenSpan]]:
        """Return the samples that contain tokens of a sequence, each with the span; in no order.

        Args:
            sequence: Number of the sequence in the shard.
            lengths: Tokens of each sequence of the shard.
        """
        begins = self.samples[:, 0]
        rows: set[int] = set()
        for entry in np.flatnonzero(self.documents == sequence).tolist():  # one per epoch
            first, last = np.searchsorted(begins, entry, "left") - 1, np.searchsorted(begins, entry, "right") - 1
            rows.update(range(max(int(first), 0), min(int(last), len(self.samples) - 2) + 1))
        numbers = np.flatnonzero(np.isin(self.shuffle, np.fromiter(rows, np.int64, len(rows))))
        spans = ((number, span) for number in numbers.tolist() for span in self.token_spans(number, lengths))
        return [(number, span) for number, span in spans if span.sequence == sequence and span.start < span.stop]


class SampleIndex:
    """The training samples of a run, in reading order.

    `other_sizes` are the lengths of other indexes in the cache: the run was also started with other lengths.
    """

    def __init__(self, cache: Path, samples: int) -> None:
        """Find the index with the given number of samples, the newest of several.

        Args:
            cache: Folder of Megatron's index files.
            samples: train_iters x global_batch_size. Megatron draws a few more for a blend: it rounds up per shard.

        Raises:
            UserError: There is no such index.
            Failure: A description is damaged.
        """
        self.cache, self.size = cache, samples
        descriptions = read_descriptions(cache)
        indexes = [d for d in descriptions if not is_member(d, descriptions)]
        fitting = [d for d in indexes if samples <= count_samples(d) <= samples + len(d.get("datasets", ()))]
        if not fitting:
            raise UserError(missing_index_message(cache, samples, indexes))
        self.description = fitting[-1]
        self.other_sizes = sorted({count_samples(d) for d in indexes} - {count_samples(self.description)})

    @cached_property
    def blend(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Dataset (int16) and sample in that dataset (int64) of each sample; None if there is only one dataset."""
        if self.description["class"] == DATASET:
            return None
        return self._load(self.description, "dataset_index"), self._load(self.description, "dataset_sample_index")

    @cached_property
    def members(self) -> list[ShardIndex]:
        """The datasets of the blend, one per shard."""
        return [
            ShardIndex(
                Path(member["dataset_path"]),
                self._load(member, "document_index"),
                self._load(member, "sample_index"),
                self._load(member, "shuffle_index"),
            )
            for member in self.description.get("datasets", [self.description])
        ]

    def locate(self, sample: int) -> tuple[ShardIndex, int]:
        """Return the shard of a sample and the sample's number in that shard."""
        if self.blend is None:
            return self.members[0], sample
        return self.members[int(self.blend[0][sample])], int(self.blend[1][sample])

    def samples_of(self, member: int, numbers: Iterable[int]) -> dict[int, int]:
        """Return the sample of the run for each sample of a member that the run reads.

        Args:
            member: Number of the shard in `members`.
            numbers: Samples of that shard.
        """
        wanted = np.array(sorted(set(numbers)), np.int64)
        if self.blend is None:
            return {n: n for n in wanted.tolist() if n < self.size}
        # A member's samples are numbered in reading order, so sample n is the member's n-th one in the blend.
        found: dict[int, int] = {}
        datasets, seen = self.blend[0], 0
        for begin in range(0, len(datasets), BLEND_CHUNK):
            found_at = np.flatnonzero(datasets[begin : begin + BLEND_CHUNK] == member)
            mine = wanted[(wanted >= seen) & (wanted < seen + len(found_at))]
            found |= dict(zip(mine.tolist(), (begin + found_at[mine - seen]).tolist(), strict=True))
            seen += len(found_at)
        return {number: sample for number, sample in found.items() if sample < self.size}

    def _load(self, description: Description, name: str) -> np.ndarray:
        split = description.get("index_split", description.get("split"))
        path = self.cache / f"{description_hash(description)}-{description['class']}-{split}-{name}.npy"
        try:
            loaded: np.ndarray = np.load(path, mmap_mode="r")
        except PermissionError:
            raise
        except (OSError, ValueError, EOFError) as error:
            raise Failure(
                f"{path}: cannot be read: {error}. Remove {self.cache}; the next start creates it again."
            ) from error
        return loaded


def description_hash(description: Description) -> str:
    """Return the prefix of the files of an index: the MD5 sum of its description's text."""
    return hashlib.md5(json.dumps(description, indent=4).encode(), usedforsecurity=False).hexdigest()


def read_descriptions(cache: Path) -> list[Description]:
    """Return the descriptions of the training indexes in a cache, the newest last."""
    files = sorted(cache.glob("*-train-description.txt"), key=lambda path: path.stat().st_mtime_ns)
    try:
        return [json.loads(path.read_text()) for path in files]
    except ValueError as error:
        raise Failure(
            f"{cache}: a description in it is damaged: {error}. Remove the folder and start the run again."
        ) from error


def is_member(description: Description, descriptions: list[Description]) -> bool:
    """Return whether an index belongs to a shard of one of the blends."""
    return any(description in blend.get("datasets", ()) for blend in descriptions)


def count_samples(description: Description) -> int:
    """Return the number of samples in an index."""
    return int(description["size"] if description["class"] == BLEND else description["num_samples"])


def missing_index_message(cache: Path, samples: int, descriptions: list[Description]) -> str:
    """Return why there is no index of that many samples."""
    if not descriptions:
        return f"{cache}: there is no sample index yet; the run creates it when training starts."
    others = " and ".join(f"{n:,}" for n in sorted({count_samples(d) for d in descriptions}))
    return (
        f"{cache}: there is no sample index of {samples:,} samples (train.train_iters x train.global_batch_size), only "
        f"of {others}: the run was started with another length."
    )
