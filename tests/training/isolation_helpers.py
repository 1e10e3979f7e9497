"""Data of hand-made documents, for the tests of train.document_boundaries in both backends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from training_processes import SAMPLE

from nano3.data.dataset.indexed import IndexedFile
from nano3.training.dataset import Shard, TrainingData
from nano3.training.run.sample_index import SampleIndex

EOD = 2
# Lengths of documents, end-of-document token included, for samples of 16 tokens.
CASES = {
    "one document": [400],
    "documents of one token": [1] * 200,
    "tiny documents": [1, 2, 3, 1, 1, 5, 2] * 20,
    "documents as long as a sample": [16] * 20,
    "a sample and its label": [17] * 20,
    "one token short of a sample": [15] * 20,
    "mixed": [40, 1, 16, 3, 3, 17, 1, 1, 90, 15, 2, 33, 8, 8] * 3,
}


def documents_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return documents of random tokens that end with the end-of-document token."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(3, 4096, length - 1).tolist(), EOD] for length in lengths]


def write_data(folder: Path, documents: list[list[int]]) -> TrainingData:
    """Write documents as the only shard of a training split with Megatron's own writer."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / "data_00000"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    shard = Shard("train", "hand_made", prefix, 1.0, sum(map(len, documents)))
    return TrainingData(folder, (shard,), SAMPLE / "tokenizer", 4096, EOD, "f")


def open_samples(data: TrainingData, length: int, samples: int, **options: bool) -> tuple[Any, list[list[int]]]:
    """Return Megatron's samples, and the tokens of each document in each sample according to nano3's sample index."""
    from nano3.training.hf.datasets import DatasetBuilder

    cache = data.folder / "cache"
    dataset = DatasetBuilder(data, length, 1234, cache, **options).train(samples)
    index, lengths = SampleIndex(cache, samples), IndexedFile(data.shards[0].prefix).lengths
    expected = []
    for sample in range(samples):
        member, number = index.locate(sample)
        sizes = [span.stop - span.start for span in member.token_spans(number, lengths)]
        sizes[-1] -= 1  # the last token is a label only
        expected.append([size for size in sizes if size])
    return dataset, expected
