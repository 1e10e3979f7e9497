"""Megatron's own GPTDataset over a checked data folder.

megatron.core is imported when the first dataset is built. That takes about ten seconds, since its package imports the
tensor-parallel layers and torch's compiler.
"""

import itertools
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.training.dataset import Shard, TrainingData, blend_of
from nano3.training.order.plan import OrderPlan
from nano3.training.order.streams import Streams

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


@dataclass(frozen=True)
class TokenizerFacts:
    """What Megatron's dataset reads of a tokenizer; training encodes nothing.

    Loading the tokenizer takes seconds for a large vocabulary, once for the training and each validation set.
    """

    path: str
    vocab_size: int
    eod: int

    @property
    def unique_identifiers(self) -> dict[str, str]:
        """Megatron names the files of the index cache after these: they are those of its own tokenizer class."""
        return {
            "class": "megatron.core.tokenizers.text.models.default_tokenizer.DefaultTokenizerText",
            "tokenizer_path": self.path,
        }


class DatasetBuilder:
    """Builds Megatron datasets for one run. Under torchrun rank 0 writes the index cache and the others read it."""

    def __init__(
        self,
        data: TrainingData,
        seq_length: int,
        seed: int,
        cache: Path,
        isolate: bool = False,
        mask_eod: bool = False,
        tokenizer: Any = None,
        surplus: float = 0.005,
    ) -> None:
        """Create the builder.

        Args:
            data: The prepared data.
            seq_length: Tokens in a sample.
            seed: Random seed of the order.
            cache: Folder of the index cache.
            isolate: Whether samples come with the bounds of their documents.
            mask_eod: Whether the prediction after an end-of-document token is left out of the loss.
            tokenizer: The tokenizer that the names of the files depend on; None stands for Megatron's default one.
            surplus: Share of samples that each shard gets in addition.
        """
        self.data, self.seq_length, self.seed, self.cache = data, seq_length, seed, cache
        self.isolate, self.mask_eod, self.surplus = isolate, mask_eod, surplus
        self.tokenizer = tokenizer or TokenizerFacts(str(data.tokenizer), data.vocab_size, data.eod_id)

    def train(self, samples: int, order: OrderPlan | None = None) -> Any:
        """Return the training samples. Seed, blend and `samples` together determine their order, or else the plan.

        Args:
            samples: Their number.
            order: The plan of a run in nano3's order.
        """
        if order:
            from nano3.training.order.samples import PlannedDataset

            config = self._config(0, self.data.split("train"))
            return PlannedDataset(order, Streams(order, self.data.folder), config)
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

        blends: list[tuple[list[str], list[float]] | None] = [None, None, None]
        blends[split] = blend_of(shards)
        return GPTDatasetConfig(
            random_seed=self.seed,
            sequence_length=self.seq_length,
            path_to_cache=str(self.cache),
            blend_per_split=blends,
            tokenizer=self.tokenizer,
            mid_level_dataset_surplus=self.surplus,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=self.mask_eod,
            create_attention_mask=False,
            inter_document_masking=self.isolate,
        )


@dataclass(frozen=True)
class MicroBatch:
    """The model inputs of a micro batch, one dict for each forward pass. The losses of the passes add up to its loss.

    `counted` is the share of its predictions that count in the loss.
    """

    passes: "tuple[dict[str, torch.Tensor], ...]"
    counted: float = 1.0


def collate(dataset: Any, indices: range) -> "dict[str, torch.Tensor]":
    """Return the model inputs of some samples, int64 of shape [micro_batch_size, seq_length].

    The labels are already shifted by one. `cu_seqlens` are the bounds of the documents, if the samples have them.

    Args:
        dataset: A Megatron dataset.
        indices: The samples.
    """
    import torch

    rows = [dataset[i] for i in indices]
    labels = torch.stack([r["labels"].masked_fill(r["loss_mask"] == 0, IGNORED) for r in rows])
    batch = {"input_ids": torch.stack([r["tokens"] for r in rows]), "labels": labels, "shift_labels": labels}
    bounds = {"cu_seqlens": torch.stack([r["cu_seqlens"] for r in rows])} if "cu_seqlens" in rows[0] else {}
    return batch | bounds


def split_into_passes(batch: "dict[str, torch.Tensor]", isolate: bool, masked: bool) -> MicroBatch:
    """Return the forward passes of a collated batch: one, or one for each document.

    A pass of its own isolates a document completely. It has no padding, which would be routed to experts like text, and
    its result does not depend on the size of other documents.

    Args:
        batch: Result of `collate`.
        isolate: Whether documents are isolated; the samples must then have bounds.
        masked: Whether some predictions do not count in the loss, so that batches have different weights.
    """
    import torch

    if not isolate and not masked:
        return MicroBatch((batch,))
    inputs = {name: tensor for name, tensor in batch.items() if name != "cu_seqlens"}
    labels = batch["labels"]
    counted = int((labels != IGNORED).sum())
    # Given this number, the model returns the sum of the losses divided by it; otherwise their mean.
    share = {"num_items_in_batch": torch.tensor(max(counted, 1))}
    if not isolate:
        return MicroBatch((inputs | share,), counted / labels.numel())
    passes = (
        {name: tensor[sample : sample + 1, first:end] for name, tensor in inputs.items()} | share
        for sample, bounds in enumerate(batch["cu_seqlens"])
        for first, end in document_bounds(bounds)
    )
    return MicroBatch(tuple(passes), counted / labels.numel())


def document_bounds(padded: "torch.Tensor") -> list[tuple[int, int]]:
    """Return first token and end of each document of a sample.

    Args:
        padded: Bounds from GPTDataset: from 0 up to the number of tokens, which is repeated.
    """
    return [(first, end) for first, end in itertools.pairwise(padded.tolist()) if first < end]
