"""Report a failing disk or file server, or missing permissions, with a message that names the file."""

import contextlib
import errno
import os
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from nano3.utils.errors import Failure, Nano3Error, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of a disk or file server that are not about permissions.
DISK_FAULTS = (*FULL, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG, errno.ENODEV, errno.ENXIO)
# numpy's message for a failed `ndarray.tofile`, which has no errno.
NUMPY_WRITE_ERROR = re.compile(r"\d+ requested and \d+ written")


def disk_failure(error: OSError, what: str) -> Failure:
    """Return the `Failure` for an error of a disk.

    Args:
        error: The error of reading or writing.
        what: The file or folder, as named in the message.
    """
    if error.errno in FULL:
        return Failure(
            f"{what}: no space left on the device. Free some space and run the same command again; "
            "finished work is kept."
        )
    failing = error.errno in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO)
    return Failure(f"{what}: cannot be {'read or ' * failing}written: {error.strerror or error}")


@contextlib.contextmanager
def allow_full_disk(report: Callable[[], object]) -> Iterator[None]:
    """Go on after the block if the disk is full. Other errors pass through.

    Args:
        report: Called then.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        report()


@contextlib.contextmanager
def translate_disk_errors(default: str) -> Iterator[None]:
    """Turn errors of a disk into a `Failure`, missing permissions and too long names into a `UserError`.

    Other errors pass through.

    Args:
        default: What the message names if the error does not name a file.

    Raises:
        Failure: If a disk or file server failed.
        UserError: If this user may not read or write a file, or its name is too long.
    """
    try:
        yield
    except Nano3Error:
        raise
    except Exception as error:
        if isinstance(error, PermissionError) and isinstance(error.filename, str | bytes | Path):
            raise UserError(permission_problem(error)) from error
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{error.filename2 or error.filename or default}: the name is too long.") from error
        if (fault := find_disk_error(error)) is None:
            raise
        raise disk_failure(fault, str(fault.filename2 or fault.filename or default)) from error


def find_disk_error(error: BaseException | None) -> OSError | None:
    """Return the disk error that an error is or was raised from, or None. A `Failure` already explains its cause."""
    while error is not None and not isinstance(error, Failure):
        if isinstance(error, OSError) and (error.errno in DISK_FAULTS or NUMPY_WRITE_ERROR.match(str(error))):
            return error
        error = error.__cause__
    return None


def permission_problem(error: OSError, path: str | Path | None = None, writes: bool = True) -> str:
    """Return the message for missing permissions: the file, whose it is, what is lacking, and what to type.

    Args:
        error: The error of reading or writing.
        path: The file, if the error does not name it.
        writes: Whether the command may want to write it. False asks for permission to read only.
    """
    names = [name for name in (error.filename2, error.filename) if name] if path is None else [path]
    # ".." must not be resolved through links.
    targets = [Path(os.path.abspath(os.fsdecode(name))) for name in names]  # noqa: PTH100
    found = [(target, *_lacking_permission(target, writes)) for target in targets]
    target, blamed, lacking = next((each for each in found if each[2]), found[0])
    if not lacking:
        return f"{target}: {error.strerror or error}. Check its owner and mode: ls -ld {shlex.quote(str(target))}"
    info = blamed.stat()
    owner, me = _user_name(info.st_uid), _user_name(os.geteuid())
    letters = "".join({"read": "r", "write": "w", "search": "x"}[word] for word in lacking)
    command = f"chmod u+{letters} {shlex.quote(str(blamed))}"
    if info.st_uid != os.geteuid():
        command = f"chmod o+{letters} {shlex.quote(str(blamed))}"
        fix = f"Ask {owner} for access ({command}), or use another folder, or a copy of your own."
    else:
        fix = f"To change that: {command}"
    shown = "It" if blamed == target else f"The folder {blamed}"
    mode = stat.filemode(info.st_mode)
    words = f"{shown} belongs to {owner} ({mode}), and {me} may not {' or '.join(lacking)} it"
    return f"{target}: permission denied. {words}. {fix}"


def _lacking_permission(path: Path, writes: bool) -> tuple[Path, list[str]]:
    """Return the folder or file that stands in the way, and what this user may not do with it ([] if unknown)."""
    for parent in reversed(path.parents):
        if not os.access(parent, os.X_OK, effective_ids=True):
            return parent, ["search"]
    if not os.path.lexists(path) or not path.exists():
        return path.parent, [] if os.access(path.parent, os.W_OK, effective_ids=True) else ["write"]
    wanted = {"read": os.R_OK} | ({"write": os.W_OK} if writes else {})
    wanted |= {"search": os.X_OK} if path.is_dir() else {}
    lacking = [word for word, bit in wanted.items() if not os.access(path, bit, effective_ids=True)]
    if "read" in lacking and not path.is_dir():
        return path, ["read"]
    if lacking:
        return path, lacking
    return path.parent, [] if os.access(path.parent, os.W_OK, effective_ids=True) else ["write"]


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def reason(error: OSError, path: str | Path | None = None) -> str:
    """Return why a file cannot be read or written, as the end of a message; whose it is if permissions lack.

    Args:
        error: The error.
        path: The file, if the error does not name it.
    """
    if isinstance(error, PermissionError) and (path or error.filename):
        return permission_problem(error, path).partition(": ")[2]
    return f"{error.strerror or error}."
