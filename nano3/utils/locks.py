"""Advisory file locks through flock(2), including file systems without locks.

The lock belongs to the open file description: the kernel releases it when the last descriptor is closed, however the
processes end (kill -9 included), and a child process that inherits the descriptor holds the lock too.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

# Answers of file systems without locks: NFS without a lock service, Lustre mounted without flock, FUSE.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})


def lock_fd(fd: int, *, shared: bool = False, wait: bool = False) -> str:
    """Lock an open file.

    Args:
        fd: Descriptor of the lock file.
        shared: Take a shared lock instead of an exclusive one.
        wait: Wait until the lock is free instead of raising.

    Returns:
        "" if the lock is held; otherwise the reason why this file system cannot lock, and nothing is held.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is false.
        OSError: The file system failed otherwise.
    """
    flags = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, flags if wait else flags | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def wait_for_lock(file: Path) -> Iterator[None]:
    """Wait for an exclusive lock on `file` and hold it; on a file system without locks, hold nothing.

    Use it for short changes only.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_fd(fd, wait=True)
        yield
    finally:
        os.close(fd)
