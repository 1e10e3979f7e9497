"""Stop a run with a checkpoint: a signal sets a flag, the loop reads it after an iteration, and all ranks agree."""

import contextlib
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from nano3.config import PretrainConfig
from nano3.utils.signals import handle_signals

# SIGHUP: the terminal was closed, or the connection to this machine was lost.
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


def last_iteration(config: PretrainConfig) -> int:
    """Return the iteration at which this command ends if nothing stops it earlier."""
    train = config.train
    return min(train.exit_iteration or train.train_iters, train.train_iters)


class StopRequest:
    """A context manager that turns SIGTERM, SIGUSR2, SIGINT and SIGHUP into a request to save and stop.

    It also watches train.exit_iteration and train.exit_duration_in_mins. Enter it on the main thread, where Python
    delivers signals; it is reentrant. A second SIGINT interrupts immediately. Leaving it restores the old handlers.
    A SIGHUP that is ignored, as under nohup, stays ignored.
    """

    def __init__(self, exit_iteration: int | None = None, exit_duration_in_mins: float | None = None) -> None:
        self.exit_iteration = exit_iteration
        self.exit_duration_in_mins = exit_duration_in_mins
        self.signal: signal.Signals | None = None
        self._started = time.monotonic()
        self._handlers = contextlib.ExitStack()
        self._depth = 0

    def __enter__(self) -> Self:
        """Install the signal handlers."""
        self._depth += 1
        if self._depth == 1:
            self._handlers.enter_context(handle_signals(SIGNALS, self._receive))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the earlier handlers."""
        self._depth -= 1
        if self._depth == 0:
            self._handlers.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def reason(self, iteration: int) -> str:
        """Return why this rank wants to stop after `iteration`, or an empty string."""
        if self.signal is not None:
            return f"signal {self.signal.name}"
        if self.exit_iteration is not None and iteration >= self.exit_iteration:
            return f"train.exit_iteration={self.exit_iteration}"
        minutes = (time.monotonic() - self._started) / 60
        if self.exit_duration_in_mins is not None and minutes >= self.exit_duration_in_mins:
            return f"train.exit_duration_in_mins={self.exit_duration_in_mins:g}"
        return ""

    def agreed(self, iteration: int, any_rank: Callable[[bool], bool]) -> str:
        """Return the reason to stop if any rank has one, or an empty string.

        Args:
            iteration: The iteration that was just done.
            any_rank: Returns the logical or over all ranks; called on every rank.
        """
        own = self.reason(iteration)
        if not any_rank(bool(own)):
            return ""
        return own or "another rank requested the stop"
