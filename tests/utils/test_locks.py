"""nano3.utils.locks: exclusive and shared locks, waiting, and file systems without locks."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nano3.utils.locks import lock_fd, wait_for_lock


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two open file descriptions of one lock file."""
    pair = tuple(os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    yield pair[0], pair[1]
    for fd in pair:
        os.close(fd)


@pytest.mark.parametrize(("first", "second", "free"), [(0, 0, False), (0, 1, False), (1, 0, False), (1, 1, True)])
def test_only_shared_locks_are_held_together(fds: tuple[int, int], first: int, second: int, free: bool) -> None:
    assert lock_fd(fds[0], shared=bool(first)) == ""
    if free:
        assert lock_fd(fds[1], shared=bool(second)) == ""
    else:
        with pytest.raises(BlockingIOError):
            lock_fd(fds[1], shared=bool(second))


def test_waiting_ends_when_the_lock_is_free(tmp_path: Path) -> None:
    held = threading.Event()
    order: list[str] = []

    def second() -> None:
        held.wait()
        with wait_for_lock(tmp_path / "new" / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with wait_for_lock(tmp_path / "new" / "lock"):
        held.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_gives_the_reason(
    fds: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(fd: int, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert lock_fd(fds[0]) == os.strerror(number)
    with wait_for_lock(tmp_path / "lock"):
        pass


def test_other_errors_are_raised(fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, flags: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        lock_fd(fds[0])
