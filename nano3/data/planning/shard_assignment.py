"""Which documents of a batch are kept, and the shard that each goes to: the same when they are written and when they
are looked for.
"""

import numpy as np

from nano3.data.planning.plan import SPLITS, DatasetPlan
from nano3.data.sources.readers import Batch


def drop_short(batch: Batch, least: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, keys and places of a batch's documents of at least `least` characters."""
    texts, keys, places = batch.texts, batch.keys, batch.offsets
    if least:
        long = [i for i, text in enumerate(texts) if len(text) >= least]
        if len(long) < len(texts):
            return [texts[i] for i in long], keys[long], places[long]
    return texts, keys, places


def assign_shards(dataset: DatasetPlan, splits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64 shard, counted in the dataset and split, of documents with these splits and places in the dataset."""
    shards = np.empty(len(places), np.int64)
    for split in range(len(SPLITS)):
        mine = splits == split
        shards[mine] = np.searchsorted(dataset.shard_bounds[split], places[mine], "right") - 1
    return shards
