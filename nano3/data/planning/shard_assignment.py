"""Which documents of a batch are kept, and which shard each goes to.

Tokenization and `source_lookup` both use these functions, so a document is found where it was written.
"""

import numpy as np

from nano3.data.planning.plan import SPLITS, DatasetPlan
from nano3.data.sources.readers import Batch


def drop_short(batch: Batch, min_chars: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return texts, keys and offsets of a batch's documents that have at least `min_chars` characters."""
    texts, keys, offsets = batch.texts, batch.keys, batch.offsets
    if min_chars:
        long = [i for i, text in enumerate(texts) if len(text) >= min_chars]
        if len(long) < len(texts):
            return [texts[i] for i in long], keys[long], offsets[long]
    return texts, keys, offsets


def assign_shards(dataset: DatasetPlan, splits: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the shard of each document: the one of its split that contains its offset.

    Args:
        dataset: Plan of the dataset.
        splits: int8 split of each document.
        offsets: int64 offset of each document in the dataset.

    Returns:
        int64 shard numbers, counted from 0 in each split of the dataset.
    """
    shards = np.empty(len(offsets), np.int64)
    for split in range(len(SPLITS)):
        mine = splits == split
        shards[mine] = np.searchsorted(dataset.shard_bounds[split], offsets[mine], "right") - 1
    return shards
