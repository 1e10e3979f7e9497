"""Write large files under a temporary name, hashed, bypassing the page cache, in the background.

Data is collected in a buffer. A thread hashes and writes each full buffer, with O_DIRECT if the file system supports
it: the data is not read again soon, and copying it through the page cache costs as much as making it (measured: a third
of a worker's time if the memory is not mapped yet). It also leaves little for fsync to wait for.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Buffer
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from nano3.data.dataset.checksum import Checksum
from nano3.utils.disk_errors import disk_failure
from nano3.utils.errors import Nano3Error
from nano3.utils.files import temp_name

BUFFER = 4 << 20
BLOCK = 4096  # O_DIRECT needs addresses, lengths, and offsets that are multiples of it
THREADS = 4  # per process; each file has at most one buffer being written
O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux only
NO_DIRECT_ERRNOS = (errno.EINVAL, errno.EOPNOTSUPP)  # of a write on a file system without O_DIRECT


@cache
def threads() -> ThreadPoolExecutor:
    """Return the threads that write, created on first use and so after any fork."""
    return ThreadPoolExecutor(THREADS, "nano3-write")


@cache
def spare_buffers() -> list[mmap.mmap]:
    """Return the buffers to reuse, as new memory has to be mapped page by page. Aligned to pages for O_DIRECT."""
    return []


def take_buffer() -> mmap.mmap:
    """Return a spare buffer, or a new one."""
    try:
        return spare_buffers().pop()
    except IndexError:
        return mmap.mmap(-1, BUFFER, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class DirectWriter:
    """A file being written under a temporary name, which `commit` renames to `path`.

    Its methods raise Failure with the name of the file if the disk is full or fails, maybe one buffer late, but no
    later than `commit`.

    Attributes:
        path: Path of the file.
        size: Bytes appended so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._temp = temp_name(path)
        self._hash = Checksum()
        self._buffer = take_buffer()
        self._filled = 0
        self._writing: Future[mmap.mmap] | None = None
        try:
            # Without O_DIRECT: `commit` writes small files, which never fill a buffer, through the page cache.
            self._fd = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk_failure(error, str(path)) from error
        self._direct = False

    def write(self, data: Buffer) -> None:
        """Append bytes."""
        view = memoryview(data)
        if not view.nbytes:
            return
        view = view.cast("B")
        self.size += len(view)
        while len(view):
            room = min(BUFFER - self._filled, len(view))
            self._buffer[self._filled : self._filled + room] = view[:room]
            self._filled += room
            view = view[room:]
            if self._filled == BUFFER:
                self._hand_over()

    def commit(self, sync: bool) -> str:
        """Write the rest, fsync if `sync`, rename, and return the checksum."""
        self._wait()
        try:
            self._hash.update(memoryview(self._buffer)[: self._filled])
            if self._direct:
                padded = -(-self._filled // BLOCK) * BLOCK
                self._put(self._buffer, padded)
                os.ftruncate(self._fd, self.size)
            else:
                self._put(self._buffer, self._filled)
            if sync:
                os.fsync(self._fd)
            self._close()
            self._temp.replace(self.path)
        except OSError as error:
            raise disk_failure(error, str(self.path)) from error
        spare_buffers().append(self._buffer)
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Delete the temporary file, also after a failed `commit`."""
        with contextlib.suppress(Nano3Error):  # the caller handles the failure that led here
            self._wait()
        with contextlib.suppress(OSError):
            self._close()
        self._temp.unlink(missing_ok=True)

    def _close(self) -> None:
        """Close the file only once, as its descriptor may then belong to another thread's file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _hand_over(self) -> None:
        """Let a thread write the full buffer and take another one."""
        self._wait()
        full, self._buffer, self._filled = self._buffer, take_buffer(), 0
        self._writing = threads().submit(self._write_full, full)

    def _wait(self) -> None:
        """Wait until the thread has written its buffer."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            spare_buffers().append(writing.result())
        except OSError as error:
            raise disk_failure(error, str(self.path)) from error

    def _write_full(self, buffer: mmap.mmap) -> mmap.mmap:
        """Hash and write a full buffer in a thread, and return it."""
        self._hash.update(buffer)
        if O_DIRECT and not self._direct:
            with contextlib.suppress(OSError):  # the file system does not support O_DIRECT
                flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
                fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | O_DIRECT)
                self._direct = True
        self._put(buffer, BUFFER)
        return buffer

    def _put(self, buffer: mmap.mmap, size: int) -> None:
        """Write the first `size` bytes of a buffer completely."""
        done = 0
        while done < size:
            try:
                done += os.write(self._fd, memoryview(buffer)[done:size])
            except OSError as error:
                if not self._direct or error.errno not in NO_DIRECT_ERRNOS:
                    raise
                self._disable_direct()

    def _disable_direct(self) -> None:
        """Continue without O_DIRECT if the file system rejects it only at the first write."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~O_DIRECT)
        self._direct = False
