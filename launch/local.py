"""Running on this machine: in this process, under torchrun, or as a process of its own (points of a sweep)."""

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

from launch.follow import say, tail
from launch.job import AGAIN, Job
from launch.local_job import record_local_job
from launch.lock import RunLock
from launch.rank import call
from nano3.utils.console import console

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def run_here(job: Job) -> int:
    """Call the entry in this process; exceptions pass to the caller."""
    os.environ.update(job.cluster.env)
    if job.finished:  # shows its result and writes nothing
        return call(job.entry, job.args)
    with record_local_job(job.run_dir) as ending:
        ending.code = call(job.entry, job.args)
    return ending.code


def rank_command(job: Job) -> list[str]:
    """The job as a command of its own: one process, or torchrun and its ranks."""
    if job.ranks == 1:
        return [sys.executable, "-u", "-m", "launch.rank", job.entry, *job.args]
    return [
        sys.executable, "-u", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.ranks}",
        "--max-restarts=0", "-m", "launch.torchrun_rank", str(job.run_dir.absolute() / "logs"), job.entry, *job.args,
    ]  # fmt: skip


def show(job: Job) -> int:
    """A dry run of a local job."""
    out = console()
    if job.ranks == 1:
        out.print(f"# ---- would run in this process: {job.entry}", markup=False)
    else:
        out.print("# ---- would run here", markup=False)
        print(shlex.join(rank_command(job)), flush=True)
    if job.preview:
        print(job.preview.rstrip("\n"), flush=True)
    return 0


def run_torchrun(job: Job, lock: RunLock) -> int:
    """Start the ranks under torchrun; the exit code of the rank that failed first, 75 when they stopped with their
    state saved.
    """
    end = run_process(job, None, lock)
    if end.reason:
        say(end.reason)
    return end.code


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code, what is known of why it failed, and whether it was asked to stop."""

    code: int
    reason: str
    told_to_stop: bool


def run_process(job: Job, log: Path | None, lock: RunLock) -> End:
    """Run the job as a process here that holds its run folder, too, and would go on doing so without this one.

    stdout and stderr go to `log` when given. SIGINT, SIGTERM and SIGUSR2 to this process are passed to the ranks, so
    that they can save; the second SIGINT kills.
    """
    logs = job.run_dir.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in [*logs.glob("*.exit"), *logs.glob("*.pid")]:
        old.unlink()
    with contextlib.ExitStack() as files:
        ending = files.enter_context(record_local_job(job.run_dir, log))
        out: IO[bytes] | None = files.enter_context(log.open("ab")) if log else None
        err: IO[bytes] | int | None = subprocess.STDOUT if log else None
        if job.ranks > 1:
            err = files.enter_context((logs / "torchrun.log").open("wb"))
        process = subprocess.Popen(
            rank_command(job), stdout=out, stderr=err, env={**os.environ, **job.cluster.env}, start_new_session=True,
            pass_fds=(lock.fd,),
        )  # fmt: skip
        lock.write_holder(process.pid)
        with _passing_on(process, lambda: _rank_pids(process, job, logs)) as passed:
            code = process.wait()
        if code < 0:  # told to stop before launch.rank could handle that: nothing is lost
            code = AGAIN if passed and -code in (signal.SIGTERM, signal.SIGUSR2) else 128 - code
        reason = f"exit code {code}" if code else ""
        if job.ranks > 1:
            code, reason = _torchrun_outcome(job, logs, code)
        ending.code = code
    return End(code, reason, told_to_stop=bool(passed))


def _rank_pids(process: "subprocess.Popen[bytes]", job: Job, logs: Path) -> list[int]:
    """Processes that a stop request is for: the ranks themselves, as torchrun would kill them after 30 seconds."""
    if job.ranks == 1:
        return [process.pid]
    pids = [int(text) for path in logs.glob("*.pid") if (text := path.read_text())]
    return pids if len(pids) == job.ranks else [process.pid]


@contextlib.contextmanager
def _passing_on(process: "subprocess.Popen[bytes]", targets: Callable[[], list[int]]) -> Iterator[list[int]]:
    """Pass signals of this process on while the block runs, and give the list of those that came."""
    passed: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        interrupted = signal.SIGINT in passed
        passed.append(signum)
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
                os.kill(pid, signal.SIGTERM if signum == signal.SIGINT else signum)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _torchrun_outcome(job: Job, logs: Path, code: int) -> tuple[int, str]:
    """Torchrun ends with 1 whatever the rank's code was: the ranks left theirs in files, oldest first."""
    ends = sorted(logs.glob("*.exit"), key=lambda path: path.stat().st_mtime_ns)
    codes = {path.stem: int(text) for path in ends if (text := path.read_text())}  # "": ended while writing it
    if code == 0:
        return (AGAIN if AGAIN in codes.values() else 0), ""
    failed = next(((rank, end) for rank, end in codes.items() if end not in (0, AGAIN)), None)
    log = logs / "torchrun.log"
    told = log.read_text(errors="replace").partition("Root Cause")  # without it the first is all there is
    killed = re.search(r"rank\s*:\s*(\d+).*?exitcode\s*:\s*(-\d+)", told[2] or told[0], re.DOTALL)
    if killed and int(killed[2]) != -signal.SIGTERM:  # torchrun itself ends the others with SIGTERM
        rank, end = killed[1], 128 - int(killed[2])
    elif failed:
        rank, end = failed
    else:
        return code, "\n".join([f"torchrun failed with exit code {code}; end of {log}:", *tail(log)])
    own_log = logs / f"rank_{rank}.log"
    lines = [f"rank {rank} failed first, with exit code {end}"]
    if rank != "0":
        lines += [f"end of {own_log}:", *tail(own_log)]
    return end, "\n".join(lines)
