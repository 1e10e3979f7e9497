"""Writing large files: under a temporary name, hashed, past the page cache, while the caller goes on.

A file is collected in a buffer. Each full one is hashed and written by a thread, with O_DIRECT where the file system
allows it: what is written is not read again soon, and copying it through the page cache costs as much as making it
(measured: a third of a worker's time where memory is not already mapped). It also leaves nothing for fsync to wait for.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from nano3.data.dataset.checksum import Checksum
from nano3.utils.disk_errors import disk_failure
from nano3.utils.errors import Nano3Error
from nano3.utils.files import temp_name

BUFFER = 4 << 20
BLOCK = 4096  # what O_DIRECT wants addresses, lengths and offsets to be multiples of
THREADS = 4  # of one process; a file has one buffer on its way at most
DIRECT = getattr(os, "O_DIRECT", 0)  # Linux only
NO_DIRECT_ERRNOS = (errno.EINVAL, errno.EOPNOTSUPP)


@cache
def threads() -> ThreadPoolExecutor:
    """The threads that write; made when first needed, so after any fork."""
    return ThreadPoolExecutor(THREADS, "nano3-write")


@cache
def spare_buffers() -> list[mmap.mmap]:
    """Buffers to use again: fresh memory has to be mapped page by page. Page-aligned, as O_DIRECT wants."""
    return []


def take_buffer() -> mmap.mmap:
    """A spare buffer, or a new one."""
    try:
        return spare_buffers().pop()
    except IndexError:
        return mmap.mmap(-1, BUFFER, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class DirectWriter:
    """A file being written under a temporary name; `commit` gives it its own.

    Raises `Failure` naming the file when the disk is full or refuses; that may come one buffer late, at the latest
    from `commit`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes
        self._temp = temp_name(path)
        self._hash = Checksum()
        self._buffer = take_buffer()
        self._filled = 0
        self._writing: Future[mmap.mmap] | None = None
        try:
            # Small files, which never fill a buffer, are written plainly by `commit`.
            self._fd = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk_failure(error, str(path)) from error
        self._direct = False

    def write(self, data: Any) -> None:
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
        """Write what is left, fsync if `sync`, rename. Gives the checksum."""
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
        """Remove what was written; also after a failed `commit`."""
        with contextlib.suppress(Nano3Error):  # the failure that led here is being told
            self._wait()
        with contextlib.suppress(OSError):
            self._close()
        self._temp.unlink(missing_ok=True)

    def _close(self) -> None:
        """Close the file, once: its number may belong to another thread's file right after."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _hand_over(self) -> None:
        """Let a thread write the full buffer; go on with another."""
        self._wait()
        full, self._buffer, self._filled = self._buffer, take_buffer(), 0
        self._writing = threads().submit(self._write_full, full)

    def _wait(self) -> None:
        """Until the buffer on its way is written."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            spare_buffers().append(writing.result())
        except OSError as error:
            raise disk_failure(error, str(self.path)) from error

    def _write_full(self, buffer: mmap.mmap) -> mmap.mmap:
        self._hash.update(buffer)
        if DIRECT and not self._direct:
            with contextlib.suppress(OSError):  # a file system that knows no O_DIRECT
                flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
                fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | DIRECT)
                self._direct = True
        self._put(buffer, BUFFER)
        return buffer

    def _put(self, buffer: mmap.mmap, size: int) -> None:
        """Write the first `size` bytes of a buffer, all of them."""
        done = 0
        while done < size:
            try:
                done += os.write(self._fd, memoryview(buffer)[done:size])
            except OSError as error:
                if not self._direct or error.errno not in NO_DIRECT_ERRNOS:
                    raise
                self._plain()

    def _plain(self) -> None:
        """Go on without O_DIRECT, where the file system refuses it only at the first write."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~DIRECT)
        self._direct = False
