"""Megatron's own GPTDataset over a checked data folder.

megatron.core is imported when the first dataset is built. That takes about ten seconds, since its package imports the
tensor-parallel layers and torch's compiler.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.training.dataset import Shard, TrainingData, blend_of

if TYPE_CHECKING:
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

# Label that cross entropy ignores; Megatron marks such tokens with loss_mask 0.
IGNORED = -100


@dataclass(frozen=True)
class ValidSet:
    """Validation samples of one dataset: its share of the blend and the number of global batches that are read."""

    dataset: str
    share: float
    samples: Any
    batches: int


@dataclass(frozen=True)
class Datasets:
    """`train` holds train_iters x global_batch_size samples (or a few more); `valid` one set per dataset."""

    train: Any
    valid: tuple[ValidSet, ...]


class DatasetBuilder:
    """Builds Megatron datasets for one run. Under torchrun rank 0 writes the index cache and the others read it."""

    def __init__(self, data: TrainingData, seq_length: int, seed: int, cache: Path) -> None:
        self.data, self.seq_length, self.seed, self.cache = data, seq_length, seed, cache

    def train(self, samples: int) -> Any:
        """Return the training samples. Seed, blend and `samples` together determine their order."""
        return self._build(0, self.data.split("train"), samples)

    def valid(self, batches: int, global_batch_size: int) -> tuple[ValidSet, ...]:
        """Return one validation set per dataset, with at least one global batch each and about `batches` in total.

        Args:
            batches: Global batches of all sets together.
            global_batch_size: Samples in a global batch.
        """
        by_dataset, shares = self.data.datasets("valid"), self.data.shares("valid")
        each = -(-batches // len(by_dataset))
        return tuple(
            ValidSet(name, shares[name], self._build(1, shards, each * global_batch_size), each)
            for name, shards in by_dataset.items()
        )

    def _build(self, split: int, shards: Sequence[Shard], samples: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
            from megatron.core.datasets.gpt_dataset import GPTDataset

            sizes = [0, 0, 0]
            sizes[split] = samples
            config = self._config(split, shards)
            return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[split]

    def _config(self, split: int, shards: Sequence[Shard]) -> "GPTDatasetConfig":
        from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
        from megatron.core.tokenizers import MegatronTokenizer

        blends: list[tuple[list[str], list[float]] | None] = [None, None, None]
        blends[split] = blend_of(shards)
        tokenizer = MegatronTokenizer.from_pretrained(
            str(self.data.tokenizer), metadata_path={"library": "huggingface"}
        )
        return GPTDatasetConfig(
            random_seed=self.seed,
            sequence_length=self.seq_length,
            path_to_cache=str(self.cache),
            blend_per_split=blends,
            tokenizer=tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )


def collate(dataset: Any, indices: range) -> "dict[str, torch.Tensor]":
    """Return the model inputs of some samples, int64 of shape [micro_batch_size, seq_length].

    The labels are already shifted by one.

    Args:
        dataset: A Megatron dataset.
        indices: The samples.
    """
    import torch

    rows = [dataset[i] for i in indices]
    labels = torch.stack([r["labels"].masked_fill(r["loss_mask"] == 0, IGNORED) for r in rows])
    return {"input_ids": torch.stack([r["tokens"] for r in rows]), "labels": labels, "shift_labels": labels}
