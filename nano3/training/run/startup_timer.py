"""Time from the start of the process to its first finished step, by stage: the cost of a restart."""

import os
import time
from collections.abc import Callable
from pathlib import Path

PREFIX = "startup/"  # of the stages' names in metrics.jsonl


class StartupTimer:
    """Measures the stages of a start. The first stage begins with the process."""

    def __init__(self, now: Callable[[], float] = time.monotonic, age: Callable[[], float] | None = None) -> None:
        """Start the timer.

        Args:
            now: Returns the time in seconds.
            age: Returns the seconds since this process was started.
        """
        self._now = now
        self._last = self._process_start = now() - (age or process_age)()
        self._stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """End a stage. A second mark of the same stage is ignored."""
        if stage not in self._stages:
            now = self._now()
            self._stages[stage], self._last = now - self._last, now

    def metrics(self) -> dict[str, float]:
        """Return the seconds of each stage under their names in metrics.jsonl."""
        return {
            f"{PREFIX}{name.replace(',', '').replace(' ', '_')}": round(seconds, 3)
            for name, seconds in self._stages.items()
        }

    def sentence(self) -> str:
        """Return for example "first step done 31.0 s after the start: checks 1.1 s, imports 17.2 s, ..."."""
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._stages.items())
        return f"first step done {self._last - self._process_start:.1f} s after the start: {stages}"


def process_age() -> float:
    """Return the seconds since this process was started; 0 without Linux's /proc.

    proc(5): field 22 of /proc/self/stat is the start time in clock ticks since boot.
    """
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    return max(uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK"), 0.0)
