"""Validation loss of every dataset on its own, on Megatron-Bridge's model, with Megatron-Bridge's own `evaluate`."""

import copy
from collections.abc import Callable
from typing import Any

from nano3.training.dataset import Shard, TrainingData, blend


class PerDatasetEval:
    """Called at the end of a validation with its callback context; returns dataset name -> loss in nats per token.

    `eval_iters` global batches are shared out over the datasets, at least one each, and are the same ones every time.
    The run's own counters (validation samples consumed, number of validation batches) are left as they were.
    """

    def __init__(self, data: TrainingData, eval_iters: int, forward_step: Callable[..., Any]) -> None:
        self.by_dataset, self.shares = data.datasets("valid"), data.shares("valid")
        self.batches = -(-eval_iters // max(len(self.by_dataset), 1))
        self.forward_step = forward_step
        self._sets: dict[str, Any] = {}

    def __call__(self, context: Any) -> dict[str, float]:
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

        from nano3.training.megatron.callbacks import extract_loss, loss_from_last_stage

        if name not in self._sets:
            self._sets[name] = self._dataset(shards, context.state.cfg)
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
        """The validation samples of one dataset: a Megatron dataset of eval batches x global batch size samples."""
        from megatron.bridge.data.utils import get_dataset_provider

        config = copy.copy(cfg.dataset)
        config.blend_per_split = [None, blend(shards), None]
        samples = self.batches * cfg.validation.eval_global_batch_size
        return get_dataset_provider(config)([0, samples, 0], config)[1]

    def _batches(self, name: str, cfg: Any) -> Any:
        """One iterator, also with virtual pipeline stages: `evaluate` shares it out to them itself."""
        from megatron.bridge.data.samplers import build_pretraining_data_loader
        from megatron.core import parallel_state
        from megatron.core.rerun_state_machine import RerunDataIterator

        loader = build_pretraining_data_loader(
            self._sets[name],
            0,
            "single",
            cfg.validation.eval_micro_batch_size,
            0,
            cfg.dataset.data_sharding,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
        )
        return RerunDataIterator(iter(loader))
