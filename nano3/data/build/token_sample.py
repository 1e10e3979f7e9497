"""Leave out tokenized documents so that each dataset has as many tokens as `sample_tokens` asks for.

The tokens that a dataset is to have are divided among its shards in proportion to what they have. Within a shard, a
document is kept if the tokens kept so far are then nearer to this proportion. So the documents are spread over all
files that the plan reads, and a shard has its share to within one document.
"""

from pathlib import Path

import numpy as np

from nano3.data.build.build_state import BuildState, Shard
from nano3.data.build.merge import fragment_path
from nano3.data.dataset.dropped import DroppedDocuments, DroppedWriter
from nano3.data.planning.plan import Plan
from nano3.utils.console import warn


def limit_tokens(state: BuildState, dropped: DroppedWriter) -> None:
    """Mark the documents that exceed `sample_tokens`.

    Args:
        state: The build; all units are finished and no shard is merged.
        dropped: Duplicates are marked already; updated.
    """
    plan = state.plan
    if plan.options.sample_tokens is None:
        return
    wanted = int(plan.options.sample_tokens)
    for number, dataset in enumerate(plan.datasets):
        shards = [shard for shard in plan.shards() if shard[1] == number and state.shard_fragments(shard)[0]]
        tokens = [int(kept_lengths(state, shard, dropped).sum(dtype=np.int64)) for shard in shards]
        total, before = sum(tokens), 0
        if total <= wanted:
            if total < wanted and dataset.rows is not None:
                warn(
                    f"dataset {dataset.name!r}: only {total:,} tokens in the rows that were chosen for "
                    f"sample_tokens={wanted:,}: the first rows of its files have more tokens than the others, or many "
                    f"are duplicates. Set a larger sample_tokens."
                )
            continue
        for shard, count in zip(shards, tokens, strict=True):
            budget = (before + count) * wanted // total - before * wanted // total
            before += count
            dropped.of_shard(shard)[~select(kept_lengths(state, shard, dropped), budget)] = 1


def kept_lengths(state: BuildState, shard: Shard, dropped: DroppedWriter) -> np.ndarray:
    """Return the int32 tokens of each document of a shard, 0 for those that are dropped.

    Args:
        state: The build.
        shard: The shard; it has fragments.
        dropped: Which documents are dropped.
    """
    fragments = state.shard_fragments(shard)[0]
    lengths = np.concatenate([np.fromfile(fragment_path(state.build, f, ".len"), np.int32) for f in fragments])
    lengths[dropped.of_shard(shard).astype(bool)] = 0
    return lengths


def select(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Return whether to keep each document, so that the kept ones have `budget` tokens to within one document.

    Args:
        lengths: Tokens of each document; a document without tokens is kept.
        budget: Number of tokens, at most the sum of `lengths`.
    """
    total = max(int(lengths.sum(dtype=np.int64)), 1)
    kept: np.ndarray = lengths == 0
    seen = taken = 0
    for number, length in enumerate(lengths.tolist()):
        seen += length
        # Twice the distance to the target without the document is at least the document's own length.
        if length and 2 * (seen * budget - taken * total) >= length * total:
            kept[number] = True
            taken += length
    return kept


def count_left_out(plan: Plan, build: Path) -> list[int]:
    """Return the number of documents of each dataset that are left out of its shards."""
    left_out = [0] * len(plan.datasets)
    shards = plan.shards()
    dropped = DroppedDocuments(build, shards)
    for shard in shards:
        left_out[shard[1]] += int(np.count_nonzero(dropped.of_shard(shard)))
    return left_out
