"""Small shards whose tokens are all different, for the tests of the order."""

from pathlib import Path

import numpy as np

from nano3.data.dataset.indexed import write_index
from nano3.training.order.stream import StreamShard


def write_shard(prefix: Path, lengths: list[int], first: int) -> StreamShard:
    """Write sequences of these lengths with the tokens first, first + 1, ..."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tokens = np.arange(first, first + sum(lengths), dtype=np.int32)
    prefix.with_suffix(".bin").write_bytes(tokens.tobytes())
    with prefix.with_suffix(".idx").open("wb") as f:
        count = len(lengths)
        write_index(f.write, lambda: iter([np.array(lengths, np.int32)]), count, count, "int32")
    return StreamShard(prefix, sum(lengths), len(lengths))


def write_dataset(folder: Path, shards: list[list[int]], first: int = 0) -> list[StreamShard]:
    """Write a shard for each list of lengths; their tokens are numbered through."""
    found = []
    for number, lengths in enumerate(shards):
        found.append(write_shard(folder / f"data_{number:05d}", lengths, first))
        first += sum(lengths)
    return found
