"""A disk, or a file server, that refuses what may be written there: told as the foreseen failure that it is."""

import contextlib
import errno
import re
from collections.abc import Iterator

from nano3.utils.errors import Failure

FULL = (errno.ENOSPC, errno.EDQUOT)
# What a disk, or a file server, may answer to somebody who may write there.
DISK_FAULTS = (*FULL, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG, errno.ENODEV, errno.ENXIO)
# What numpy says instead of a number (`ndarray.tofile`).
NUMPY = re.compile(r"\d+ requested and \d+ written")


def disk_error(error: OSError, what: str) -> Failure:
    """What to tell when writing `what` failed, or (a disk or server that fails altogether) reading it."""
    if error.errno in FULL:
        return Failure(
            f"{what}: no space left on the device. Free some and run the same command again: what was finished is kept."
        )
    failing = error.errno in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO)
    return Failure(f"{what}: cannot be {'read or ' * failing}written: {error.strerror or error}")


@contextlib.contextmanager
def disk_errors(otherwise: str) -> Iterator[None]:
    """Turn what a disk refuses into a `Failure` that names the file, or `otherwise` where the system names none; all
    other errors pass."""
    try:
        yield
    except Exception as error:
        if (fault := disk_fault(error)) is None:
            raise
        raise disk_error(fault, str(fault.filename2 or fault.filename or otherwise)) from error


def disk_fault(error: BaseException | None) -> OSError | None:
    """The refusal of a disk that an error is, or that a library has raised it from; a `Failure` says it already."""
    while error is not None and not isinstance(error, Failure):
        if isinstance(error, OSError) and (error.errno in DISK_FAULTS or NUMPY.match(str(error))):
            return error
        error = error.__cause__
    return None
