"""RUN_DIR/.lock: lets one process at a time start or submit a run, and holds the folder while the run works here.

A run submitted to Slurm is not held by this lock: its newest job in jobs.json (launch.job_records) shows that it is
active. Its ranks must be able to restart on another node while the file server still remembers a dead node's lock.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from nano3.utils.console import warn
from nano3.utils.errors import UserError
from nano3.utils.locks import lock_fd

FILE = ".lock"


class RunLock:
    """A held run lock. A child process that inherits `fd` holds it too, even after this process has ended."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write_holder(self, worker: int | None = None) -> None:
        """Record in the lock file who holds it, for the error message of later starts.

        Args:
            worker: Process id of the child that does the work and inherits the lock.
        """
        words = [f"process {os.getpid()} on {socket.gethostname()}"]
        words += [f"which runs as process {worker}"] if worker else []
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, ", ".join(words).encode(), 0)


def _read_holder(fd: int) -> str:
    return os.pread(fd, 200, 0).decode(errors="replace") or "another process"


def lock_holder(run_dir: Path) -> str:
    """Return who holds a run folder ("process 12 on host"), or "" if it is free or unknown."""
    try:
        fd = os.open(run_dir / FILE, os.O_RDONLY)
    except OSError:
        return ""
    try:
        lock_fd(fd, shared=True)  # released by the close below
    except BlockingIOError:
        return _read_holder(fd)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return ""


@contextlib.contextmanager
def hold_run_lock(run_dir: Path) -> Iterator[RunLock]:
    """Hold a run folder for the duration of the block.

    Raises:
        UserError: Another process holds it; the message names the process and its host.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            no_locks = lock_fd(fd)
        except BlockingIOError:
            raise UserError(
                f"{run_dir} is in use by {_read_holder(fd)}. Two processes must not write to one run folder: wait for "
                "it to end, stop it (Ctrl-C or SIGTERM lets a run save), or choose another name (run.name=...)."
            ) from None
        if no_locks:
            warn(f"{run_dir}: this file system has no locks ({no_locks}); take care to start a run only once")
        lock = RunLock(fd)
        lock.write_holder()
        yield lock
    finally:
        os.close(fd)
