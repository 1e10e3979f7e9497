"""The output folder: what it contains, who may write to it, and how a finished build is published.

    train/ valid/ test/  blend.json  manifest.json  tokenizer/      published data: complete, not changed afterwards
    .prep/lock                                                      locked during a preparation
    .prep/<plan>/plan.json units/ shards/ train/ valid/ test/ …     a build; only the plan is kept in the end
    .prep/publish                                                   name of the build that is being published
    .prep/old                                                       the data that is being replaced

Data is built in a folder of its own and published when it is complete. Publishing is a few renames. `.prep/publish` is
written first, so that the next run can finish the renames if this one is killed between two of them.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nano3.data.dataset.manifest import is_manifest, load_manifest
from nano3.data.sources.own_files import PUBLISHED, is_publishing, prep_dir
from nano3.data.tokenization.tokenizer import FILES as TOKENIZER_FILES
from nano3.utils.console import warn
from nano3.utils.disk_errors import disk_failure, permission_problem, reason, translate_disk_errors
from nano3.utils.errors import Failure, UserError, list_some
from nano3.utils.files import fsync_dir, write_text
from nano3.utils.locks import lock_fd

BUILD_NAME = re.compile(r"[0-9a-f]{16}")
OWN_FILES = re.compile(
    rf"(train|valid|test)/data_\d{{5,}}\.(bin|idx)|blend\.json|manifest\.json|tokenizer/({'|'.join(TOKENIZER_FILES)})"
)


def build_dir(output: Path, plan_hash: str) -> Path:
    """Return the folder of a build."""
    return prep_dir(output) / plan_hash[:16]


def create_output_dir(output: Path) -> None:
    """Create the output folder.

    Raises:
        UserError: It cannot be created or written.
        Failure: The disk is full.
    """
    try:
        prep_dir(output).mkdir(parents=True, exist_ok=True)
        if not os.access(prep_dir(output), os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_failure(error, str(output)) from error
        raise UserError(
            f"output_dir={output}: cannot be written: {reason(error, prep_dir(output))} Choose another output_dir."
        ) from error


@contextlib.contextmanager
def hold_output_lock(output: Path, shared: bool = False) -> Iterator[None]:
    """Lock the output folder while the block runs.

    Args:
        output: The output folder; created if needed.
        shared: Take a shared lock, as the tasks of an array do.

    Raises:
        UserError: Another run has locked the folder, or it cannot be written.
        Failure: The disk failed or is full, also while the block runs.
    """
    create_output_dir(output)
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
    """Open the lock file, for reading if it belongs to another user: that is enough to lock it."""
    try:
        return path.open("r" if path.exists() and not os.access(path, os.W_OK) else "a")
    except OSError as error:
        raise UserError(
            f"output_dir={output}: its lock {path} cannot be opened: {reason(error, path)} Choose another output_dir."
        ) from error


def remove_temporary_files(build: Path) -> None:
    """Remove temporary files of killed runs. The caller holds the exclusive lock."""
    folders = [build.parent, build, *(build / sub for sub in ("units", "shards", "train", "valid", "test"))]
    for path in (path for folder in folders for path in folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def foreign_files(output: Path) -> list[str]:
    """Return the files that publishing would move away although nano3 did not write them.

    nano3 knows its shards, tokenizer files, blend.json and manifest.json by name, and its manifest by the keys. A
    damaged manifest counts as nano3's if the folder also holds a plan.

    Args:
        output: The output folder.
    """
    found = []
    for name in PUBLISHED:
        top = output / name
        paths = [p for p in top.rglob("*") if not p.is_dir()] if top.is_dir() and not top.is_symlink() else [top]
        found += [str(p.relative_to(output)) for p in paths if os.path.lexists(p)]
    manifest = output / "manifest.json"
    own_manifest = is_manifest(manifest) or any(prep_dir(output).glob("*/plan.json"))
    return sorted(f for f in found if not OWN_FILES.fullmatch(f) or (f == "manifest.json" and not own_manifest))


def check_no_foreign_files(output: Path) -> None:
    """Raise UserError if replacing the data in the output folder would remove files that nano3 did not write."""
    if foreign := foreign_files(output):
        raise UserError(
            f"output_dir={output}: holds files that nano3 did not write and that would be removed: "
            f"{list_some(foreign, 5)}. Move them elsewhere, or choose another output_dir."
        )


def check_replaceable(output: Path) -> None:
    """Raise UserError if the data in the output folder cannot be replaced, or files of others would be removed.

    A folder can be searched, moved and removed only with all permissions.
    """
    for folder in (output, *(output / name for name in PUBLISHED)):
        if folder.is_dir() and not folder.is_symlink() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            error = PermissionError(errno.EACCES, "permission denied", str(folder))
            raise UserError(f"output_dir={output}: the data in it cannot be replaced: {permission_problem(error)}")
    check_no_foreign_files(output)


def publish(output: Path, build: Path) -> None:
    """Replace the data in the output folder by a finished build, and remove other builds.

    Raises:
        UserError: The folder holds files that nano3 did not write or that cannot be moved. The build is kept.
    """
    check_replaceable(output)
    remove_path(prep_dir(output) / "old")
    write_text(prep_dir(output) / "publish", build.name)
    finish_publishing(output)


def finish_publishing(output: Path) -> None:
    """Finish publishing a build, if a run has started to: move the old data away, then the new data in.

    Every step can be repeated, and the manifest is moved last. `.prep/publish` is removed before the old data.

    Raises:
        Failure: `.prep/publish` names no build of this folder, so it is damaged.
    """
    if not is_publishing(output):
        return
    marker = prep_dir(output) / "publish"
    name = marker.read_bytes().decode(errors="replace").strip()
    build = prep_dir(output) / name
    if not BUILD_NAME.fullmatch(name) or not is_finished(build, output):
        raise Failure(
            f"{marker}: damaged, it names no finished build in {prep_dir(output)}. Nothing was changed. Write the name "
            f"of the finished build into it, or remove it and run again with force=true."
        )
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
    marker.unlink()
    fsync_dir(prep_dir(output))
    for other in prep_dir(output).iterdir():
        if other.is_dir() and other != build and (other == old or BUILD_NAME.fullmatch(other.name)):
            shutil.rmtree(other)
    for sub in ("units", "shards"):
        shutil.rmtree(build / sub, ignore_errors=True)


def is_finished(build: Path, output: Path) -> bool:
    """Return whether a folder holds a finished build, or one that was moved into the output folder already.

    Args:
        build: Folder of the build.
        output: The output folder.
    """
    if not build.is_dir():
        return False
    if (build / "manifest.json").exists():
        return True
    moved = output / "manifest.json"
    return moved.exists() and load_manifest(output).plan_hash[:16] == build.name


def remove_path(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
