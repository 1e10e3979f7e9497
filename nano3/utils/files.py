"""Write files atomically (temporary name, fsync, rename, fsync of the folder), and helpers for paths."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import IO, Any

from nano3.utils.disk_errors import reason


def fsync_dir(folder: Path) -> None:
    """Make renames inside `folder` durable, so that they survive a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temp_name(path: Path) -> Path:
    """Return a hidden sibling of `path` with a random name that no other process on any host uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def expand_user(path: str | Path) -> Path:
    """Replace ~ by the home folder. An unknown "~user" is kept, as in a shell; Path.expanduser would raise."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def normalize_path(path: str | Path) -> Path:
    """Return an absolute path without "..", which stays valid if a folder before the ".." is removed."""
    path = Path(path).absolute()
    if ".." not in path.parts:
        return path
    short = os.path.normpath(path)
    real = os.path.realpath(path)
    return Path(short if os.path.realpath(short) == real else real)  # they differ after a link to a folder


def name_aside(folder: Path, word: str) -> Path:
    """Return a free name beside a folder that is to be set aside: NAME.WORD, or NAME.WORD.2 and so on.

    Args:
        folder: The folder.
        word: Why it is set aside, such as "damaged".
    """
    names = (f"{folder.name}.{word}{f'.{n}' if n > 1 else ''}" for n in count(1))
    return next(path for name in names if not os.path.lexists(path := folder.with_name(name)))


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    path = folder.absolute()
    while not os.access(path, os.F_OK):  # Path.exists raises without permission to search a parent
        path = path.parent
    return path


def folder_content(folder: Path) -> list[Path]:
    """Return what is in a folder; [] if it is no folder. Path.glob would find nothing if it may not be read."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def unwritable_reason(folder: Path) -> str | None:
    """Return why nothing can be written in a folder, or None if it is writable or can be created.

    Nothing is left behind. If the folder does not exist, a probe folder with a random name is created in its nearest
    parent, so that concurrent calls do not interfere.
    """
    path = Path(folder).absolute()
    while not os.access(path, os.F_OK):  # Path.exists raises without permission to search a parent
        with contextlib.suppress(OSError):  # not a link
            return f"{path} is a link to {path.readlink()}, which does not exist"
        path = path.parent
    if not path.is_dir():
        return f"{path} is a file, not a folder"
    if path == Path(folder).absolute():
        if os.access(path, os.W_OK | os.X_OK):
            return None
        error = PermissionError(errno.EACCES, "permission denied, or a read-only file system")
        return reason(error, path).rstrip(".")
    probe = temp_name(path / "nano3")
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"cannot create a folder in {path}: {reason(error, path).rstrip('.')}"
    return None


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Yield a new folder in the system's temporary folder, which is removed even if SIGTERM ends the process.

    Args:
        prefix: Start of its name.
    """
    folder, owner, previous = Path(tempfile.mkdtemp(prefix=prefix)), os.getpid(), signal.getsignal(signal.SIGTERM)

    def remove_and_end(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:  # not in a process that was forked meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    if previous is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, remove_and_end)
    try:
        yield folder
    finally:
        if signal.getsignal(signal.SIGTERM) is remove_and_end:
            signal.signal(signal.SIGTERM, previous)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` for writing, and rename it to `path` at the end of the block.

    If the block raises, the temporary file is deleted and an existing `path` is unchanged.

    Args:
        path: The file to write; missing parent folders are created.
        mode: Mode of `open`, for example "wb" or "w".

    Raises:
        OSError: If writing fails; `filename` is set.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_name(path)
    try:
        with temp.open(mode) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temp.replace(path)
        fsync_dir(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # report the first error, not this one
            temp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # write and fsync do not name the file
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically, in UTF-8."""
    with atomic_open(path) as f:
        f.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with a final newline.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) are escaped; JSON readers restore them.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_open(path) as f:
        f.write(text.encode(errors="backslashreplace"))


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a file that another process may be writing, without an incomplete last one.

    Empty if there is no file.
    """
    return path.read_text(errors="replace").split("\n")[:-1] if path.is_file() else []


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write values atomically as JSON, one on each line."""
    with atomic_open(path) as f:
        f.writelines((json.dumps(value) + "\n").encode() for value in values)


def read_json(path: Path) -> Any:
    """Parse a JSON file in UTF-8; raise ValueError if it is none."""
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
