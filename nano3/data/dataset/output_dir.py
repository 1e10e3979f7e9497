"""The output folder: what is in it, who may write to it, and how a finished build takes its place.

    train/ valid/ test/  blend.json  manifest.json  tokenizer/      published, whole, read-only from then on
    .prep/lock                                                      held while somebody prepares
    .prep/<plan>/plan.json units/ shards/ train/ valid/ test/ …     a build in progress; the plan stays
    .prep/publish                                                   names the build that is being moved into place

A build is made in its own folder and moved only when it is whole. Moving is a few renames; a file written first
names the build, so that a run that was killed between two renames is finished by the next one.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nano3.data.sources.own_files import PUBLISHED, is_publishing, prep_dir
from nano3.utils.console import warn
from nano3.utils.disk_errors import disk_failure, translate_disk_errors
from nano3.utils.errors import UserError
from nano3.utils.files import fsync_dir, write_text
from nano3.utils.locks import lock_fd


def build_dir(output: Path, plan_hash: str) -> Path:
    """The folder of one build."""
    return prep_dir(output) / plan_hash[:16]


def make_writable(output: Path) -> None:
    """Create the folder; `UserError` when that, or writing in it, is not allowed."""
    try:
        prep_dir(output).mkdir(parents=True, exist_ok=True)
        if not os.access(prep_dir(output), os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_failure(error, str(output)) from error
        raise UserError(
            f"output_dir={output}: cannot be written: {error.strerror}. Choose another output_dir."
        ) from error


@contextlib.contextmanager
def hold_output_lock(output: Path, shared: bool = False) -> Iterator[None]:
    """Hold the output folder. Tasks of one array share it; anybody else gets a `UserError`."""
    make_writable(output)
    path = prep_dir(output) / "lock"
    with open_lock(path, output) as f:
        try:
            no_locks = lock_fd(f.fileno(), shared=shared)
        except BlockingIOError as error:
            raise UserError(
                f"output_dir={output}: another run is preparing data there (lock {path}). Wait for it, or "
                f"choose another output_dir."
            ) from error
        except OSError as error:
            raise disk_failure(error, str(path)) from error
        if no_locks:
            warn(f"output_dir={output}: no locks on this file system ({no_locks}). Start only one run on it.")
        with translate_disk_errors(str(output)):
            yield


def open_lock(path: Path, output: Path) -> IO[str]:
    """The lock file; one that belongs to somebody else can be locked without writing to it."""
    try:
        return path.open("r" if path.exists() and not os.access(path, os.W_OK) else "a")
    except OSError as error:
        raise UserError(
            f"output_dir={output}: its lock {path} cannot be opened: {error.strerror}. Another user made it: let them "
            f"give you the folder, or choose another output_dir."
        ) from error


def remove_temporary_files(build: Path) -> None:
    """Remove what killed runs left half-written. Only under an exclusive lock."""
    places = [build.parent, build, *(build / sub for sub in ("units", "shards", "train", "valid", "test"))]
    for path in (path for place in places for path in place.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def publish(output: Path, build: Path) -> None:
    """Move a whole build into place of what is there, and drop other builds."""
    remove_path(prep_dir(output) / "old")
    write_text(prep_dir(output) / "publish", build.name)
    finish_publishing(output)


def finish_publishing(output: Path) -> None:
    """Go on with a publication that was begun: first everything old goes out, then everything new comes in, the
    manifest last.

    Every step can be repeated. The note is removed before the old files, which are then only waste.
    """
    if not is_publishing(output):
        return
    note = prep_dir(output) / "publish"
    build = prep_dir(output) / note.read_text().strip()
    old = prep_dir(output) / "old"
    old.mkdir(exist_ok=True)
    if not (old / "complete").exists():
        for name in reversed(PUBLISHED):
            if (output / name).exists():
                (output / name).rename(old / name)
        write_text(old / "complete", "")
        fsync_dir(output)
    for name in PUBLISHED:
        if (build / name).exists():
            (build / name).rename(output / name)
    fsync_dir(output)
    note.unlink()
    fsync_dir(prep_dir(output))
    for other in prep_dir(output).iterdir():
        if other.is_dir() and other != build:
            shutil.rmtree(other)
    for sub in ("units", "shards"):
        shutil.rmtree(build / sub, ignore_errors=True)


def remove_path(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
