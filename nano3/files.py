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
    """Atomically write `value` as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8)."""
    return json.loads(Path(path).read_bytes())
