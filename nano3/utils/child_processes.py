"""Processes that must not outlive the process that started them."""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@functools.cache
def prctl() -> Callable[..., int]:
    """Return the C function, loaded once: a forked child must not load libraries."""
    found: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return found


def exit_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent ends in any way. Does nothing on other systems.

    The parent is the thread that started this process, so that must not be one that ends earlier.

    Args:
        parent: The parent's process id, if it is known: if that has ended already, this process ends now.
    """
    if sys.platform != "linux":
        return
    prctl()(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_forked_children_with_this_process() -> None:
    """Make every child that the main thread forks from now on end with this process. Call it once per process.

    Processes that are started with another program (subprocess, the spawn method of multiprocessing) are not covered.
    """
    if sys.platform != "linux":
        return
    prctl()
    parent, from_main_thread = os.getpid(), [False]

    def before() -> None:
        from_main_thread[0] = threading.current_thread() is threading.main_thread()

    def in_child() -> None:
        if from_main_thread[0] and os.getppid() == parent:
            exit_with_parent(parent)

    os.register_at_fork(before=before, after_in_child=in_child)


def kill_children(name: str) -> None:
    """Kill the child processes of this process that run a program.

    Args:
        name: File name of the program; the kernel knows its first 15 characters.
    """
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            own, _, rest = stat.read_text().rpartition(")")
            if own.partition("(")[2] == name[:15] and int(rest.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)
