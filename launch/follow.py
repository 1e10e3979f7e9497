"""Follow jobs from a command: their states, rank 0's log, the newest metrics, the exit code; and Ctrl-C."""

import contextlib
import os
import re
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from launch import job_records, slurm
from launch.job_end import JobMarkers
from launch.state_text import describe_state, never_starts, waited_s, waiting_text
from launch.submit import SubmittedJob
from nano3.utils import console
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, Failure
from nano3.utils.signals import handle_signals

_LOG_POLL_S = 0.25
_FORGOTTEN_S = 20
_TAIL_LINES = 25
# What is read of the end of a log for each line that is shown.
_TAIL_BYTES = 1 << 14
# How long Ctrl-C waits for an answer.
_DETACH_S = 3
# How long a job has waited when that is first reported again; then whenever that time has doubled.
_REPORT_WAIT_S = 60


def say(text: str) -> None:
    """Print a line about the job to stderr, apart from the job's own output on stdout."""
    console.say(f"launch: {text}", stderr=True)


class LogStream:
    """Copies what is appended to a file after `offset` to stdout, without control sequences of the terminal."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self._offset = offset

    def copy(self) -> None:
        """Print what was appended since the last call."""
        try:
            with self.path.open("rb") as log:
                log.seek(self._offset)
                new = log.read()
        except FileNotFoundError:
            return
        if new:
            self._offset += len(new)
            console.write_log(new)


class Watch:
    """Polls the states of some jobs, at most every `poll_s` seconds; reports it when Slurm does not answer."""

    def __init__(
        self, ids: list[str], poll_s: float, end_of: Callable[[str], slurm.JobState] = lambda job: slurm.UNKNOWN
    ) -> None:
        """Begin with unknown states.

        Args:
            ids: The jobs.
            poll_s: Seconds between queries.
            end_of: Returns the end of a job that Slurm has forgotten, or `UNKNOWN`.
        """
        self._end_of = end_of
        self.states = dict.fromkeys(ids, slurm.UNKNOWN)
        self._poll_s = poll_s
        self._next = 0.0
        self._previous: dict[str, slurm.JobState] = {}
        self._unknown_since: float | None = None
        self._silent = False

    def poll(self) -> bool:
        """Ask Slurm if it is time to, and return whether there are new answers.

        Raises:
            Failure: Slurm has not known one of the jobs for a while.
        """
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._poll_s
        try:
            answers = slurm.states(job for job in self.states if not self._settled(job))
        except Failure as error:
            if not self._silent:
                say(f"{error}. Retrying; the job does not depend on this command.")
            self._silent = True
            return False
        self._silent = False
        for job, state in answers.items():
            if state != slurm.UNKNOWN:
                self._previous[job] = self.states[job]
                self.states[job] = state
        self._check_forgotten([job for job, state in answers.items() if state == slurm.UNKNOWN])
        return True

    def _settled(self, job: str) -> bool:
        """Return whether a job has ended in two polls: a job that is being requeued looks ended for a moment."""
        state = self.states[job]
        return state.ended and (state.state == "COMPLETED" or self._previous.get(job) == state)

    def _check_forgotten(self, jobs: list[str]) -> None:
        if not jobs:
            self._unknown_since = None
            return
        self._unknown_since = self._unknown_since or time.monotonic()
        if time.monotonic() - self._unknown_since > _FORGOTTEN_S:
            for job in jobs:
                self.states[job] = self._previous[job] = self._end_of(job)
            if all(self._settled(job) for job in jobs):
                return
            raise Failure(
                f"Slurm does not know job {', '.join(jobs)} (any more), and there is no accounting to ask. "
                "The log and the run folder show how it ended."
            )

    @property
    def ended(self) -> bool:
        """Whether all jobs have ended for good."""
        return all(self._settled(job) for job in self.states)


def follow(job: SubmittedJob, rank: int = 0, offset: int = 0) -> int:
    """Stream the log of one rank until the job has ended for good.

    Args:
        job: The job.
        rank: The rank whose log to stream.
        offset: Byte of the log to begin at.

    Returns:
        The exit code of the job.
    """
    records = {record.id: record for record in job_records.read_records(job.run_dir)}
    watch = Watch([job.id], job.poll_s, lambda job_id: job_records.end_without_slurm(job.run_dir, records[job_id]))
    stream = LogStream(job.log(rank), offset)
    report = _StateReport(job)
    while not watch.ended:
        stream.copy()
        if watch.poll():
            report.update(watch.states[job.id])
        time.sleep(min(_LOG_POLL_S, job.poll_s))
    stream.copy()
    state = watch.states[job.id]
    job_records.record_end(job.run_dir, job.id, state)
    if state.code:
        report_failure(job, state, rank)
    return state.code


class _StateReport:
    """Says how a job's state changes and, while it waits, now and then for how long and what Slurm expects."""

    def __init__(self, job: SubmittedJob) -> None:
        self._job = job
        self._shown = ""
        self._next_wait = float(_REPORT_WAIT_S)

    def update(self, state: slurm.JobState) -> None:
        """Report a state if there is something new."""
        now, waited = describe_state(state), waited_s(state) or 0.0
        if now == self._shown and waited < self._next_wait:
            return
        waiting = waiting_text(state)
        say(f"job {self._job.id} {now}" + (f", {waiting}" if waiting else ""))
        if now != self._shown and never_starts(state):
            cancel = f"nano3 cancel {shlex.quote(str(self._job.run_dir))}"
            say(f"end it with `{cancel}`, change what Slurm names, and submit it again")
        self._shown = now
        while self._next_wait <= waited:
            self._next_wait *= 2


