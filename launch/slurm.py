"""Slurm's command line clients: job states, partitions, canceling, test submissions.

Job states come from scontrol (one job) or squeue (several), which need no accounting, and for forgotten jobs from
sacct.
"""

import datetime
import os
import re
import shutil
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
    # When it ended; "" if it has not, or if that is unknown.
    end: str = field(default="", compare=False)

    @property
    def ended(self) -> bool:
        """Whether the job has ended, unless Slurm is about to requeue it."""
        return self.state in _END_CODES

    @property
    def ended_for_good(self) -> bool:
        """Whether the job has ended and will not be requeued any more."""
        if not self.ended or self.state == "COMPLETED" or not self.end:
            return self.state == "COMPLETED"
        return datetime.datetime.now() - datetime.datetime.fromisoformat(self.end) > _REQUEUE_TIME


# A job that is being requeued looks ended for a moment.
_REQUEUE_TIME = datetime.timedelta(minutes=1)
_NO_NODES = "Requested node configuration is not available"
UNKNOWN = JobState("UNKNOWN")
_NO_INDEX = str(0xFFFFFFFE)  # NO_VAL of slurm.h


# The columns of squeue and their widths: squeue cuts longer values, and separates fields by their width only.
_SQUEUE_COLUMNS = {
    "JobArrayID": 32, "State": 20, "exit_code": 12, "RestartCnt": 8, "StartTime": 24, "EndTime": 24, "SubmitTime": 24,
    "Reason": 60, "NodeList": 200,
}  # fmt: skip


def states(ids: Iterable[str]) -> dict[str, JobState]:
    """Return the state of each job, `UNKNOWN` for jobs that Slurm has forgotten.

    The controller is asked once, and the accounting once about the jobs that the controller has forgotten.

    Args:
        ids: Job ids: "123" or "123_4".

    Raises:
        Failure: No Slurm controller answers.
    """
    wanted = list(ids)
    base_of = {job: job.partition("_")[0] for job in wanted}
    found = _from_controller(list(dict.fromkeys(base_of.values())))
    # Tasks of an array that were canceled while pending share one record under the array's id. Tasks that ended some
    # minutes ago may be forgotten while others run.
    if forgotten := [base for job, base in base_of.items() if job not in found and base not in found]:
        found = {**_from_sacct(list(dict.fromkeys(forgotten))), **found}
    return {job: found.get(job) or found.get(base, UNKNOWN) for job, base in base_of.items()}


def _from_controller(bases: list[str]) -> dict[str, JobState]:
    """Return the states of jobs by id; of a single job without loading the whole queue."""
    if not bases:
        return {}
    if len(bases) == 1:
        done = _run_client("scontrol", "show", "job", "-o", bases[0])
        parse = parse_scontrol
    else:
        columns = ",".join(f"{name}:{width}" for name, width in _SQUEUE_COLUMNS.items())
        done = _run_client("squeue", "-a", "-h", "-r", "-t", "all", "-j", ",".join(bases), "-O", columns)
        parse = parse_squeue
    if done.returncode == 0:
        return dict(pair for line in done.stdout.splitlines() for pair in parse(line))
    if "Invalid job id" in done.stderr:
        return {}
    raise Failure(f"Slurm does not answer: {done.stderr.strip() or done.stdout.strip()}")


def parse_squeue(line: str) -> Iterator[tuple[str, JobState]]:
    """Yield the ids and the state in one line of `squeue -h -O` with the columns that `states` asks for."""
    values, at = [], 0
    for width in _SQUEUE_COLUMNS.values():
        values.append(line[at : at + width].strip())
        at += width
    job, state, status, restarts, start, end, submitted, reason, nodes = values
    if not state:
        return
    if status.isdigit():  # as wait(2) returns it; newer clients print CODE:SIGNAL
        status = f"{int(status) >> 8}:{int(status) & 0x7F}"
    reason = "" if reason == "None" else reason
    result = _job_state(state, status, reason, nodes, restarts if restarts.isdigit() else "0")
    result = replace(result, start=_time(start), eligible=_time(submitted), end=_time(end) if result.ended else "")
    for name in _array_task_ids(job):
        yield name, result


