"""Report a failing disk or file server as a `Failure` that names the file, instead of with a traceback."""

import contextlib
import errno
import re
from collections.abc import Iterator

from nano3.utils.errors import Failure

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
def translate_disk_errors(default: str) -> Iterator[None]:
    """Turn errors of a disk into a `Failure`. Other errors pass through.

    Args:
        default: What the message names if the error does not name a file.

    Raises:
        Failure: If a disk or file server failed.
    """
    try:
        yield
    except Exception as error:
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
