"""Watching one job from the command that submitted it: its state, rank 0's log, its exit code; Ctrl-C."""

import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch import job_records, slurm
from launch.submit import Submitted
from nano3.utils.console import console
from nano3.utils.errors import Failure

INTERRUPTED = 130
_LOG_S = 0.25
_FORGOTTEN_S = 20
_TAIL_LINES = 25
# How long the question of Ctrl-C stands.
_DETACH_S = 3


def say(text: str) -> None:
    """A line about the job, apart from the job's own output on stdout."""
    console(stderr=True).print(f"launch: {text}", markup=False)


class LogStream:
    """Copies what is added to a file after `offset` to stdout."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self._offset = offset

    def copy(self) -> None:
        """Print what is new."""
        try:
            with self.path.open("rb") as log:
                log.seek(self._offset)
                new = log.read()
        except FileNotFoundError:
            return
        if new:
            self._offset += len(new)
            sys.stdout.buffer.write(new)
            sys.stdout.flush()


class Watch:
    """States of some jobs, asked for at most every `poll_s` seconds; tells when Slurm does not answer."""

    def __init__(self, ids: list[str], poll_s: float) -> None:
        self.states = dict.fromkeys(ids, slurm.UNKNOWN)
        self._poll_s = poll_s
        self._next = 0.0
        self._ends: dict[str, slurm.JobState] = {}
        self._unknown_since: float | None = None
        self._silent = False

    def look(self) -> bool:
        """Ask when it is time; True when there is an answer."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._poll_s
        try:
            asked = slurm.states(job for job in self.states if not self._settled(job))
        except Failure as error:
            if not self._silent:
                say(f"{error}. Still asking; the job does not depend on this command.")
            self._silent = True
            return False
        self._silent = False
        for job, state in asked.items():
            if state != slurm.UNKNOWN:
                self._ends[job] = self.states[job]
                self.states[job] = state
        self._check_forgotten([job for job, state in asked.items() if state == slurm.UNKNOWN])
        return True

    def _settled(self, job: str) -> bool:
        """Ended, and seen so twice: a job that Slurm requeues may look ended for a moment."""
        state = self.states[job]
        return state.ended and (state.state == "COMPLETED" or self._ends.get(job) == state)

    def _check_forgotten(self, jobs: list[str]) -> None:
        if not jobs:
            self._unknown_since = None
            return
        self._unknown_since = self._unknown_since or time.monotonic()
        if time.monotonic() - self._unknown_since > _FORGOTTEN_S:
            raise Failure(
                f"Slurm knows nothing of job {', '.join(jobs)} (any more), and there is no accounting to ask. "
                "Its log and run folder say how it ended."
            )

    @property
    def ended(self) -> bool:
        """All jobs have ended for good."""
        return all(self._settled(job) for job in self.states)


def describe_state(state: slurm.JobState) -> str:
    """State, place and reason in a few words."""
    words = [state.state]
    if state.nodes and not state.ended:
        words.append(f"on {state.nodes}")
    if state.reason and state.state == "PENDING":
        words.append(f"({state.reason})")
    if state.restarts:
        words.append(f"restart {state.restarts}")
    return " ".join(words)


def follow(one: Submitted, rank: int = 0, offset: int = 0) -> int:
    """Stream one rank's log, from a byte on, until the job has ended for good; its exit code."""
    watch = Watch([one.id], one.poll_s)
    stream = LogStream(one.log(rank), offset)
    told = ""
    while not watch.ended:
        stream.copy()
        if watch.look() and (now := describe_state(watch.states[one.id])) != told:
            say(f"job {one.id} {now}")
            told = now
        time.sleep(min(_LOG_S, one.poll_s))
    stream.copy()
    state = watch.states[one.id]
    job_records.record_end(one.run_dir, one.id, state)
    if state.code:
        report_failure(one, state, rank)
    return state.code


def report_failure(one: Submitted, state: slurm.JobState, streamed: int) -> None:
    """Which rank failed first, and the end of its log unless that was streamed."""
    first = one.folder / f"{one.id}.exit"
    if first.exists():
        code, rank, host = first.read_text().split()
        say(f"job {one.id}: rank {rank} on {host} failed first, with exit code {code}")
        if rank != str(streamed):
            log = one.log(int(rank))
            say(f"end of {log}:")
            sys.stdout.flush()
            sys.stderr.write("".join(f"{line}\n" for line in tail(log)))
            sys.stderr.flush()
    say(f"job {one.id} ended as {state.state} with exit code {state.code}; logs: {one.folder}/{one.id}_*_log.out")


def tail(log: Path, lines: int = _TAIL_LINES) -> list[str]:
    """The last lines of a log, [] when it is not there."""
    return read_tail_and_size(log, lines)[0].splitlines()


def read_tail_and_size(log: Path, lines: int) -> tuple[str, int]:
    """The last lines of a log as they are, and the byte where they end: the place to follow it from."""
    try:
        read = log.read_bytes()
    except FileNotFoundError:
        return "", 0
    parts = read.decode(errors="replace").splitlines(keepends=True)
    return "".join(parts[max(0, len(parts) - lines) :]), len(read)


def attached(submitted: str, work: Callable[[], int], ids: list[str], how_to_follow: str) -> int:
    """Say what was submitted and run `work` (which watches); on Ctrl-C detach, or cancel the jobs."""
    try:
        say(submitted)
        return work()
    except KeyboardInterrupt:
        if _wants_cancel(", ".join(ids)):
            slurm.cancel(ids)
            say(f"cancelled {', '.join(ids)}")
        else:
            say(f"detached; {', '.join(ids)} goes on. {how_to_follow}")
        return INTERRUPTED


def _wants_cancel(ids: str) -> bool:
    """Wait a moment for a second Ctrl-C, or for an answer on a terminal."""
    asks = sys.stdin.isatty()
    try:  # from the first word on: the second Ctrl-C may come while it is being written
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
