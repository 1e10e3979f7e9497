"""Slurm's command line clients: job states, partitions, canceling, test submissions.

Job states come from scontrol, which needs no accounting, and for forgotten jobs from sacct.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from nano3.utils.errors import Failure

# Exit code of a job that ended without a code of its own, as a shell or timeout(1) would report it.
_END_CODES = {
    "COMPLETED": 0, "FAILED": 1, "CANCELLED": 143, "PREEMPTED": 143, "TIMEOUT": 124, "DEADLINE": 124,
    "OUT_OF_MEMORY": 137, "NODE_FAIL": 1, "BOOT_FAIL": 1, "REVOKED": 1,
}  # fmt: skip


@dataclass(frozen=True)
class JobState:
    """State of one job or of one task of an array."""

    state: str
    code: int = 0
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    # When it started, or while it is pending the estimate of Slurm's scheduler; local time, "" if unknown.
    start: str = field(default="", compare=False)
    # When it was submitted, or last requeued.
    eligible: str = field(default="", compare=False)

    @property
    def ended(self) -> bool:
        """Whether the job has ended, unless Slurm is about to requeue it."""
        return self.state in _END_CODES


_NO_NODES = "Requested node configuration is not available"
UNKNOWN = JobState("UNKNOWN")
_NO_INDEX = str(0xFFFFFFFE)  # NO_VAL of slurm.h


def states(ids: Iterable[str]) -> dict[str, JobState]:
    """Return the state of each job, `UNKNOWN` for jobs that Slurm has forgotten.

    Args:
        ids: Job ids: "123" or "123_4".

    Raises:
        Failure: No Slurm controller answers.
    """
    wanted = list(ids)
    found: dict[str, JobState] = {}
    for base in dict.fromkeys(job.partition("_")[0] for job in wanted):
        found.update(_from_scontrol(base) or _from_sacct(base))
    # Tasks of an array that were canceled while pending share one record under the array's id.
    return {job: found.get(job) or found.get(job.partition("_")[0], UNKNOWN) for job in wanted}


def _from_scontrol(base: str) -> dict[str, JobState]:
    done = _run_client("scontrol", "show", "job", "-o", base)
    if done.returncode == 0:
        return dict(pair for line in done.stdout.splitlines() for pair in parse_scontrol(line))
    if "Invalid job id" in done.stderr:
        return {}
    raise Failure(f"Slurm does not answer: {done.stderr.strip() or done.stdout.strip()}")


def parse_scontrol(line: str) -> Iterator[tuple[str, JobState]]:
    """Yield the ids and states in one line of `scontrol show job -o`; pending tasks of an array share one line."""

    def value(key: str, default: str = "") -> str:
        match = re.search(rf"(?:^| ){key}=(\S*)", line)
        return default if match is None or match[1] in ("(null)", "None", "") else match[1]

    if not value("JobState"):
        return
    state = _job_state(value("JobState"), value("ExitCode"), value("Reason"), value("NodeList"), value("Restarts", "0"))
    state = replace(state, start=_time(value("StartTime")), eligible=_time(value("SubmitTime")))
    array, indices = value("ArrayJobId"), value("ArrayTaskId")
    if not array or indices == _NO_INDEX:
        yield array or value("JobId"), state
        return
    for index in _array_indices(indices):
        yield f"{array}_{index}", state


def _time(text: str) -> str:
    return text if re.match(r"\d{4}-", text) else ""


def _array_indices(text: str) -> Iterator[int]:
    """Yield the numbers of a list: "0-3,7,10-20:5%2" is 0 1 2 3 7 10 15 20. Skip anything else ("...")."""
    for part in text.partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?", part):
            first, last, step = match.groups()
            yield from range(int(first), int(last or first) + 1, int(step or 1))


def _from_sacct(base: str) -> dict[str, JobState]:
    done = _run_client("sacct", "-nXP", "-j", base, "-o", "JobID,State,ExitCode,NodeList,Start")
    return dict(pair for line in done.stdout.splitlines() for pair in parse_sacct(line))


def parse_sacct(line: str) -> Iterator[tuple[str, JobState]]:
    """Yield the ids and states in one line of `sacct -nXP -o JobID,State,ExitCode,NodeList,Start`."""
    job, state, code, nodes, start, *_ = [*line.split("|"), "", "", "", ""]
    if not state:
        return
    result = _job_state(state.partition(" ")[0], code, "", "" if nodes == "None assigned" else nodes, "0")
    result = replace(result, start=_time(start))
    base, _, indices = job.partition("_")
    if indices.startswith("["):
        for index in _array_indices(indices.strip("[]")):
            yield f"{base}_{index}", result
    else:
        yield job, result


def _job_state(state: str, exit_code: str, reason: str, nodes: str, restarts: str) -> JobState:
    code, _, signum = (exit_code or "0:0").partition(":")
    if state == "COMPLETED":
        number = 0
    elif int(code):
        number = int(code)
    elif int(signum or 0) and state == "FAILED":
        number = 128 + int(signum)
    else:
        number = _END_CODES.get(state, 0)
    return JobState(state, number, reason, nodes, int(restarts))


def partitions() -> list[str]:
    """Return the names of all partitions.

    Raises:
        Failure: Slurm does not answer.
    """
    done = _run_client("sinfo", "-h", "-a", "-o", "%R")
    if done.returncode:
        raise Failure(f"Slurm does not answer: {done.stderr.strip()}")
    return done.stdout.split()


def max_array_size() -> int:
    """Return the largest allowed number of array tasks: indices start at 0 and must be below MaxArraySize."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run_client("scontrol", "show", "config").stdout, re.MULTILINE)
    return int(match[1]) if match else sys.maxsize


