"""The endless order of one dataset, from its .idx files alone.

The train split of a dataset is one stream of T tokens: its shards, one after the other. Each epoch permutes the
sequences within blocks of `BLOCK` consecutive ones; a block stays where it is, so the .idx files, which hold the sum of
the lengths before each sequence, are the only index. The epochs follow one another without a gap. Sample k is tokens
[k * seq_length, (k + 1) * seq_length], where the last one is only a label and the first one of sample k + 1. So each
token is an input exactly once an epoch, and a sample may span two documents, shards or epochs.

Samples are read in another permutation in each epoch. The last sample of an epoch, which may reach into the next one,
is read last: nothing is read again before the epoch is complete.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nano3.data.dataset.indexed import IndexedFile
from nano3.training.order.permutation import key_of, mix64, permute, unpermute

# Sequences that are permuted among each other. Permuting a block takes about 0.1 ms.
BLOCK = 1024
BLOCKS_KEPT = 64


class StreamShard(NamedTuple):
    """A shard in the stream. `prefix` is its path without suffix."""

    prefix: Path
    tokens: int
    sequences: int


class Part(NamedTuple):
    """Tokens [start, stop) of a sequence of a shard; `shard` is the shard's number in the stream."""

    shard: int
    sequence: int
    start: int
    stop: int


class BlockOrder(NamedTuple):
    """A block in one epoch: its sequences relative to the first one, and where each begins, with the end."""

    sequences: np.ndarray
    begins: np.ndarray


