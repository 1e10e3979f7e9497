"""How long a start takes until its first step is done, taken apart: what a restart of every rank costs."""

import os
import time
from collections.abc import Callable
from pathlib import Path


class StartupTimer:
    """Marks the ends of the parts of a start; the first part begins with the process."""

    def __init__(self, now: Callable[[], float] = time.monotonic, age: Callable[[], float] | None = None) -> None:
        """`age` gives the seconds since this process was started."""
        self._now = now
        self._last = self._began = now() - (age or process_age)()
        self._parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """`part` ends now. A second mark of the same part is not counted."""
        if part not in self._parts:
            now = self._now()
            self._parts[part], self._last = now - self._last, now

    def sentence(self) -> str:
        """For example "first step done 31.0 s after the start: checks 1.1 s, imports 17.2 s, ..."."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._parts.items())
        return f"first step done {self._last - self._began:.1f} s after the start: {parts}"


def process_age() -> float:
    """Seconds since this process was started, from Linux's /proc (proc(5): field 22 of stat, in clock ticks since
    boot); 0 elsewhere."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    return max(uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK"), 0.0)
