"""RUN_DIR/local.json: the newest start of a run on this machine, and how it ended; jobs of Slurm are in jobs.json."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nano3.utils.errors import INTERRUPTED_EXIT_CODE, Nano3Error
from nano3.utils.files import read_json, write_json

FILE = "local.json"


@dataclass(frozen=True)
class LocalJob:
    """One start here."""

    pid: int
    host: str
    # Local time with its offset, ISO 8601.
    started: str
    # Where rank 0's output goes; "" is the terminal of whoever started it.
    log: str = ""
    # None as long as it runs, and for ever when it was killed.
    exit_code: int | None = None


class Ending:
    """Takes the exit code of the start that `record_local_job` holds."""

    code = 0


@contextlib.contextmanager
def record_local_job(run_dir: Path, log: Path | None = None) -> Iterator[Ending]:
    """Note a start, and at the end of the block the exit code that was put into `Ending`, or that of the exception."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    start = LocalJob(os.getpid(), socket.gethostname(), now, str(log.absolute()) if log else "")
    write_json(run_dir / FILE, asdict(start))
    ending = Ending()
    try:
        yield ending
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk: the first error is the one to tell
            write_json(run_dir / FILE, asdict(replace(start, exit_code=_code_of(error))))
        raise
    write_json(run_dir / FILE, asdict(replace(start, exit_code=ending.code)))


def _code_of(error: BaseException) -> int:
    if isinstance(error, Nano3Error):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED_EXIT_CODE
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def newest_local_job(run_dir: Path) -> LocalJob | None:
    """The newest start here; None when there was none, or its file cannot be read."""
    try:
        return LocalJob(**read_json(run_dir / FILE))
    except (OSError, ValueError, TypeError):
        return None
