"""The training loop of the transformers backend, on accelerate."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.pretrain import PretrainConfig
from nano3.training.cost.throughput import Throughput
from nano3.training.hf.batch import BatchPlan
from nano3.training.hf.checkpoints import CheckpointWriter
from nano3.training.hf.datasets import Datasets, MicroBatch, collate, split_into_passes
from nano3.training.hf.expert_bias import ExpertBalance
from nano3.training.hf.rng import rng_state
from nano3.training.order.plan import OrderPlan
from nano3.training.order.plan_text import stage_sentence
from nano3.training.run.checkpoints import CheckpointInfo
from nano3.training.run.expert_load import load_metrics
from nano3.training.run.failed_saves import FailedSaves, SaveError
from nano3.training.run.fed_tokens import FedTokens
from nano3.training.run.guard import Guard, Verdict
from nano3.training.run.hang_watch import note_progress
from nano3.training.run.metrics import Metrics
from nano3.training.run.outcome import Outcome, SaveHook
from nano3.training.run.stop import StopRequest
from nano3.utils.console import say

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


@dataclass
class TrainerComponents:
    """The parts of an assembled run. `run_identity` and `mutable_settings` are stored in its checkpoints."""

    config: PretrainConfig
    plan: BatchPlan
    accelerator: "Accelerator"
    model: Any
    optimizer: Any
    scheduler: Any
    balance: ExpertBalance
    guard: Guard
    datasets: Datasets
    metrics: Metrics
    throughput: Throughput
    writer: CheckpointWriter
    parameters: int
    run_identity: dict[str, Any]
    mutable_settings: dict[str, Any]
    on_save: SaveHook
    export: Callable[[Any, Path], None]
    order: OrderPlan | None = None

    @property
    def isolates(self) -> bool:
        """Whether the documents of a sample do not see each other."""
        return self.config.train.document_boundaries == "isolate"


@dataclass
class Step:
    """One iteration: mean loss over all ranks in nats per token, gradient norm before clipping, its rate.

    The weights have changed only if the guard's verdict is "continue". `expert_counts` are the tokens of each expert,
    of shape [layers, experts], summed over all ranks.
    """

    loss: float
    grad_norm: float
    lr: float
    expert_counts: "torch.Tensor | None"
    verdict: Verdict = "continue"

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient norm are numbers that can be recorded."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass
class LoopClock:
    """Seconds of training since the last report, and wall-clock seconds of the run."""

    elapsed_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    training_s: float = 0.0
    iterations: int = 0

    def since_start_s(self) -> float:
        """Return the seconds since this start."""
        return time.monotonic() - self.started

    def elapsed_s(self) -> float:
        """Return the wall-clock seconds of this run, including earlier starts."""
        return self.elapsed_before + self.since_start_s()

    def take(self) -> float:
        """Return the seconds per iteration since the last call."""
        mean = self.training_s / max(1, self.iterations)
        self.training_s, self.iterations = 0.0, 0
        return mean


class Loop:
    """Trains from `iteration` to train.train_iters, a limit or a signal."""

    def __init__(self, parts: TrainerComponents, iteration: int, clock: LoopClock, saved: Path | None) -> None:
        self.parts, self.iteration, self.clock, self.saved = parts, iteration, clock, saved
        self.failed_saves = FailedSaves(parts.config.checkpoint.max_failed_saves)
        self.fed = FedTokens()

    def run(self, stop: StopRequest) -> Outcome:
        """Train, and return how it ended.

        Raises:
            Failure: Loss or gradient is not finite, or the guard gives up; names the iteration.
        """
        t, c = self.parts.config.train, self.parts.config.checkpoint
        clock, startup = self.parts.metrics.clock, self.parts.metrics.startup
        if self.iteration == 0 and t.eval_interval:
            with clock.during("valid"):
                self.validate()
            if startup:
                startup.mark("validation")
        while self.iteration < t.train_iters:
            step = self.next_step()
            clock.enter("step")  # the first one ended the start
            if startup:
                startup.mark("first step")
            if step and step.verdict == "rollback":
                return Outcome("rolled back", self.iteration, self.saved, "guard.action=rollback")
            self.iteration += 1
            note_progress(self.iteration)
            last = self.iteration == t.train_iters
            reason = "" if last else stop.agreed(self.iteration, self._any_rank)
            logged = self.iteration % self.parts.config.logger.log_interval == 0 or self.iteration == 1
            if step and step.is_finite and (logged or last or reason):
                self.report(step)
            if t.eval_interval and (last or self.iteration % t.eval_interval == 0):
                with clock.during("valid"):
                    self.validate()
            if last or reason or self.iteration % c.save_interval == 0:
                with clock.during("save"):
                    self.save(last, final=last or bool(reason))
            if reason:
                return Outcome("stopped", self.iteration, self.saved, reason)
        return Outcome("finished", self.iteration, self.saved)

    def next_step(self) -> Step | None:
        """Take the next step and measure its time; None if the run leaves the iteration out."""
        if self.parts.order and (sentence := stage_sentence(self.parts.order, self.iteration + 1)):
            say(sentence)
        if skipped := self.parts.guard.skips.find(self.iteration + 1):
            if self.iteration + 1 == skipped.first:
                say(f"leaving out iteration{'s' * (skipped.last > skipped.first)} {skipped}")
            return None
        started = time.monotonic()
        step = self.step()
        self.clock.training_s += time.monotonic() - started
        self.clock.iterations += 1
        return step

    def step(self) -> Step:
        """Take one optimizer step over train.global_batch_size samples."""
        import torch

        p = self.parts
        p.model.train()
        lr = p.optimizer.param_groups[0]["lr"]
        total, counted = torch.zeros((), device=p.accelerator.device), 0.0
        for micro_step in range(p.plan.accumulation):
            batch = self._batch(p.datasets.train, self.iteration, micro_step)
            counted += batch.counted / p.plan.accumulation
            for number, inputs in enumerate(batch.passes, start=1):
                last = micro_step == p.plan.accumulation - 1 and number == len(batch.passes)
                with p.accelerator.no_sync(p.model) if not last else torch.enable_grad():
                    loss = p.model(**inputs).loss / p.plan.accumulation
                    p.accelerator.backward(loss)
                total += loss.detach() * batch.counted
        self.fed.end_step()
        mean = self._mean_over_ranks(total, counted)
        limit = p.config.optimizer.clip_grad or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(p.model.parameters(), limit))
        verdict = p.guard.verdict(self.iteration + 1, *self._values_of_rank0(mean, norm))
        if verdict == "continue":
            p.optimizer.step()
            p.scheduler.step(p.plan.global_batch_size)
            counts = p.balance.update()
        else:
            p.balance.discard()
            counts = None
        p.optimizer.zero_grad()
        return Step(mean, norm, lr, counts, verdict)

    def _mean_over_ranks(self, loss: "torch.Tensor", counted: float) -> float:
        """Return the mean loss per prediction that counts.

        Args:
            loss: Mean of the losses of this rank's micro batches, each multiplied by its share of such predictions.
            counted: Mean of these shares.
        """
        import torch

        accelerator = self.parts.accelerator
        if not (self.parts.isolates or self.parts.config.train.loss_mask.eod):
            return float(accelerator.reduce(loss, "mean").item())
        values = torch.stack([loss.double(), torch.tensor(counted, dtype=torch.float64, device=loss.device)])
        total, share = accelerator.reduce(values, "mean").tolist()
        return float(total / share) if share else 0.0

    def _values_of_rank0(self, loss: float, norm: float) -> tuple[float, float]:
        """Return rank 0's values, so that the guard decides alike even if the last digits of the ranks differ."""
        import torch
        from accelerate.utils import broadcast

        accelerator = self.parts.accelerator
        if accelerator.num_processes == 1:
            return loss, norm
        shared = broadcast(torch.tensor([loss, norm], device=accelerator.device, dtype=torch.float64))
        return shared[0].item(), shared[1].item()

    def validate(self) -> None:
        """Record the loss on each dataset's validation samples, the same ones each time, and the weighted mean."""
        import torch

        p = self.parts
        p.model.eval()
        per_dataset: dict[str, float] = {}
        with torch.no_grad():
            for valid in p.datasets.valid:
                losses, counted = [], 0.0
                for k, j in [(k, j) for k in range(valid.batches) for j in range(p.plan.accumulation)]:
                    note_progress(self.iteration, "validation")
                    batch = self._batch(valid.samples, k, j)
                    losses.append(sum(p.model(**inputs).loss for inputs in batch.passes) * batch.counted)
                    counted += batch.counted
                mean = torch.stack(losses).mean()
                per_dataset[valid.dataset] = self._mean_over_ranks(mean, counted / len(losses))
        shares = {valid.dataset: valid.share for valid in p.datasets.valid}
        note_progress(self.iteration)
        p.metrics.log_valid(self.iteration, per_dataset, shares, elapsed_s=round(self.clock.elapsed_s(), 2))

    def report(self, step: Step) -> None:
        """Record the metrics of the iteration that was just done."""
        p, t = self.parts, self.parts.config.train
        seconds = self.clock.take()
        samples = self.iteration * t.global_batch_size
        counts = step.expert_counts
        experts = {} if counts is None else load_metrics(counts, counts.sum().item())  # this backend drops no token
        p.metrics.log(
            iteration=self.iteration,
            consumed_samples=samples,
            consumed_tokens=samples * t.seq_length,
            loss=step.loss,
            lr=step.lr,
            grad_norm=step.grad_norm,
            **p.throughput.metrics(seconds),
            elapsed_s=round(self.clock.elapsed_s(), 2),
            **experts,
            **(p.order.epoch_metrics(self.iteration) if p.order else {}),
            **self.fed.metrics(self._sum_over_ranks),
        )

    def save(self, last: bool, final: bool) -> None:
        """Save a checkpoint. The last one of a run also holds the exported model.

        Args:
            last: Whether this is the last iteration of the run.
            final: Whether this start ends here, so that a failed save cannot be taken again.

        Raises:
            Failure: The save failed, and it is final or one of too many.
        """
        p, t = self.parts, self.parts.config.train
        note_progress(self.iteration, "save")
        samples = self.iteration * t.global_batch_size
        model = p.accelerator.unwrap_model(p.model)
        info = CheckpointInfo(
            iteration=self.iteration,
            consumed_samples=samples,
            consumed_tokens=samples * t.seq_length,
            elapsed_s=round(self.clock.elapsed_s(), 2),
            parameters=p.parameters,
            run_identity=p.run_identity,
            mutable_settings=p.mutable_settings,
            guard_window=[list(one) for one in p.guard.detector.observations(self.iteration)],
            order=p.order.to_json() if p.order else {},
        )
        p.metrics.flush()
        state = {
            "model": model.state_dict(),
            "optimizer": p.optimizer.state_dict(),
            "scheduler": p.scheduler.state_dict(),
        }
        export = (lambda folder: p.export(model, folder / "hf")) if last else None
        try:
            self.saved = p.writer.save(info, state, rng_state(), export)
        except SaveError as error:
            self.failed_saves.add(error, final)
            return
        self.failed_saves.reset()
        if p.accelerator.is_main_process:
            p.on_save(self.iteration, self.saved)
        note_progress(self.iteration)

    def _batch(self, dataset: Any, iteration: int, micro_step: int) -> MicroBatch:
        p = self.parts
        with p.metrics.clock.during("data"):
            batch = collate(dataset, p.plan.samples(iteration, micro_step, p.accelerator.process_index))
            if dataset is p.datasets.train:
                self.fed.add(batch["input_ids"])
            on_device = {name: tensor.to(p.accelerator.device) for name, tensor in batch.items()}
            return split_into_passes(on_device, p.isolates, p.config.train.loss_mask.eod)

    def _sum_over_ranks(self, number: int) -> int:
        import torch

        accelerator = self.parts.accelerator
        return int(accelerator.reduce(torch.tensor(number, device=accelerator.device), "sum").item())

    def _any_rank(self, own: bool) -> bool:
        return any_rank(self.parts.accelerator, own)


def any_rank(accelerator: "Accelerator", own: bool) -> bool:
    """Return whether `own` is true on any rank. Every rank calls it.

    Args:
        accelerator: The accelerator of the run.
        own: The value of this rank.
    """
    import torch

    flag = torch.tensor(float(own), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)