def parse_scontrol(line: str) -> Iterator[tuple[str, JobState]]:
    """Yield the ids and states in one line of `scontrol show job -o`; pending tasks of an array share one line."""

    def value(key: str, default: str = "") -> str:
        match = re.search(rf"(?:^| ){key}=(\S*)", line)
        return default if match is None or match[1] in ("(null)", "None", "") else match[1]

    if not value("JobState"):
        return
    state = _job_state(value("JobState"), value("ExitCode"), value("Reason"), value("NodeList"), value("Restarts", "0"))
    state = replace(
        state,
        start=_time(value("StartTime")),
        eligible=_time(value("SubmitTime")),
        end=_time(value("EndTime")) if state.ended else "",
    )
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


def _array_task_ids(job: str) -> Iterator[str]:
    """Yield the ids of a job as squeue and sacct write it: "7_[0-1%4]" is 7_0 and 7_1."""
    base, _, indices = job.partition("_")
    if indices.startswith("["):
        yield from (f"{base}_{index}" for index in _array_indices(indices.strip("[]")))
    else:
        yield job


def _from_sacct(bases: list[str]) -> dict[str, JobState]:
    if not shutil.which("sacct"):
        return {}
    done = _run_client("sacct", "-nXP", "-j", ",".join(bases), "-o", "JobID,State,ExitCode,NodeList,Start,End")
    return dict(pair for line in done.stdout.splitlines() for pair in parse_sacct(line))


def parse_sacct(line: str) -> Iterator[tuple[str, JobState]]:
    """Yield the ids and states in one line of `sacct -nXP -o JobID,State,ExitCode,NodeList,Start,End`."""
    job, state, code, nodes, start, end, *_ = [*line.split("|"), "", "", "", "", ""]
    if not state:
        return
    result = _job_state(state.partition(" ")[0], code, "", "" if nodes == "None assigned" else nodes, "0")
    result = replace(result, start=_time(start), end=_time(end) if result.ended else "")
    for name in _array_task_ids(job):
        yield name, result


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


def answer(*words: str) -> str:
    """Return what a client of Slurm prints.

    Raises:
        Failure: It is not installed here, or fails.
    """
    code, text = try_answer(*words)
    if code:
        raise Failure(f"{words[0]} does not answer: {text.strip()}")
    return text


def try_answer(*words: str) -> tuple[int, str]:
    """Return the exit code of a client of Slurm and what it prints, its errors last.

    Raises:
        Failure: It is not installed here.
    """
    done = _run_client(*words)
    return done.returncode, done.stdout + done.stderr


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


def find_job(script_name: str, since: str) -> str:
    """Return the id of the user's job or array with this job script, "" if Slurm knows none.

    Args:
        script_name: File name of the script that sbatch was called with.
        since: Time before it was submitted, ISO 8601.

    Raises:
        Failure: Slurm does not answer.
    """
    done = _run_client("squeue", "-h", "--me", "-t", "all", "-o", "%F %o")
    if done.returncode:
        raise Failure(f"Slurm does not answer: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    if not any(line.endswith(f"/{script_name}") for line in lines):
        start = datetime.datetime.fromisoformat(since).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
        ended = _run_client("sacct", "-nXP", "-S", start, "-o", "JobID,SubmitLine")
        lines = [line.replace("|", " ", 1) for line in ended.stdout.splitlines()]
    found = next((line for line in lines if line.endswith(f"/{script_name}")), "")
    return re.split(r"[ _]", found)[0]


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
    # Filters and formats of the user would change the answers, and lists of tasks would be cut at 64 characters.
    own = {key: text for key, text in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_", "SINFO_"))}
    try:
        return subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False,
            env={**own, "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard"},
        )  # fmt: skip
    except FileNotFoundError:
        raise Failure(f"This machine has no {words[0]}: Slurm's client commands are not installed here.") from None
