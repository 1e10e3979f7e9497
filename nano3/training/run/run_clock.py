"""Where the time of a run goes: the seconds of each part of a start, recorded in metrics.jsonl.

Every line of metrics.jsonl has `time` (Unix time) and the seconds since the line before it as `seconds/<part>`, so the
lines of a start add up to its wall-clock time. The parts are in `PARTS`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from nano3.training.run.startup_timer import process_age

PREFIX = "seconds/"
# start: from the start of the process to its first finished step; data: steps waiting for data.
PARTS = ("step", "data", "valid", "save", "start")


class RunClock:
    """Adds up the seconds of the parts. It begins in part "start", with the process."""

    _process_counted = False  # a second training in one process begins when it is called

    def __init__(self, now: Callable[[], float] = time.monotonic, age: Callable[[], float] | None = None) -> None:
        """Start the clock.

        Args:
            now: Returns the time in seconds.
            age: Returns the seconds since this process was started; by default 0 for its second clock.
        """
        if age is None:
            age = (lambda: 0.0) if RunClock._process_counted else process_age
            RunClock._process_counted = True
        self._now = now
        self._since = now() - (elapsed := age())
        self.started = time.time() - elapsed  # Unix time
        self._part = "start"
        self._seconds: dict[str, float] = {}

    def enter(self, part: str) -> str:
        """End the current part and begin another. Return the one that ended."""
        now, ended = self._now(), self._part
        self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now
        return ended

    @contextlib.contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count a block as `part`, but not within another part; data before the first step belongs to the start."""
        outer = self._part
        if outer not in ("step", "start") or (part == "data" and outer == "start"):
            yield
            return
        self.enter(part)
        try:
            yield
        finally:
            self.enter(outer)

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, under their names in metrics.jsonl."""
        self.enter(self._part)
        taken = {f"{PREFIX}{part}": round(seconds, 4) for part, seconds in self._seconds.items() if seconds >= 5e-5}
        self._seconds = {}
        return taken
