"""Run a job on this machine: in this process, under torchrun, or as a process of its own (sweep points)."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from launch.follow import say, tail_lines
from launch.job import Job
from launch.local_job import record_local_job
from launch.lock import RunLock
from launch.rank import call_entry
from nano3.utils.console import write
from nano3.utils.errors import HANG_EXIT_CODE, RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE
from nano3.utils.signals import handle_signals

# Exit codes that launch.torchrun_rank hides from torchrun.
_REPORTED_AS_SUCCESS = (ROLLBACK_EXIT_CODE, RESTART_EXIT_CODE)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


def run_in_process(job: Job) -> int:
    """Call the entry in this process and return its exit code; its exceptions propagate."""
    os.environ.update(job.cluster.env)
    if job.finished:  # the entry shows its result and writes nothing
        return call_entry(job.entry, job.args)
    with record_local_job(job.run_dir) as outcome:
        outcome.code = call_entry(job.entry, job.args)
    return outcome.code


def rank_command(job: Job) -> list[str]:
    """Return the command line that runs the job: one process, or torchrun and its ranks."""
    if job.ranks == 1:
        return [sys.executable, "-u", "-m", "launch.rank", job.entry, *job.args]
    return [
        sys.executable, "-u", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.ranks}",
        "--max-restarts=0", "-m", "launch.torchrun_rank", str(job.run_dir.absolute() / "logs"), job.entry, *job.args,
    ]  # fmt: skip


def show_job(job: Job) -> int:
    """Print what a local job would run, for a dry run."""
    if job.in_process:
        write(f"# ---- would run in this process: {job.entry}\n")
    else:
        write(f"# ---- would run here\n{shlex.join(rank_command(job))}\n")
    write_preview(job.preview)
    return 0


def write_preview(preview: str) -> None:
    """Print the preview of a job, if it has one, with one line end."""
    if preview:
        write(preview.rstrip("\n") + "\n")


def run_ranks(job: Job, lock: RunLock) -> int:
    """Run the ranks, several of them under torchrun, and return the exit code of the job.

    Args:
        job: The job.
        lock: The held lock of its run folder; the process of the ranks inherits it.

    Returns:
        The code of the first rank that failed, or 75 if the ranks saved and stopped.
    """
    end = run_process(job, None, lock)
    if end.reason:
        say(end.reason)
    return end.code


@dataclass(frozen=True)
class ProcessEnd:
    """How the process of a job ended."""

    code: int
    # What is known about a failure.
    reason: str
    # This command was asked to stop while the process ran.
    stop_requested: bool


def run_process(job: Job, log: Path | None, lock: RunLock) -> ProcessEnd:
    """Run the job in a process of its own, which holds the run lock too and can outlive this command.

    SIGINT, SIGTERM, SIGUSR2 and SIGHUP to this process are forwarded to the ranks, so that they can save; the second
    SIGINT kills them. A SIGHUP that is ignored, as under nohup, stays ignored.

    Args:
        job: The job.
        log: File for stdout and stderr; None for those of this process.
        lock: The held lock of the run folder.
    """
    logs = job.run_dir.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with record_local_job(job.run_dir, log) as outcome:
        end = _run_once(job, log, lock, logs)
        while end.code == ROLLBACK_EXIT_CODE and not end.stop_requested:
            end = _run_once(job, log, lock, logs)
        if end.code == ROLLBACK_EXIT_CODE:  # asked to stop meanwhile: nothing is lost
            end = ProcessEnd(RESTART_EXIT_CODE, "", stop_requested=True)
        outcome.code = end.code
    return end


def _run_once(job: Job, log: Path | None, lock: RunLock, logs: Path) -> ProcessEnd:
    """Start the ranks of a job once, and wait for their end."""
    for old in [*logs.glob("*.exit"), *logs.glob("*.pid")]:
        old.unlink()
    with contextlib.ExitStack() as files:
        out: IO[bytes] | None = files.enter_context(log.open("ab")) if log else None
        err: IO[bytes] | int | None = subprocess.STDOUT if log else None
        if job.ranks > 1:
            err = files.enter_context((logs / "torchrun.log").open("wb"))
        process = subprocess.Popen(
            rank_command(job), stdout=out, stderr=err, env={**os.environ, **job.cluster.env}, start_new_session=True,
            pass_fds=(lock.fd,),
        )  # fmt: skip
        lock.write_holder(process.pid)
        with _forward_signals(process, lambda: _signal_targets(process, job, logs)) as received:
            code = process.wait()
        if code < 0:
            # A stop request before launch.rank handles signals ends the process; nothing is lost then.
            stopped = received and -code in (signal.SIGTERM, signal.SIGUSR2)
            code = RESTART_EXIT_CODE if stopped else 128 - code
        killed = log_end(logs / "rank_0.log") if code > 128 else []
        reason = "\n".join([f"rank 0 ended with exit code {code}", *killed]) if code else ""
        if job.ranks > 1:
            code, reason = _torchrun_end(job, logs, code)
    return ProcessEnd(code, reason, stop_requested=bool(received))


def _signal_targets(process: "subprocess.Popen[bytes]", job: Job, logs: Path) -> list[int]:
    """Return the processes to signal: the ranks themselves, because torchrun kills its ranks after 30 seconds."""
    if job.ranks == 1:
        return [process.pid]
    pids = [int(text) for path in logs.glob("*.pid") if (text := path.read_text())]
    return pids if len(pids) == job.ranks else [process.pid]


@contextlib.contextmanager
def _forward_signals(process: "subprocess.Popen[bytes]", targets: Callable[[], list[int]]) -> Iterator[list[int]]:
    """Forward signals of this process during the block, and yield the list of received signals."""
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        interrupted = signal.SIGINT in received
        received.append(signum)
        if signum == signal.SIGINT and interrupted:
            os.killpg(process.pid, signal.SIGKILL)
            for pid in targets():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        if signum == signal.SIGINT:
            say("stopping: the ranks are asked to save (Ctrl-C again kills them)")
        for pid in targets():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if signum in (signal.SIGINT, signal.SIGHUP) else signum)

    with handle_signals(_FORWARDED, forward):
        yield received


def _torchrun_end(job: Job, logs: Path, code: int) -> tuple[int, str]:
    """Return the job's exit code and the reason of a failure.

    After any failure torchrun's own code is 1. The codes of the ranks come from the files of launch.torchrun_rank,
    oldest first, and for ranks that a signal ended from torchrun's log.
    """
    exits = sorted(logs.glob("*.exit"), key=lambda path: path.stat().st_mtime_ns)
    codes = {path.stem: int(text) for path in exits if (text := path.read_text())}  # "": killed while writing it
    if code == 0:
        return next((own for own in _REPORTED_AS_SUCCESS if own in codes.values()), 0), ""
    failed = next(((rank, end) for rank, end in codes.items() if end not in (0, *_REPORTED_AS_SUCCESS)), None)
    log = logs / "torchrun.log"
    before, _, root_cause = log.read_text(errors="replace").partition("Root Cause")  # absent if only one rank failed
    # A rank that a signal or its hang watch ended leaves no file.
    ended = re.search(rf"rank\s*:\s*(\d+).*?exitcode\s*:\s*(-\d+|{HANG_EXIT_CODE}\b)", root_cause or before, re.DOTALL)
    if ended and int(ended[2]) != -signal.SIGTERM:  # torchrun itself ends the other ranks with SIGTERM
        rank, end = ended[1], HANG_EXIT_CODE if int(ended[2]) > 0 else 128 - int(ended[2])
    elif failed:
        rank, end = failed
    else:
        return code, "\n".join([f"torchrun failed with exit code {code}; end of {log}:", *tail_lines(log)])
    rank_log = logs / f"rank_{rank}.log"
    lines = [f"rank {rank} failed first, with exit code {end}"]
    if rank != "0" or rank not in codes:  # rank 0 has shown why, unless it was killed
        lines += log_end(rank_log)
    return end, "\n".join(lines)


def log_end(log: Path) -> list[str]:
    """Return the last lines of a log under a line that names it; empty if there is no log."""
    return [f"end of {log}:", *tail_lines(log)] if log.is_file() else []
