"""Callbacks with which the guard and train.skip_iterations act in Megatron-Bridge.

Megatron-Bridge leaves out the iterations of `train.iterations_to_skip`, and Megatron's optimizer leaves out steps whose
gradient norm exceeds `grad_norm_skip_threshold`; in both cases the learning-rate schedule waits. A rollback ends
`pretrain` with an exception, and the launcher starts the ranks again from the newest checkpoint.
"""

import math
from collections.abc import Callable
from typing import Any

from nano3.training.run.guard import Guard
from nano3.training.run.skips import SkipRecord


class RolledBack(Exception):  # noqa: N818  an outcome, not an error
    """Ends Megatron-Bridge's training on every rank after the same iteration."""


class SkipAhead:
    """Passes over the iterations directly after the resume point, before the data is opened.

    Megatron-Bridge prepares the overlap of communication in its first iteration, so that one must not be left out: the
    parameters of a distributed optimizer would never be gathered.
    """

    def __init__(self, iterations: int, global_batch_size: int) -> None:
        self.iterations, self.global_batch_size = iterations, global_batch_size

    def on_data_init_start(self, context: Any) -> None:
        """Advance the counters of the restored state; the data loaders start from them."""
        state = context.state.train_state
        state.step += self.iterations
        state.consumed_train_samples += self.iterations * self.global_batch_size
        state.skipped_train_samples += self.iterations * self.global_batch_size


def skip_ahead(skips: SkipRecord, iteration: int, global_batch_size: int) -> list[SkipAhead]:
    """Return the callback for iterations that are left out directly after the resume point, if there are any.

    Args:
        skips: What the run leaves out.
        iteration: The iterations that are done.
        global_batch_size: Samples per iteration.
    """
    count = skips.leading(iteration)
    return [SkipAhead(count, global_batch_size)] if count else []


class GuardHooks:
    """Shows loss and gradient norm of every iteration to the guard.

    Reading them waits for the GPU, so those of an iteration are read after the next one, when they have arrived on the
    host. Before a checkpoint is saved, after the last iteration and with guard.action=skip they are read at once. All
    ranks read the same numbers, the maximum over all ranks, after the same iterations. Register it after the training
    hooks, which decide whether the run stops and saves.
    """

    def __init__(
        self,
        guard: Guard,
        saves_after: Callable[[int], bool],
        exchange: "Exchange | None" = None,
        before_rollback: Callable[[Any], None] = lambda state: None,
    ) -> None:
        """Create the callback.

        Args:
            guard: The guard of this rank.
            saves_after: Returns whether a checkpoint follows an iteration; the same on every rank.
            exchange: How the ranks share their numbers.
            before_rollback: Called on every rank with Megatron-Bridge's state. It completes the checkpoint that is
                being written, which is the newest one before the anomaly.
        """
        self._before_rollback = before_rollback
        self.guard, self._saves_after = guard, saves_after
        self._exchange = exchange or GpuExchange()
        self._waiting: tuple[int, bool] | None = None  # an iteration, and whether the optimizer left out its step
        self._own_threshold: float | None = None

    @property
    def removes_nan(self) -> bool:
        """Whether the guard, and not the training hooks, decides about values that are not finite."""
        return self.guard.action in ("skip", "rollback")

    def on_train_step_start(self, context: Any) -> None:
        """Tell the optimizer which gradient norm it must not apply (guard.action=skip)."""
        if self.guard.action != "skip":
            return
        bounds = self.guard.detector.limit("grad_norm", int(context.state.train_state.step) + 1)
        for optimizer in getattr(context.optimizer, "chained_optimizers", ()):
            if self._own_threshold is None:
                self._own_threshold = float(optimizer.config.grad_norm_skip_threshold)
            limit = bounds[1] if bounds else math.inf
            optimizer.config.grad_norm_skip_threshold = min(self._own_threshold, limit)

    def on_train_step_end(self, context: Any) -> None:
        """Show the previous iteration to the guard, and this one too if that cannot wait.

        Raises:
            RolledBack: The run must return to its newest checkpoint.
            Failure: A value is not finite, or a bound of the guard is reached.
        """
        iteration = int(context.state.train_state.step) + 1
        self._decide(context)
        loss = (context.loss_dict or {}).get("lm loss")
        norm = context.grad_norm
        self._exchange.send(loss, norm)
        self._waiting = (iteration, bool(getattr(context, "skipped_iter", False)))
        last = iteration >= self.guard.config.train.train_iters
        # A norm that is still on the GPU (skip_sync_grad_norm_across_mp) is not waited for: the next iteration decides.
        fails_now = not self.removes_nan and isinstance(norm, float) and not math.isfinite(norm)
        if last or fails_now or self.guard.action == "skip" or self._saves_after(iteration):
            self._decide(context)

    def _decide(self, context: Any) -> None:
        if self._waiting is None:
            return
        (iteration, dropped), self._waiting = self._waiting, None
        loss, norm = self._exchange.receive()
        if self.guard.verdict(iteration, loss, norm, can_skip=dropped) == "rollback":
            self._before_rollback(context.state)
            raise RolledBack(f"after iteration {iteration}")


class Exchange:
    """Shares loss and gradient norm of an iteration among the ranks."""

    def send(self, loss: Any, grad_norm: Any) -> None:
        """Start to share the numbers of this rank; None if it does not know them. Every rank calls it.

        Args:
            loss: Mean loss, a number or a tensor of one element.
            grad_norm: Norm of the gradient before clipping, likewise.
        """
        raise NotImplementedError

    def receive(self) -> tuple[float, float]:
        """Return the numbers of the last `send`, the same on every rank."""
        raise NotImplementedError


def put(element: Any, value: Any) -> None:
    """Set an element of a tensor without waiting for the GPU.

    Args:
        element: A tensor without dimensions.
        value: A number, or a tensor of one element with any number of dimensions.
    """
    if isinstance(value, int | float):
        element.fill_(value)
    else:
        element.copy_(value.reshape(()))


class GpuExchange(Exchange):
    """Takes the maximum over the ranks on the GPU and copies it to the host without waiting for it.

    NaN is sent as infinity, since a maximum may ignore it. Only the last pipeline stage knows the loss.
    """

    def __init__(self) -> None:
        self._host: Any = None
        self._copied: Any = None

    def send(self, loss: Any, grad_norm: Any) -> None:
        """Start to share the numbers of this rank."""
        import torch
        import torch.distributed as dist

        if self._host is None:
            self._host = torch.empty(2, dtype=torch.float64, pin_memory=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # Filled on the GPU: copying a list there would wait for everything that is queued.
        pair = torch.full((2,), -math.inf, dtype=torch.float64, device="cuda")
        put(pair[0], -math.inf if loss is None else loss)
        put(pair[1], 0.0 if grad_norm is None else grad_norm)
        pair = torch.nan_to_num(pair, nan=math.inf, posinf=math.inf, neginf=-math.inf)
        if dist.get_world_size() > 1:
            dist.all_reduce(pair, op=dist.ReduceOp.MAX)
        self._host.copy_(pair, non_blocking=True)
        self._copied.record()

    def receive(self) -> tuple[float, float]:
        """Wait for the copy and return it."""
        self._copied.synchronize()
        loss, norm = self._host.tolist()
        return 0.0 if loss == -math.inf else loss, norm  # no rank knows a loss: it cannot be watched
