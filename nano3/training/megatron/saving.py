"""The checkpoint manager that Megatron-Bridge loads by name (`checkpoint.custom_manager_class`).

Saving is Megatron-Bridge's own. nano3 adds what a long run needs: a failed save is reported and repeated at the next
interval, and the run ends if the process that writes checkpoints has died; Megatron-Bridge would wait for it forever.
That process, in turn, ends with its rank. If it outlived a rank that is killed alone, it would go on writing into a
folder that the next start removes and saves to again, and keep GPU memory. It ignores the signals that stop a run: sent
to all processes of a job or of a terminal, they would end it just before the run needs it for the last checkpoint.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from nano3.training.megatron.checkpoints import begun_iterations
from nano3.training.run.checkpoints import MARKER, folder_name
from nano3.training.run.failed_saves import FailedSaves, SaveError
from nano3.training.run.stop import SIGNALS
from nano3.utils.child_processes import end_forked_children_with_this_process, exit_with_parent
from nano3.utils.console import is_rank_zero
from nano3.utils.disk_errors import find_disk_error
from nano3.utils.errors import Failure

# Seconds between two looks at a save that a rank waits for.
POLL_S = 0.05
MANAGER = f"{__name__}.SaveManager"


@dataclass
class SaveContext:
    """What the manager needs to know about a run. `is_last` returns whether no save follows that of an iteration."""

    save_folder: Path
    failed: FailedSaves
    is_last: Callable[[int], bool]


# Megatron-Bridge creates the manager from its own configuration alone, so the run's context is passed here.
_context: SaveContext | None = None
_manager: "SaveManager | None" = None


def use_manager(container: Any, context: SaveContext) -> None:
    """Make a container's run save through `SaveManager`. Call it once per process, before `pretrain`.

    Args:
        container: The run's ConfigContainer.
        context: The run's context.
    """
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

    global _context
    _context = context
    register_allowed_target_prefix(__name__)
    container.checkpoint.custom_manager_class = MANAGER
    if container.checkpoint.async_save:
        end_forked_children_with_this_process()  # the queue of results is in a forked process


def complete_pending_saves(state: Any) -> None:
    """Wait for a checkpoint that is being written in the background. Call it on all ranks, before they give up.

    Args:
        state: Megatron-Bridge's GlobalState.

    Raises:
        SaveError: The save failed and the run must end.
        Failure: The process that writes checkpoints has died.
    """
    if _manager is not None:
        _manager.finalize_async_saves(state, blocking=True)


def run_in_writer(state: Any, function: Callable[..., None], *arguments: Any) -> None:
    """Have a function run in the process that writes checkpoints, before the next save. Call it on all ranks alike.

    Args:
        state: Megatron-Bridge's GlobalState.
        function: A function of a module.
        arguments: Its arguments; they are pickled.
    """
    if _manager is not None and state.async_calls_queue is not None:
        _manager.run_in_writer(state.async_calls_queue, function, *arguments)


def tie_to_rank(rank: int) -> None:
    """Make the process that writes checkpoints end when its rank ends, and no earlier. It runs in that process.

    Args:
        rank: Process id of the rank.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    exit_with_parent(rank)


