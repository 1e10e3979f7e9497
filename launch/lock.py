"""RUN_DIR/.lock: one process at a time starts or submits a run, and holds its folder while it runs here.

flock(2) belongs to the open file, so the kernel lets go of it however the process ends, kill -9 included. A run that
was handed over to Slurm is not held by a lock but found in jobs.json (launch.job_records): its ranks must be able to
come back on another node while the lock of a dead one may still be known to the file server.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from nano3.utils.console import warn
from nano3.utils.errors import UserError

FILE = ".lock"
# How file systems say that they have no locks: NFS without a lock service, Lustre mounted without flock, FUSE.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class RunLock:
    """A lock that is held. A process that gets `fd` holds it too, also after this one has ended."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def tell(self, worker: int | None = None) -> None:
        """Write down who holds it, for the message of those that are refused."""
        words = [f"process {os.getpid()} on {socket.gethostname()}"]
        words += [f"which runs as process {worker}"] if worker else []
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, ", ".join(words).encode(), 0)


def lock_holder(run_dir: Path) -> str:
    """Who holds a run folder ("process 12 on host"); "" when nobody does, or it cannot be told."""
    try:
        fd = os.open(run_dir / FILE, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment; closing lets go of it
    except BlockingIOError:
        return os.pread(fd, 200, 0).decode(errors="replace") or "another process"
    except OSError:
        return ""
    finally:
        os.close(fd)
    return ""


@contextlib.contextmanager
def hold_run_lock(run_dir: Path) -> Iterator[RunLock]:
    """Hold a run folder. Raises UserError, naming the process and its host, when somebody else does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock_holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
            raise UserError(
                f"{run_dir} is in use by {lock_holder}: two must not write one run folder. Wait for it to end, stop it "
                "(Ctrl-C or SIGTERM lets a run save), or give this run another name (run.name=...)."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warn(f"{run_dir}: this file system has no locks ({error.strerror}); take care to start a run only once")
        lock = RunLock(fd)
        lock.tell()
        yield lock
    finally:
        os.close(fd)


@contextlib.contextmanager
def wait_for_lock(file: Path) -> Iterator[None]:
    """Wait for one's turn and hold `file`: for a change that takes a moment. Where the file system has no locks,
    nothing is held."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(fd)
