"""Measure how long training steps wait for data: the time in `next` of the iterator that a forward step reads."""

from collections.abc import Callable, Iterator
from typing import Any

from nano3.training.run.run_clock import RunClock


class TimedIterator:
    """Iterates over `batches`, and counts the time that `next` takes as part "data"."""

    def __init__(self, batches: Iterator[Any], clock: RunClock) -> None:
        self._batches, self._clock = batches, clock

    def __iter__(self) -> "TimedIterator":
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        with self._clock.during("data"):
            return next(self._batches)


def time_data_waits(forward_step: Callable[..., Any], clock: RunClock) -> Callable[..., Any]:
    """Return Megatron-Bridge's forward step with a timed data iterator.

    Megatron-Bridge passes its state because of the name of the first parameter. Pipeline stages without data get None.

    Args:
        forward_step: The forward step to call.
        clock: Where the time is counted.
    """

    def timed(state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        batches = data_iterator if data_iterator is None else TimedIterator(data_iterator, clock)
        return forward_step(state, batches, model, return_schedule_plan)

    return timed
