"""Writing files so that nobody ever sees half of one: temporary name, fsync, rename, fsync of the folder."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def fsync_dir(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temp_name(path: Path) -> Path:
    """A hidden sibling of `path` that no other process, on this host or another, will choose."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def expand_user(place: str | Path) -> Path:
    """A path with ~ for the home folder; "~nobody" is left as it is, as by a shell (Path.expanduser raises)."""
    return Path(os.path.expanduser(place))  # noqa: PTH111


def normalize_path(place: str | Path) -> Path:
    """An absolute path without "..", which would no longer lead there once a folder on the way is gone."""
    place = Path(place).absolute()
    if ".." not in place.parts:
        return place
    short = os.path.normpath(place)
    real = os.path.realpath(place)
    return Path(short if os.path.realpath(short) == real else real)  # they differ behind a link to a folder


def nearest_existing(folder: Path) -> Path:
    """The folder, or the first one above it that is there (Path.exists raises where looking is not allowed)."""
    place = folder.absolute()
    while not os.access(place, os.F_OK):
        place = place.parent
    return place


def unwritable_reason(folder: Path) -> str | None:
    """Why nothing can be written in a folder, or None. Leaves nothing behind, also where there is no folder yet: what
    is tried then is making one of a name that nobody else chooses, so that starts at the same time do not disturb
    one another.
    """
    place = Path(folder).absolute()
    while not os.access(place, os.F_OK):  # Path.exists raises where looking is not allowed
        with contextlib.suppress(OSError):  # not a link
            return f"{place} is a link to {place.readlink()}, which is not there"
        place = place.parent
    if not place.is_dir():
        return f"{place} is a file, not a folder"
    if place == Path(folder).absolute():
        return None if os.access(place, os.W_OK | os.X_OK) else "permission denied, or a read-only file system"
    probe = temp_name(place / "nano3")
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"no folder can be made in {place}: {error.strerror}"
    return None


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary sibling for writing; at the end of the block it becomes `path`, or goes if the block raised."""
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
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # write and fsync do not say which file it was
        raise


def write_text(path: Path, text: str) -> None:
    """Atomically write `text` (UTF-8)."""
    with atomic_open(path) as f:
        f.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Atomically write `value` as indented JSON with a final newline.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) become escapes, which are the same in JSON.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_open(path) as f:
        f.write(text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8)."""
    return json.loads(Path(path).read_bytes())
