"""Helpers of the launch tests: wait, find a job, start a command."""

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
    """Return the id of the newest job of a run."""
    return job_records.read_records(run_dir)[-1].id


def state_of(run_dir: Path) -> slurm.JobState:
    """Return the state of the newest job of a run from Slurm."""
    job_id = last_id(run_dir)
    return slurm.states([job_id])[job_id]


def eventually(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until `condition` returns a true value and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not so after {seconds} s: {condition}")


def log_of(run_dir: Path, rank: int = 0) -> str:
    """Return the log of one rank of the newest job, "" before it exists."""
    entries = job_records.read_records(run_dir)
    path = Path(entries[-1].log.replace("_0_log.out", f"_{rank}_log.out")) if entries else run_dir / "no log"
    return path.read_text() if path.exists() else ""


def start_attached(*jobs: launch.Job, detach_s: float = 3, **options: Any) -> "subprocess.Popen[str]":
    """Start launch.run of one job or of a sweep in its own process; Ctrl-C waits `detach_s` seconds for an answer."""
    program = f"""
import sys, launch
from launch import follow
follow._DETACH_S = {detach_s}
from pathlib import Path, PosixPath
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import Nano3Error
Job = launch.Job
try:
    sys.exit(launch.run({list(jobs)!r}, sweep={len(jobs) > 1}))
except Nano3Error as error:
    print(f"error: {{error}}", file=sys.stderr)
    sys.exit(error.exit_code)
"""
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def read_until(stream: IO[str] | None, words: str) -> str:
    """Return the output of a command up to the first line with these words."""
    assert stream is not None
    read = ""
    for line in stream:
        read += line
        if words in line:
            return read
    raise AssertionError(f"{words!r} is not in {read!r}")


def with_cluster(job: launch.Job, **keys: Any) -> launch.Job:
    """Return the job with other cluster keys."""
    return replace(job, cluster=replace(job.cluster, **keys))