class SaveManager:
    """Megatron-Bridge's default manager, with failures counted and a dead writer noticed."""

    def __init__(self, checkpoint_config: Any) -> None:
        """Create the default manager.

        Args:
            checkpoint_config: The container's CheckpointConfig.
        """
        from megatron.bridge.training.checkpointing import DefaultCheckpointManager

        if _context is None:
            raise RuntimeError(f"{MANAGER} is used by nano3's Megatron backend only")
        self._run = _context
        self._default = DefaultCheckpointManager(checkpoint_config)
        self._pending: int | None = None
        # The process that writes checkpoints, once it is known.
        self._writer: Any = None
        self._writer_tied = False
        global _manager
        _manager = self

    def load(self, ctx: Any) -> tuple[int, int]:
        """Load a checkpoint and return its iteration and FLOP count."""
        found: tuple[int, int] = self._default.load(ctx)
        return found

    def save(self, ctx: Any, callback_manager: Any) -> None:
        """Save, or start to save in the background.

        Args:
            ctx: Megatron-Bridge's CheckpointSaveContext.
            callback_manager: Fires `on_checkpoint_save` once the checkpoint is complete.

        Raises:
            SaveError: The save failed and the run must end.
            Failure: The process that writes checkpoints has died.
        """
        iteration = int(ctx.state.train_state.step)
        self._check_writer()
        if self._pending is not None:  # a slow disk: the previous save is not finished when the next one is due
            self.finalize_async_saves(ctx.state, blocking=True)
        self._pending = iteration
        self._guard(lambda: self._default.save(ctx, callback_manager), iteration, self._run.is_last(iteration))
        if not self._default.checkpoint_config.async_save:
            self._succeeded()

    def finalize_async_saves(self, state: Any, blocking: bool = False, terminate: bool = False) -> None:
        """Complete the saves that were written in the background.

        Args:
            state: Megatron-Bridge's GlobalState.
            blocking: Wait for all of them.
            terminate: Then end the process that writes them.

        Raises:
            SaveError: A save failed and the run must end.
            Failure: The process that writes checkpoints has died.
        """
        queue = state.async_calls_queue
        self._tie_writer(queue)
        waiting = queue is not None and queue.get_num_unfinalized_calls() > 0
        pending = self._pending if self._pending is not None else -1
        last = terminate or self._run.is_last(pending)
        # Poll instead of a blocking wait, which has no end if the writer dies. All ranks poll equally often, because a
        # poll tells each of them whether all are done.
        while waiting:
            self._guard(lambda: self._poll(state, queue), pending, last)
            waiting = queue.get_num_unfinalized_calls() > 0
            if not waiting:
                self._succeeded()
            elif blocking:
                time.sleep(POLL_S)
            else:
                break
        if terminate:
            if self._writer is not None and not self._writer.is_alive():
                queue.close(abort=True)  # a dead writer would never answer the request to end
            self._writer = None
            self._default.finalize_async_saves(state, blocking, terminate)

    def _tie_writer(self, queue: Any) -> None:
        """Make the process that writes checkpoints end with this rank only; it is the first thing that it does.

        Megatron-Bridge starts that process before the model is built, and calls this manager before every iteration.
        """
        if queue is None or self._writer_tied:
            return
        self.run_in_writer(queue, tie_to_rank, os.getpid())
        self._writer = queue.async_calls[-1].async_caller.process
        self._writer_tied = True

    def run_in_writer(self, queue: Any, function: Callable[..., None], *arguments: Any) -> None:
        """Give the process that writes checkpoints a task other than a save.

        Args:
            queue: Megatron-Core's AsyncCallsQueue.
            function: A function of a module.
            arguments: Its arguments; they are pickled.
        """
        from megatron.core.dist_checkpointing.strategies.torch import get_async_strategy

        _, classes = get_async_strategy(self._default.checkpoint_config.async_strategy)
        queue.schedule_async_request(classes["AsyncRequest"](function, arguments, []))

    def _poll(self, state: Any, queue: Any) -> None:
        """Complete what is written, and raise Failure if this rank's writer ended before its work was done."""
        caller = queue.async_calls[0].async_caller
        self._writer = caller.process
        ended = caller.process is not None and not caller.process.is_alive()
        self._default.finalize_async_saves(state, blocking=False)
        if ended and queue.get_num_unfinalized_calls() > 0 and caller.cur_item is None:
            self._check_writer()

    def _check_writer(self) -> None:
        """Raise Failure if the writer has ended; to give it a new task would block forever."""
        if self._writer is not None and not self._writer.is_alive():
            raise Failure(
                f"The process that writes checkpoints ended with exit code {self._writer.exitcode} (-9 is a kill, most "
                "often for lack of host memory). The same command resumes; +megatron.checkpoint.async_save=false saves "
                "without it, and training then waits for each save."
            )

    def _succeeded(self) -> None:
        if self._pending is not None:
            self._pending = None
            self._run.failed.reset()

    def _guard(self, call: Callable[[], None], iteration: int, last: bool) -> None:
        """Call `call`, and count an error of writing that Megatron-Core raises on all ranks."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            call()
        except CheckpointException as error:
            self._pending = None
            folder = self._run.save_folder / folder_name(iteration)
            if is_rank_zero():
                remove_failed(folder)
            self._run.failed.add(SaveError(f"{folder}: {failure_reason(error.failures)}"), last)


def remove_failed(folder: Path) -> None:
    """Remove what a failed save of nano3 left, since its space may be what the next save needs.

    Args:
        folder: The iteration's folder.
    """
    begun = {folder_name(i) for i in begun_iterations(folder.parent)}
    if folder.name in begun and not (folder / MARKER).exists():
        rmtree(folder, ignore_errors=True)


def failure_reason(failures: dict[int, Any]) -> str:
    """Return why a save failed, such as "No space left on device".

    Args:
        failures: (exception, traceback) by rank, of torch's CheckpointException; empty except on one rank.
    """
    errors = [wrapped[0] if isinstance(wrapped, tuple) else wrapped for wrapped in failures.values()]
    for error in errors:
        if fault := find_disk_error(error):
            return str(fault.strerror or fault)
    return f"rank {next(iter(failures))}: {errors[0]}" if errors else "another rank failed to write"