class DatasetStream:
    """Positions in the order of a dataset <-> samples of its stream <-> tokens of its sequences."""

    def __init__(self, name: str, shards: Sequence[StreamShard], seq_length: int, seed: int) -> None:
        """Describe the stream; no file is opened.

        Args:
            name: Name of the dataset.
            shards: Its shards in the order of the data.
            seq_length: Tokens in a sample, without the last label.
            seed: Seed of the order.
        """
        self.name, self.shards, self.seq_length, self.seed = name, tuple(shards), seq_length, seed
        self._first_token = list(accumulate((shard.tokens for shard in shards), initial=0))
        self._first_sequence = list(accumulate((shard.sequences for shard in shards), initial=0))
        self.tokens, self.sequences = self._first_token[-1], self._first_sequence[-1]
        self._opened: dict[int, IndexedFile] = {}
        self._block = lru_cache(maxsize=BLOCKS_KEPT)(self._permuted_block)

    def samples_of_epoch(self, epoch: int) -> tuple[int, int]:
        """Return the first sample that begins in an epoch, and their number."""
        first, end = (-(-e * self.tokens // self.seq_length) for e in (epoch, epoch + 1))
        return first, end - first

    def sample_at(self, position: int) -> int:
        """Return the sample of the stream at a position of the order."""
        return self._within_epoch(position, permute)

    def position_of(self, sample: int) -> int:
        """Return the position of a sample of the stream in the order."""
        return self._within_epoch(sample, unpermute)

    def _within_epoch(self, number: int, change: Callable[[int, int, int], int]) -> int:
        epoch = number * self.seq_length // self.tokens
        first, count = self.samples_of_epoch(epoch)
        if number - first == count - 1:
            return number
        return first + change(number - first, count - 1, key_of(self.seed, self.name, epoch, "samples"))

    def find_token(self, token: int) -> tuple[int, int]:
        """Return the entry of the endless list of sequences that has a token of the stream, and its offset there."""
        epoch, rest = divmod(token, self.tokens)
        number = bisect_right(self._first_token, rest) - 1
        rest -= self._first_token[number]
        block = self._find_block(number, rest)
        order = self._block(epoch, number, block)
        rest -= self._tokens_before(number, block * BLOCK)
        entry = int(np.searchsorted(order.begins, rest, "right")) - 1
        within = self._first_sequence[number] + block * BLOCK + entry
        return epoch * self.sequences + within, rest - int(order.begins[entry])

    def sequence_at(self, entry: int) -> int:
        """Return the sequence of the dataset at an entry of the endless list."""
        epoch, within = divmod(entry, self.sequences)
        number = bisect_right(self._first_sequence, within) - 1
        local = within - self._first_sequence[number]
        block = local // BLOCK
        order = self._block(epoch, number, block)
        return self._first_sequence[number] + block * BLOCK + int(order.sequences[local - block * BLOCK])

    def shard_of(self, sequence: int) -> tuple[int, int]:
        """Return the number of the shard of a sequence of the dataset, and the sequence's number there."""
        number = bisect_right(self._first_sequence, sequence) - 1
        return number, sequence - self._first_sequence[number]

    def parts(self, position: int) -> Iterator[Part]:
        """Yield the parts of sequences that make up the sample at a position, with its last label."""
        sample = self.sample_at(position)
        token, missing = sample * self.seq_length, self.seq_length + 1
        entry, offset = self.find_token(token)
        while missing:
            number, local = self.shard_of(self.sequence_at(entry))
            stop = min(int(self._file(number).lengths[local]), offset + missing)
            yield Part(number, local, offset, stop)
            missing -= stop - offset
            entry, offset = entry + 1, 0

    def read(self, position: int) -> np.ndarray:
        """Return the tokens of the sample at a position, with its last label, int64."""
        found = []
        for part in self.parts(position):
            file = self._file(part.shard)
            begin = int(file.offsets[part.sequence]) // file.dtype.itemsize
            found.append(file.tokens[begin + part.start : begin + part.stop])
        tokens: np.ndarray = np.concatenate(found).astype(np.int64)
        return tokens

    def reads_of(self, shard: int, sequence: int, positions: int) -> list[tuple[int, Part]]:
        """Return the positions that read a sequence, each with the part that they read; in the order of the stream.

        Args:
            shard: Number of the shard in `shards`.
            sequence: Number of the sequence in the shard.
            positions: Positions that are searched: 0 to `positions` - 1.
        """
        block, local = divmod(sequence, BLOCK)
        length, found = int(self._file(shard).lengths[sequence]), []
        first_of_block = self._first_token[shard] + self._tokens_before(shard, block * BLOCK)
        for epoch in range(positions * self.seq_length // self.tokens + 1):
            order = self._block(epoch, shard, block)
            begin = epoch * self.tokens + first_of_block
            begin += int(order.begins[int(np.flatnonzero(order.sequences == local)[0])])
            # A sample also has the first token of the next one, as its last label.
            for sample in range(max(-(-begin // self.seq_length) - 1, 0), (begin + length - 1) // self.seq_length + 1):
                position, token = self.position_of(sample), sample * self.seq_length
                start, stop = max(token - begin, 0), min(token + self.seq_length + 1 - begin, length)
                if position < positions and start < stop:
                    found.append((position, Part(shard, sequence, start, stop)))
        return found

    def _file(self, number: int) -> IndexedFile:
        if number not in self._opened:
            self._opened[number] = IndexedFile(self.shards[number].prefix)
        return self._opened[number]

    def _tokens_before(self, number: int, sequence: int) -> int:
        file = self._file(number)
        if sequence >= self.shards[number].sequences:
            return self.shards[number].tokens
        return int(file.offsets[sequence]) // file.dtype.itemsize

    def _find_block(self, number: int, token: int) -> int:
        """Return the block of a shard that has a token of the shard."""
        blocks = range(-(-self.shards[number].sequences // BLOCK))
        return bisect_right(blocks, token, key=lambda block: self._tokens_before(number, block * BLOCK)) - 1

    def _permuted_block(self, epoch: int, number: int, block: int) -> BlockOrder:
        begin = block * BLOCK
        lengths = self._file(number).lengths[begin : begin + BLOCK]
        names = np.arange(len(lengths), dtype=np.uint64) + np.uint64(self._first_sequence[number] + begin)
        order = np.argsort(mix64(names ^ np.uint64(key_of(self.seed, self.name, epoch, "sequences"))), kind="stable")
        return BlockOrder(order, np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)]))
