"""Runs on this machine, for the tools: whether one runs, how it ended, where its output is, and asking it to stop."""

import contextlib
import os
import re
import signal
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch import job_records, local_job, lock
from launch.follow import last_metrics
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, RESTART_EXIT_CODE, Failure
from nano3.utils.files import read_json


@dataclass(frozen=True)
class State:
    """`word`: running, finished, stopped (the same command goes on), refused or failed; the exit code where known."""

    word: str
    code: int | None = None
    # While it runs: "process 12 on host".
    holder: str = ""

    @property
    def exit_code(self) -> int:
        """`code`, or what the word stands for where it is not known: a run that was killed noted none."""
        return (
            {"failed": Failure.exit_code, "stopped": RESTART_EXIT_CODE}.get(self.word, 0)
            if self.code is None
            else self.code
        )

    def __str__(self) -> str:
        return f"{self.word} ({self.holder})" if self.holder else self.word


def is_newest(run_dir: Path) -> bool:
    """Whether the newest start of a run was one on this machine, not a job of Slurm."""
    entries, start = job_records.read_records(run_dir), local_job.newest_local_job(run_dir)
    if not entries or lock.lock_holder(run_dir):
        return True
    return start is not None and datetime.fromisoformat(start.started) > datetime.fromisoformat(entries[-1].submitted)


def state_of(run_dir: Path) -> State:
    """How it is with a run whose newest start was here."""
    if holder := lock.lock_holder(run_dir):
        return State("running", holder=holder)
    start = local_job.newest_local_job(run_dir)
    code = start.exit_code if start else None
    if (run_dir / "finished.json").exists():
        return State("finished", 0)
    if start is None:
        return State("stopped" if _saved_last(run_dir) else "failed")
    words = {0: "finished", RESTART_EXIT_CODE: "stopped", INTERRUPTED_EXIT_CODE: "stopped", 2: "refused"}
    return State(words.get(code, "failed") if code is not None else "failed", code)


def _saved_last(run_dir: Path) -> bool:
    """Whether a run of which no end was noted saved after all that it recorded: then it was not broken off."""
    try:
        return bool(read_json(run_dir / "progress.json")["iteration"] >= last_metrics(run_dir).get("iteration", 0))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def stop(run_dir: Path, holder: str) -> str:
    """Ask the process that runs a run here to save and end; says what was done. Raises `Failure` when it cannot be."""
    pids = [int(pid) for pid in re.findall(r"process (\d+)", holder)]
    host = re.search(r" on ([^\s,]+)", holder)
    if not pids or (host and host[1] != socket.gethostname()):
        where = f"ssh {host[1]} kill {pids[0]}" if host and pids else "end it where it was started"
        raise Failure(f"{run_dir} is in use by {holder}, not on this machine. To let it save and stop: {where}")
    for pid in pids:
        try:
            if _holds(pid, run_dir):
                os.kill(pid, signal.SIGTERM)
                return f"asked process {pid} ({run_dir}) to save and stop; the same command goes on from there"
        except PermissionError:
            raise Failure(f"{run_dir} is in use by {holder}, which is another user's: ask them.") from None
    raise Failure(f"{run_dir} is in use by {holder}, which cannot be found here.")


def _holds(pid: int, run_dir: Path) -> bool:
    """Whether a process has the run's lock open: numbers of processes are used again."""
    wanted = (run_dir / lock.FILE).stat()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = link.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False
