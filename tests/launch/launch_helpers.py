"""What several launch tests do: wait, look a job up, start a command as a user does."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import launch
from launch import job_records, slurm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def last_id(run_dir: Path) -> str:
    """Id of the newest job of a run."""
    return job_records.read_records(run_dir)[-1].id


def state_of(run_dir: Path) -> slurm.JobState:
    """State of the newest job of a run, from Slurm."""
    job_id = last_id(run_dir)
    return slurm.states([job_id])[job_id]


def eventually(what: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until `what` gives something true, and give that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not so after {seconds} s: {what}")


def log_of(run_dir: Path, rank: int = 0) -> str:
    """Log of one rank of the newest job, "" before it exists."""
    entries = job_records.read_records(run_dir)
    path = Path(entries[-1].log.replace("_0_log.out", f"_{rank}_log.out")) if entries else run_dir / "no log"
    return path.read_text() if path.exists() else ""


def start_attached(job: launch.Job, detach_s: float = 3, **options: Any) -> "subprocess.Popen[str]":
    """launch.run(job) in a process of its own, as a user's command runs it; the question of Ctrl-C stands `detach_s`
    seconds."""
    program = f"""
import sys, launch
from launch import follow
follow._DETACH_S = {detach_s}
from pathlib import Path, PosixPath
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import Nano3Error
Job = launch.Job
try:
    sys.exit(launch.run([{job!r}]))
except Nano3Error as error:
    print(f"error: {{error}}", file=sys.stderr)
    sys.exit(error.exit_code)
"""
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def read_until(stream: IO[str] | None, words: str) -> str:
    """What a command writes up to the first line with these words. Read the rest from the same stream."""
    assert stream is not None
    read = ""
    for line in stream:
        read += line
        if words in line:
            return read
    raise AssertionError(f"{words!r} is not in {read!r}")


def with_cluster(job: launch.Job, **keys: Any) -> launch.Job:
    """The same job with other cluster keys."""
    return replace(job, cluster=replace(job.cluster, **keys))
