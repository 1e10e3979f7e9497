"""The callback that nano3 registers with Megatron-Bridge: metrics, stopping, and marking checkpoints.

Megatron-Bridge finds the events by method name, so this module does not import it. During iteration i, events see
`train_state.step == i - 1` until the step is counted; evaluation and checkpoint events see `step == i`.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nano3.training.cost.throughput import Throughput
from nano3.training.megatron.checkpoints import TRACKER, CheckpointFinisher, record_begun
from nano3.training.megatron.errors import divergence_message
from nano3.training.megatron.expert_counts import ExpertCounts
from nano3.training.megatron.over_ranks import (
    all_parameters,
    loss_from_last_stage,
    max_over_ranks,
    moe_balance,
    mtp_metrics,
    reads_own_samples,
    sum_over_ranks,
    sum_values_over_ranks,
)
from nano3.training.megatron.saving import remove_failed
from nano3.training.order.plan import OrderPlan
from nano3.training.order.plan_text import stage_sentence
from nano3.training.run import index_cache
from nano3.training.run.checkpoints import CheckpointInfo, folder_name, write_checkpoint_info
from nano3.training.run.fed_tokens import FedTokens
from nano3.training.run.guard import Guard
from nano3.training.run.hang_watch import note_progress
from nano3.training.run.metrics import Metrics
from nano3.training.run.outcome import SaveHook
from nano3.training.run.rank_sync import StopPoller
from nano3.training.run.startup_timer import StartupTimer
from nano3.training.run.stop import StopRequest
from nano3.utils.console import is_rank_zero, say, warn
from nano3.utils.disk_errors import FULL, allow_full_disk
from nano3.utils.errors import Failure

# How often the ranks agree on stopping. This waits for the GPU, and launchers allow two minutes between a signal and
# the kill.
STOP_POLL_S = 5.0


@dataclass
class StepTimer:
    """Seconds per training step, without validation and saving."""

    now: Callable[[], float] = time.monotonic
    busy: float = 0.0
    steps: int = 0
    _step_started: float = 0.0
    _last_end: float | None = None

    def start_step(self) -> None:
        """Mark the start of a step."""
        self._step_started = self.now()

    def end_step(self) -> None:
        """Count a step, from the end of the previous one unless `interrupt` was called in between."""
        end = self.now()
        self.busy += end - (self._step_started if self._last_end is None else self._last_end)
        self.steps += 1
        self._last_end = end

    def interrupt(self) -> None:
        """Exclude the time since the last step: validation or a checkpoint ran."""
        self._last_end = None

    def take(self) -> float:
        """Return the mean seconds per step since the last call; 0 without a step."""
        mean = self.busy / max(self.steps, 1)
        self.busy, self.steps = 0.0, 0
        return mean


class DatasetEval(Protocol):
    """Measures the validation loss of each dataset. `shares` are their shares of the blend, by name."""

    shares: dict[str, float]

    def __call__(self, context: Any) -> dict[str, float]:
        """Return dataset name -> loss in nats per token, given a callback context."""


@dataclass
class RunContext:
    """What the callback needs to know about a run besides Megatron-Bridge's context.

    `index_cache` is the folder in which Megatron writes the order of samples. `save_interval` 0 means no checkpoints.
    `flops_per_token` None means that the architecture is not known; Megatron-Bridge's count is then used.
    `guard` keeps its window in the checkpoints. `order` is the plan of the samples, None for Megatron's order.
    """

    metrics: Metrics
    stop: StopRequest
    on_save: SaveHook
    save_folder: Path
    index_cache: Path
    log_interval: int
    global_batch_size: int
    seq_length: int
    save_interval: int
    train_iters: int
    keep_last: int = 0
    startup: StartupTimer = field(default_factory=StartupTimer)
    run_identity: dict[str, Any] = field(default_factory=dict)
    mutable_settings: dict[str, Any] = field(default_factory=dict)
    validation: DatasetEval | None = None
    flops_per_token: float | None = None
    guard: Guard | None = None
    order: OrderPlan | None = None

    @property
    def guard_decides(self) -> bool:
        """Whether the guard decides what follows an iteration that diverges."""
        return self.guard is not None and self.guard.action != "none"


class TrainingHooks:
    """Logs metrics, agrees on stopping, and marks checkpoints, at Megatron-Bridge's callback events.

    `iteration` is the last finished one. `reason` is set when all ranks have agreed to stop. `saved` is the last
    complete checkpoint.
    """

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.timer = StepTimer()
        self.reason = ""
        self.iteration = 0
        self.saved: Path | None = None
        self.finisher = CheckpointFinisher(run.save_folder, run.keep_last)
        self.fed = FedTokens()
        self.first_step_s: float | None = None
        self._started = time.monotonic()
        self._throughput = Throughput(run.global_batch_size * run.seq_length, run.flops_per_token)
        self._experts: ExpertCounts | None = None
        self._parameters = 0
        self._validated = -1
        self._before_eval = "start"  # the part of the time that a validation interrupts
        self._lr: float | None = None
        single_rank = os.environ.get("WORLD_SIZE", "1") == "1"
        poll_s = 0.0 if single_rank else STOP_POLL_S
        self._stop_poller = StopPoller(max_over_ranks, run.stop.exit_iteration, seconds=poll_s)

    def on_train_start(self, context: Any) -> None:
        """Read the iteration, the size and the work of the model; mark the index cache complete."""
        index_cache.mark_complete(self.run.index_cache)
        self.iteration = int(context.state.train_state.step)
        self._throughput = self._make_throughput(context.state.cfg)
        experts = getattr(context.state.cfg.model, "num_moe_experts", None)
        self._experts = ExpertCounts.watch(context.model, experts, max_over_ranks)
        self._parameters = all_parameters(context.model)
        self.run.startup.mark("model, data and checkpoint")

    def on_train_step_start(self, context: Any) -> None:
        """Record the learning rate of this step; at its end the schedule has advanced."""
        self.timer.start_step()
        if self.first_step_s is not None:
            self.run.metrics.clock.enter("step")
        note_progress(int(context.state.train_state.step))
        if self.run.order and (text := stage_sentence(self.run.order, int(context.state.train_state.step) + 1)):
            say(text)
        if (int(context.state.train_state.step) + 1) % self.run.log_interval == 0:
            self._lr = _learning_rate(context.optimizer)
            if self._experts:
                self._experts.start()

    def on_train_step_end(self, context: Any) -> None:
        """Check for divergence, log, and agree on stopping.

        The gradient norm is on the host already, and it is not finite if the loss is not (Megatron-Bridge also checks
        the loss of every micro batch). The loss is fetched only for logging: fetching it in every step would leave the
        GPU idle.

        Raises:
            Failure: The gradient norm or the loss is not finite, and there is no guard to decide about it.
        """
        iteration = int(context.state.train_state.step) + 1
        make_scalar(context.grad_norm)
        self.timer.end_step()
        self.fed.end_step()
        if self.first_step_s is None:
            self.first_step_s = self.timer.take()
            self.run.startup.mark("first step")
            say(self.run.startup.sentence())
        self.run.metrics.clock.enter("step")
        if not self.run.guard_decides and context.grad_norm is not None and not math.isfinite(context.grad_norm):
            raise Failure(divergence_message(iteration, f"gradient norm {float(context.grad_norm)}"))
        self.iteration = iteration
        note_progress(iteration, "save" if self.saves_after(iteration) else "step")
        if iteration % self.run.log_interval == 0:
            loss = extract_loss(context.loss_dict)
            if not self.run.guard_decides and loss is not None and not math.isfinite(loss):
                raise Failure(divergence_message(iteration, f"loss {loss}"))
            self._log(context, iteration, loss)
        if not self.reason and iteration < self.run.train_iters and self._stop_poller.due(iteration):
            self.reason = self.run.stop.agreed(iteration, lambda own: self._stop_poller.any_rank(iteration, own))
        if self.reason:
            # Megatron-Bridge saves and leaves its loop after an iteration that is a multiple of exit_interval.
            context.state.cfg.train.exit_interval = iteration
        if self.saves_after(iteration):
            if is_rank_zero():
                self._record_begun(iteration)
            self.run.metrics.clock.enter("save")  # until the next step, apart from a validation

    def _record_begun(self, iteration: int) -> None:
        """Record that a save begins. If the disk is full, the save that follows fails, and is counted."""
        full = f"{self.run.save_folder}: no space left on the device, before iteration {iteration} is saved"
        with allow_full_disk(lambda: warn(full)):
            record_begun(self.run.save_folder, iteration)

    def saves_after(self, iteration: int) -> bool:
        """Return whether Megatron-Bridge saves after this iteration."""
        every = self.run.save_interval
        return every > 0 and (iteration % every == 0 or self.is_last(iteration))

    def is_last(self, iteration: int) -> bool:
        """Return whether the training ends after this iteration."""
        return bool(self.reason) or iteration >= self.run.train_iters

    def on_eval_start(self, context: Any) -> None:
        """Exclude the validation from the time per step."""
        self.timer.interrupt()
        self._before_eval = self.run.metrics.clock.enter("valid")
        note_progress(int(context.state.train_state.step), "validation")

    def on_eval_end(self, context: Any) -> None:
        """Measure each dataset, once per iteration: Megatron-Bridge validates again at the end of the run.

        Megatron-Bridge's own loss is not recorded. It uses other samples at each validation and with another number of
        ranks (a "cyclic" loader, regardless of dataset.dataloader_type), so two of its losses are not comparable.
        """
        self.timer.interrupt()
        iteration = int(context.state.train_state.step)
        if iteration != self._validated and self.run.validation:
            self.run.metrics.log_valid(iteration, self.run.validation(context), self.run.validation.shares)
        self._validated = iteration
        self.run.metrics.clock.enter(self._before_eval)

    def on_checkpoint_save(self, context: Any) -> None:
        """Mark a complete checkpoint and call `on_save`. A folder without the mark is an interrupted save."""
        import torch.distributed as dist

        self.timer.interrupt()
        if dist.get_rank() != 0:
            return
        # An asynchronous save completes some iterations later. The tracker file, just written, names its iteration.
        iteration = int((self.run.save_folder / TRACKER).read_text())
        folder = self.run.save_folder / folder_name(iteration)
        if not folder.is_dir():
            warn(f"{folder} was saved and is already gone: it is not counted as a checkpoint.")
            return
        samples = iteration * self.run.global_batch_size
        info = CheckpointInfo(
            iteration=iteration,
            consumed_samples=samples,
            consumed_tokens=samples * self.run.seq_length,
            elapsed_s=time.monotonic() - self._started,
            parameters=self._parameters,
            run_identity=self.run.run_identity,
            mutable_settings=self.run.mutable_settings,
            guard_window=self._guard_window(iteration),
            order=self.run.order.to_json() if self.run.order else {},
        )
        self.run.metrics.flush()
        try:
            write_checkpoint_info(folder, info)
        except OSError as error:
            if error.errno not in FULL or self.is_last(self.iteration):
                raise
            remove_failed(folder)
            warn(
                f"SAVE FAILED: {folder} could not be marked as complete, and was removed: no space left on the device. "
                "Training continues; the next checkpoint is taken at the next interval."
            )
            return
        self.saved = folder
        self.run.on_save(iteration, folder)
        self.finisher.start(folder, info)

    def _guard_window(self, iteration: int) -> list[list[float]]:
        return [list(one) for one in self.run.guard.detector.observations(iteration)] if self.run.guard else []

    def _log(self, context: Any, iteration: int, loss: float | None) -> None:
        import torch

        seconds = self.timer.take()
        if not seconds:
            seconds = self.first_step_s or math.nan
        loss = loss_from_last_stage(loss)
        # A tensor on the GPU with skip_sync_grad_norm_across_mp.
        norm = None if context.grad_norm is None else float(context.grad_norm)
        further = mtp_metrics(getattr(context.state.cfg.model, "mtp_num_layers", None), sum_values_over_ranks)
        fed = self.fed.metrics(sum_over_ranks, reads_own_samples())
        if not math.isfinite(loss) or not math.isfinite(norm or 0.0):
            return  # the guard decides about it
        samples = int(context.state.train_state.consumed_train_samples) + self.run.global_batch_size
        values: dict[str, Any] = {
            "iteration": iteration,
            "consumed_samples": samples,
            "consumed_tokens": samples * self.run.seq_length,
            "loss": loss,
            **further,
            "lr": self._lr,
            "grad_norm": norm,
            **self._throughput.metrics(seconds),
            "memory_gb": max_over_ranks([torch.cuda.max_memory_allocated() / 2**30])[0],
            **moe_balance(getattr(context.state.cfg.model, "num_moe_experts", None), sum_values_over_ranks),
            **(self._experts.metrics() if self._experts else {}),
            **(self.run.order.epoch_metrics(iteration) if self.run.order else {}),
            **fed,
        }
        self.run.metrics.log(**{k: v for k, v in values.items() if v is not None})

    def _make_throughput(self, cfg: Any) -> Throughput:
        import torch

        tokens, flops = self.run.global_batch_size * self.run.seq_length, self.run.flops_per_token
        if flops is None:
            from megatron.bridge.training.utils.flop_utils import num_floating_point_operations

            flops = float(num_floating_point_operations(cfg, self.run.global_batch_size)) / tokens
        return Throughput(tokens, flops, torch.distributed.get_world_size(), torch.cuda.get_device_name())


def make_scalar(norm: Any) -> None:
    """Take the only dimension from a gradient norm that is still on the GPU (skip_sync_grad_norm_across_mp), in place.

    Megatron-Bridge writes the same tensor into its own line after the callbacks, and torch formats a number only.

    Args:
        norm: Tensor of shape (1,), or a float or None, which stay as they are.
    """
    if hasattr(norm, "squeeze_"):
        norm.squeeze_()


def extract_loss(losses: dict[str, Any] | None) -> float | None:
    """Return the cross entropy per token in Megatron-Bridge's dict; None before the last pipeline stage."""
    return float(losses["lm loss"]) if losses and "lm loss" in losses else None


def _learning_rate(optimizer: Any) -> float | None:
    return next((float(g["lr"]) for g in optimizer.param_groups if g and not g.get("is_decoupled_lr")), None)
