"""Runs on this machine: whether one is running, how it ended, and how to stop it."""

import contextlib
import os
import re
import signal
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch import job_records, local_job, lock
from launch.progress import last_metrics
from nano3.training.run.record import FinishRecord, read_finish_record
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, RESTART_EXIT_CODE, Failure, UserError
from nano3.utils.records import DamagedRecordError, read_record

# A run that was killed has recorded no exit code. The code then follows from the name of the state; 0 for all others.
_DEFAULT_CODES = {"failed": Failure.exit_code, "stopped": RESTART_EXIT_CODE}
_NAMES = {
    0: "finished",
    RESTART_EXIT_CODE: "stopped",
    INTERRUPTED_EXIT_CODE: "stopped",
    UserError.exit_code: "refused",
}


@dataclass(frozen=True)
class LocalState:
    """State of a run on this machine.

    Attributes:
        name: running, finished, stopped (the same command resumes it), refused or failed.
        code: Recorded exit code, None if unknown.
        holder: Process of a running run, as "process 12 on host".
    """

    name: str
    code: int | None = None
    holder: str = ""

    @property
    def exit_code(self) -> int:
        """The recorded exit code, or the usual one of the state."""
        return _DEFAULT_CODES.get(self.name, 0) if self.code is None else self.code

    def __str__(self) -> str:
        """Return the name, and the process of a running run."""
        return f"{self.name} ({self.holder})" if self.holder else self.name


def newest_start_is_local(run_dir: Path) -> bool:
    """Return whether the newest start of a run was on this machine, not a Slurm job."""
    records, job = job_records.read_records(run_dir), local_job.newest_local_job(run_dir)
    if not records or lock.lock_holder(run_dir):
        return True
    return job is not None and datetime.fromisoformat(job.started) > datetime.fromisoformat(records[-1].submitted)


def local_state(run_dir: Path) -> LocalState:
    """Return the state of a run that was last started on this machine."""
    if holder := lock.lock_holder(run_dir):
        return LocalState("running", holder=holder)
    job = local_job.newest_local_job(run_dir)
    if read_finish_record(run_dir):
        return LocalState("finished", 0)
    if job is None:
        return LocalState("stopped" if _saved_after_last_metrics(run_dir) else "failed")
    if job.exit_code is None:
        return LocalState("failed")
    return LocalState(_NAMES.get(job.exit_code, "failed"), job.exit_code)


def _saved_after_last_metrics(run_dir: Path) -> bool:
    """Return whether a run saved a checkpoint after its last logged iteration, so that it was not killed."""
    fix = "Remove it: the next checkpoint writes it again."
    try:
        saved = read_record(run_dir / "progress.json", FinishRecord, fix).iteration
    except (FileNotFoundError, DamagedRecordError):  # no proof that it saved
        return False
    return saved >= int(last_metrics(run_dir).get("iteration", 0))


def stop_local_run(run_dir: Path, holder: str) -> str:
    """Send SIGTERM to the process of a run, so that it saves a checkpoint and stops.

    Args:
        run_dir: Run folder.
        holder: Holder of its lock, as "process 12 on host" (see `launch.lock.lock_holder`).

    Returns:
        A message for the user.

    Raises:
        Failure: The process is on another host, belongs to another user, or does not exist.
    """
    pids = [int(pid) for pid in re.findall(r"process (\d+)", holder)]
    host = re.search(r" on ([^\s,]+)", holder)
    if not pids or (host and host[1] != socket.gethostname()):
        command = f"ssh {host[1]} kill {pids[0]}" if host and pids else "end it where it was started"
        raise Failure(f"{run_dir} is in use by {holder}, not on this machine. To let it save and stop: {command}")
    for pid in pids:
        try:
            if _has_lock_open(pid, run_dir):
                os.kill(pid, signal.SIGTERM)
                return f"asked process {pid} ({run_dir}) to save and stop; the same command resumes the run"
        except PermissionError:
            raise Failure(f"{run_dir} is in use by {holder}, a process of another user. Ask its owner.") from None
    raise Failure(f"{run_dir} is in use by {holder}, but there is no such process on this machine.")


def _has_lock_open(pid: int, run_dir: Path) -> bool:
    """Return whether a process has the run's lock file open. Its pid alone may have been reused."""
    wanted = (run_dir / lock.FILE).stat()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = link.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False