def parse_time_limit(text: str) -> int | None:
    """Return the seconds of a Slurm time limit, None for no limit.

    Args:
        text: "M", "M:S", "H:M:S", "D-H", "D-H:M", "D-H:M:S" (sbatch(1), --time), "UNLIMITED" or "INFINITE".

    Raises:
        ValueError: `text` is anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(text)
    days, *fields = match.groups()
    numbers = [int(f) for f in fields if f is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(numbers) == 1:
        return numbers[0] * 60
    hours, minutes, seconds = [0, *numbers][-3:]
    return hours * 3600 + minutes * 60 + seconds


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; ended jobs are not an error.

    Raises:
        Failure: scancel failed.
    """
    done = _run_client("scancel", *ids)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise Failure(f"scancel: {done.stderr.strip()}")


def test_only(script: str, partition: str | None = None) -> tuple[bool, str]:
    """Return whether Slurm would accept a job script, and the output of `sbatch --test-only`.

    The test fails while the nodes that the job needs are drained or down, although Slurm would let the job wait.

    Args:
        script: The job script.
        partition: Its partition; None for the default one.
    """
    with submit_environment(keep=()):
        done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    answer = (done.stdout + done.stderr).strip()
    if done.returncode and _NO_NODES in answer and (missing := unavailable_nodes(partition)):
        return True, f"{answer}\nSlurm cannot test this now: {missing} out of service. The job would wait for them."
    return done.returncode == 0, answer


def unavailable_nodes(partition: str | None) -> str:
    """Return how many nodes of a partition are drained or down ("2 of 8 nodes are"), "" if none are.

    Args:
        partition: Names of partitions, with commas; None for all.
    """
    words = ["-p", partition] if partition else ["-a"]
    done = _run_client("sinfo", "-h", "-N", *words, "-o", "%N %T")
    states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    down = [node for node, state in states.items() if re.match("drain|down|maint|fail|reserved", state)]
    return f"{len(down)} of {len(states)} nodes are" if down else ""


@contextmanager
def submit_environment(keep: Iterable[str]) -> Iterator[None]:
    """Hide variables of an outer allocation or of a login profile that would change a new job.

    submitit removes SLURM_*, SBATCH_* and the rank variables; this restores the variables that locate the cluster.

    Args:
        keep: More variables to restore.
    """
    import submitit

    restored = {
        key: os.environ[key]
        for key in ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", *keep)
        if key in os.environ
    }
    with submitit.helpers.clean_env():
        os.environ.update(restored)
        try:
            yield
        finally:
            for key in restored:
                os.environ.pop(key, None)


def _run_client(*words: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False,
            env={**os.environ, "SLURM_BITSTR_LEN": "0"},  # do not cut lists of tasks at 64 characters
        )  # fmt: skip
    except FileNotFoundError:
        raise Failure(f"This machine has no {words[0]}: Slurm's client commands are not installed here.") from None
