"""Measure cuts and padding of three ways to make samples of documents: concatenate, and best-fit packing.

    python benchmarks/data/packing.py DATA --seq-length 1024 4096

DATA is prepared data. `concatenate` is what nano3 and Megatron do: the documents one after the other, cut at every
seq_length tokens. `best fit` is that of H. Ding et al., "Fewer Truncations Improve Language Modeling", ICML 2024: each
document is cut into pieces of seq_length tokens, and the pieces are packed, the longest first, each into the sample
with the smallest room that is large enough; what remains of a sample is padding. A document that is longer than
seq_length is cut in both; "needless cuts" are those that a document of at most seq_length tokens gets.
"""

import argparse
from bisect import bisect_left, insort
from pathlib import Path

import numpy as np

from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import load_manifest


def train_lengths(folder: Path) -> np.ndarray:
    """Return the tokens of each document of the train split."""
    shards = [shard for shard in load_manifest(folder).shards if shard.split == "train"]
    return np.concatenate([np.asarray(IndexedFile(folder / shard.prefix).lengths, np.int64) for shard in shards])


def concatenated(lengths: np.ndarray, size: int) -> dict[str, float]:
    """Return the cuts of samples of `size` tokens of the documents in a random order."""
    order = np.random.default_rng(1).permutation(lengths)
    ends = np.cumsum(order)
    cuts = (ends - 1) // size - (ends - order) // size
    return summary(lengths, int(cuts.sum()), int(cuts[order <= size].sum()), -(-int(ends[-1]) // size), size)


def packed(lengths: np.ndarray, size: int) -> dict[str, float]:
    """Return the cuts and the padding of best-fit packing."""
    whole, rest = np.divmod(lengths, size)
    samples, rooms = int(whole.sum()), list[int]()
    for piece in np.sort(rest[rest > 0])[::-1].tolist():
        at = bisect_left(rooms, piece)
        room = rooms.pop(at) if at < len(rooms) else size
        samples += room == size
        if room > piece:
            insort(rooms, room - piece)
    return summary(lengths, int((whole - (rest == 0)).sum()), 0, samples, size)


def summary(lengths: np.ndarray, cuts: int, needless: int, samples: int, size: int) -> dict[str, float]:
    """Return the figures of one row."""
    short = max(int((lengths <= size).sum()), 1)
    return {
        "cuts per document": cuts / len(lengths),
        "needless cuts per short document": needless / short,
        "padding": 1 - int(lengths.sum()) / (samples * size),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seq-length", type=int, nargs="+", default=[1024, 4096, 8192])
    args = parser.parse_args()
    lengths = train_lengths(args.data)
    print(f"{len(lengths):,} documents, {int(lengths.sum()):,} tokens, median {int(np.median(lengths)):,}\n")
    print(
        "| seq_length | documents longer | samples | cuts per document | needless cuts per short document | padding |"
    )
    print("|---|---|---|---|---|---|")
    for size in args.seq_length:
        for name, measure in (("concatenate", concatenated), ("best fit", packed)):
            found = measure(lengths, size)
            cells = [f"{size:,}", f"{(lengths > size).mean():.0%}", name, f"{found['cuts per document']:.2f}"]
            cells += [f"{found['needless cuts per short document']:.2f}", f"{found['padding']:.2%}"]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
