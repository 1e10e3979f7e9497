"""Test files written by threads past the page cache: complete, hashed, and deleted after an error."""

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_128

from nano3.data.build import direct_writer
from nano3.data.build.direct_writer import BUFFER, DirectWriter
from nano3.utils.errors import Failure

SIZES = [0, 1, 4095, 4096, 4097, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER, 3 * BUFFER + 12345]


def content(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("piece", [1 << 30, 777_777])
@pytest.mark.parametrize("size", SIZES)
def test_the_file_has_the_written_bytes(tmp_path: Path, size: int, piece: int) -> None:
    data = content(size)
    out = DirectWriter(tmp_path / "a.bin")
    for at in range(0, size, piece):
        out.write(data[at : at + piece])
    assert not (tmp_path / "a.bin").exists(), "never half a file under its name"
    assert out.commit(sync=True) == xxh3_128(data).hexdigest()
    assert (tmp_path / "a.bin").read_bytes() == data
    assert out.size == size
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_many_files_at_once(tmp_path: Path) -> None:
    outs = [DirectWriter(tmp_path / str(i)) for i in range(9)]
    data = content(BUFFER // 3 + 5)
    for _ in range(7):
        for out in outs:
            out.write(data)
    assert {out.commit(sync=False) for out in outs} == {xxh3_128(data * 7).hexdigest()}
    assert all((tmp_path / str(i)).read_bytes() == data * 7 for i in range(9))


def test_arrays_of_any_dtype(tmp_path: Path) -> None:
    out = DirectWriter(tmp_path / "a")
    out.write(np.arange(5, dtype="<i8").data)
    out.write(np.zeros(0, np.int32).data)
    out.commit(sync=False)
    assert np.fromfile(tmp_path / "a", "<i8").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("where", ["fcntl", "write"])
def test_a_file_system_without_direct_writes(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems reject O_DIRECT in fcntl, some at the first write."""
    if where == "fcntl":
        real = direct_writer.fcntl.fcntl

        def refuse(fd: int, command: int, flags: int = 0) -> int:
            if command == direct_writer.fcntl.F_SETFL and flags & direct_writer.O_DIRECT:
                raise OSError(errno.EINVAL, "no")
            return real(fd, command, flags)

        monkeypatch.setattr(direct_writer.fcntl, "fcntl", refuse)
    else:
        real_write = os.write

        def refuse_write(fd: int, data: memoryview) -> int:
            if direct_writer.fcntl.fcntl(fd, direct_writer.fcntl.F_GETFL) & direct_writer.O_DIRECT:
                raise OSError(errno.EINVAL, "no")
            return real_write(fd, data)

        monkeypatch.setattr(direct_writer.os, "write", refuse_write)
    data = content(2 * BUFFER + 99)
    out = DirectWriter(tmp_path / "a")
    out.write(data)
    out.commit(sync=True)
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.parametrize("size", [BUFFER // 2, 3 * BUFFER], ids=["at commit", "while writing"])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        out = DirectWriter(disk / "a.bin")
        with pytest.raises(Failure, match=r"a\.bin: no space left on the device"):
            for _ in range(3):
                out.write(content(size))
            out.commit(sync=True)
        out.discard()
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    out = DirectWriter(tmp_path / "a")
    out.write(content(2 * BUFFER))
    out.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_fails(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be written: No such file or directory"):
        DirectWriter(tmp_path / "no" / "a")


def test_discarding_after_a_failed_commit_closes_no_other_file(tmp_path: Path) -> None:
    """The descriptor of a closed file is reused by the next one, maybe in another thread."""
    (tmp_path / "a.bin" / "in the way").mkdir(parents=True)
    out = DirectWriter(tmp_path / "a.bin")
    with pytest.raises(Failure, match="cannot be written"):
        out.commit(sync=False)
    with (tmp_path / "other").open("w") as other:
        out.discard()
        other.write("still open")
    assert (tmp_path / "other").read_text() == "still open"
