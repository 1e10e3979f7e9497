"""RUN_DIR/local.json: the newest start of a run on this machine and how it ended; Slurm jobs are in jobs.json."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nano3.utils.console import warn
from nano3.utils.disk_errors import reason
from nano3.utils.errors import UserError, exit_code_of
from nano3.utils.records import read_record, write_record

FILE = "local.json"


@dataclass(frozen=True)
class LocalJob:
    """One start on this machine."""

    pid: int
    host: str
    # Local time with its offset, ISO 8601.
    started: str
    # Log of rank 0; "" if it writes to the terminal of the command.
    log: str = ""
    # None while it runs, and for good if it was killed.
    exit_code: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless `started` is a time."""
        datetime.datetime.fromisoformat(self.started)


def _this_process() -> LocalJob:
    """Return the record of a start by this process, now."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return LocalJob(os.getpid(), socket.gethostname(), now)


def record_refused(run_dir: Path) -> None:
    """Record a submission that Slurm refused as a start that ended at once."""
    write_record(run_dir / FILE, replace(_this_process(), exit_code=UserError.exit_code))


class LocalOutcome:
    """Holds the exit code that `record_local_job` writes at the end of its block."""

    code = 0


@contextlib.contextmanager
def record_local_job(run_dir: Path, log: Path | None = None) -> Iterator[LocalOutcome]:
    """Record a start, and at the end of the block its exit code.

    Args:
        run_dir: Run folder.
        log: Log of rank 0, if it does not write to the terminal.

    Yields:
        An object whose `code` to set; an exception that leaves the block is recorded with its own code.
    """
    job = replace(_this_process(), log=str(log.absolute()) if log else "")
    write_record(run_dir / FILE, job)
    outcome = LocalOutcome()
    try:
        yield outcome
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk: report the first error
            write_record(run_dir / FILE, replace(job, exit_code=exit_code_of(error)))
        raise
    try:
        write_record(run_dir / FILE, replace(job, exit_code=outcome.code))
    except OSError as error:  # the run has ended, and its own code counts
        warn(f"{run_dir / FILE}: the end of this start cannot be recorded: {reason(error)}")


def newest_local_job(run_dir: Path) -> LocalJob | None:
    """Return the newest start on this machine, or None if there was none.

    Raises:
        DamagedRecordError: The record is damaged.
    """
    fix = "Remove it: how the newest start on this machine ended is then unknown; the run is not affected."
    try:
        return read_record(run_dir / FILE, LocalJob, fix)
    except FileNotFoundError:
        return None
