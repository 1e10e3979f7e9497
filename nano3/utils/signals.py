"""Handle signals for the duration of a block."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType


@contextlib.contextmanager
def handle_signals(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call a handler for some signals during the block, and restore the earlier handlers after it.

    A SIGHUP that is ignored, as under nohup, stays ignored. Call it on the main thread.

    Args:
        numbers: The signals.
        handler: Takes the number of the signal, and the frame that it interrupted.
    """
    previous = {
        number: signal.signal(number, handler)
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