def report_failure(job: SubmittedJob, state: slurm.JobState, streamed: int) -> None:
    """Say which rank failed first, with the end of its log unless that log was streamed.

    Args:
        job: The job.
        state: Its final state.
        streamed: The rank whose log was streamed.
    """
    if failure := JobMarkers(job.folder, job.id).first_failure():
        where = f"rank {failure.rank} on {failure.host}"
        say(f"job {job.id}: {where} failed first, with exit code {failure.code}")
        if failure.rank != streamed:
            log = job.log(failure.rank)
            say(f"end of {log}:")
            console.write("".join(f"{line}\n" for line in tail_lines(log)), stderr=True)
    say(f"job {job.id} ended as {state.state} with exit code {state.code}; logs: {job.folder}/{job.id}_*_log.out")


def tail_lines(log: Path, lines: int = _TAIL_LINES) -> list[str]:
    """Return the last lines of a log, [] if it does not exist."""
    return read_tail_and_size(log, lines)[0].splitlines()


# What srun adds to the log of rank 0 after any failure.
_SRUN_NOISE = re.compile(
    r"srun: (Job step aborted|launch/slurm: |error: .*: tasks? .*: (Exited with exit code|Terminated))"
    r"|slurmstepd: error: \*\*\* STEP"
)


def failure_lines(log: Path, lines: int) -> list[str]:
    """Return the last lines of a log that may say why the rank failed, without empty ones and what srun adds.

    Args:
        log: The log.
        lines: How many lines to return at most.
    """
    found = [line for line in tail_lines(log) if line.strip()]
    return ([line for line in found if not _SRUN_NOISE.match(line)] or found)[-lines:]


def read_tail_and_size(log: Path, lines: int) -> tuple[str, int]:
    """Return the last lines of a log and the byte offset at which they end, to follow the log from there.

    Only the end of a long log is read: fewer lines are returned if they are very long.
    """
    try:
        with log.open("rb") as file:
            begin = max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES * max(lines, 1))
            file.seek(begin)
            read = file.read()
    except FileNotFoundError:
        return "", 0
    all_lines = read.decode(errors="replace").splitlines(keepends=True)[1 if begin else 0 :]
    return "".join(all_lines[max(0, len(all_lines) - lines) :]), begin + len(read)


def follow_hint(run_dir: Path) -> str:
    """Return a sentence with the commands to follow and to end a run later."""
    quoted = shlex.quote(str(run_dir))
    return f"Follow it with `nano3 tail {quoted}`, end it with `nano3 cancel {quoted}`."


def follow_attached(submitted: str, work: Callable[[], int], ids: list[str], hint: str) -> int:
    """Say what was submitted and follow it; on Ctrl-C detach, or cancel the jobs.

    Args:
        submitted: Message about the submission.
        work: Follows the jobs and returns the exit code.
        ids: The jobs to cancel.
        hint: How to follow the jobs after detaching.

    Returns:
        The exit code of `work`, or 130 after Ctrl-C.
    """
    try:
        with _signals_raise():
            say(submitted)
            return work()
    except _EndedBySignal as ended:
        say(f"this command was ended by {ended.signal.name}; {', '.join(ids)} keeps running. {hint}")
        return 128 + ended.signal
    except KeyboardInterrupt:
        if _wants_cancel(", ".join(ids)):
            slurm.cancel(ids)
            say(f"canceled {', '.join(ids)}")
        else:
            say(f"detached; {', '.join(ids)} keeps running. {hint}")
        return INTERRUPTED_EXIT_CODE


class _EndedBySignal(BaseException):
    """SIGTERM or SIGHUP, as when a connection is lost."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(number)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise `_EndedBySignal` for SIGTERM and SIGHUP during the block, but not under nohup for SIGHUP."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number: int, frame: FrameType | None) -> None:
        raise _EndedBySignal(number)

    with handle_signals((signal.SIGTERM, signal.SIGHUP), receive):
        yield


def _wants_cancel(ids: str) -> bool:
    """Wait for a second Ctrl-C or, on a terminal, for an answer; return whether to cancel."""
    asks = sys.stdin.isatty()
    try:  # the second Ctrl-C may come while the question is being written
        answer = " (or answer: [c]ancel, [d]etach)" if asks else ""
        say(f"detaching from {ids} in {_DETACH_S} s; Ctrl-C again cancels it{answer}")
        deadline = time.monotonic() + _DETACH_S
        while (left := deadline - time.monotonic()) > 0:
            if not asks:
                time.sleep(left)
            elif select.select([sys.stdin], [], [], left)[0]:
                return sys.stdin.readline().strip().lower() in ("c", "cancel")
    except KeyboardInterrupt:
        return True
    return False
