"""Validation loss per dataset, measured with Megatron-Bridge's `evaluate`."""

import copy
from collections.abc import Callable
from typing import Any

from nano3.training.dataset import Shard, TrainingData, blend_of
from nano3.training.run.hang_watch import note_progress


class PerDatasetEval:
    """Callable that measures each dataset's validation loss, in nats per token.

    Every call evaluates the same samples: `eval_iters` global batches divided among the datasets, at least one each.
    The counters of the run (consumed validation samples, number of validation batches) are restored.
    """

    def __init__(self, data: TrainingData, eval_iters: int, forward_step: Callable[..., Any]) -> None:
        """Divide the batches among the datasets.

        Args:
            data: The prepared data.
            eval_iters: Global batches in one validation.
            forward_step: Megatron-Bridge's forward step function.
        """
        self.by_dataset, self.shares = data.datasets("valid"), data.shares("valid")
        self.batches = -(-eval_iters // max(len(self.by_dataset), 1))
        self.forward_step = forward_step
        self._megatron_datasets: dict[str, Any] = {}

    def __call__(self, context: Any) -> dict[str, float]:
        """Return dataset name -> loss, given the callback context of a validation that has ended."""
        state = context.state
        consumed, planned = state.train_state.consumed_valid_samples, state.cfg.validation.eval_iters
        state.cfg.validation.eval_iters = self.batches
        try:
            return {name: self._loss(name, shards, context) for name, shards in self.by_dataset.items()}
        finally:
            state.cfg.validation.eval_iters = planned
            state.train_state.consumed_valid_samples = consumed

    def _loss(self, name: str, shards: tuple[Shard, ...], context: Any) -> float:
        from megatron.bridge.training.eval import evaluate

        from nano3.training.megatron.callbacks import extract_loss
        from nano3.training.megatron.over_ranks import loss_from_last_stage

        note_progress(int(context.state.train_state.step), "validation")
        if name not in self._megatron_datasets:
            self._megatron_datasets[name] = self._dataset(shards, context.state.cfg)
        losses, _, _ = evaluate(
            context.state,
            self.forward_step,
            self._batches(name, context.state.cfg),
            context.model,
            None,
            context.state.cfg,
        )
        return loss_from_last_stage(extract_loss(losses))

    def _dataset(self, shards: tuple[Shard, ...], cfg: Any) -> Any:
        """Return the Megatron dataset of `batches` x global batch size validation samples."""
        from megatron.bridge.data.utils import get_dataset_provider

        config = copy.copy(getattr(cfg.dataset, "gpt", cfg.dataset))  # the provider of nano3's order has it inside
        config.blend_per_split = [None, blend_of(shards), None]
        samples = self.batches * cfg.validation.eval_global_batch_size
        return get_dataset_provider(config)([0, samples, 0], config)[1]

    def _batches(self, name: str, cfg: Any) -> Any:
        """Return one iterator, even with virtual pipeline stages: `evaluate` distributes it to them."""
        from megatron.bridge.data.samplers import build_pretraining_data_loader
        from megatron.core import parallel_state
        from megatron.core.rerun_state_machine import RerunDataIterator

        loader = build_pretraining_data_loader(
            self._megatron_datasets[name],
            0,
            "single",
            cfg.validation.eval_micro_batch_size,
            0,
            cfg.dataset.data_sharding,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
        )
        return RerunDataIterator(iter(loader))
