"""Measure how long training steps wait for data, and hash what they are fed.

Both happen in `next` of the iterator that a forward step reads.
"""

from collections.abc import Callable, Iterator
from typing import Any

from nano3.training.run.fed_tokens import FedTokens
from nano3.training.run.run_clock import RunClock


class TimedIterator:
    """Iterates over `batches`, and counts the time that `next` takes as part "data".

    With `fed`, the token ids of each batch are hashed.
    """

    def __init__(self, batches: Iterator[Any], clock: RunClock, fed: FedTokens | None = None) -> None:
        self._batches, self._clock, self._fed = batches, clock, fed

    def __iter__(self) -> "TimedIterator":
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        with self._clock.during("data"):
            batch = next(self._batches)
            if self._fed is not None:
                self._fed.add(batch["tokens"])
            return batch


def time_data_waits(
    forward_step: Callable[..., Any], clock: RunClock, fed: FedTokens | None = None
) -> Callable[..., Any]:
    """Return Megatron-Bridge's forward step with a timed data iterator.

    Megatron-Bridge passes its state because of the name of the first parameter. Pipeline stages without data get None.

    Args:
        forward_step: The forward step to call.
        clock: Where the time is counted.
        fed: Hashes the token ids of training steps, not those of validations.
    """

    def timed(state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        hashes = fed if getattr(model, "training", False) else None
        batches = data_iterator if data_iterator is None else TimedIterator(data_iterator, clock, hashes)
        return forward_step(state, batches, model, return_schedule_plan)

    return timed
