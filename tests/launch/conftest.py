"""Fixtures of the launch tests: jobs of tiny entries, and a real Slurm for those marked `slurm`."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import HERE, ROOT

import launch
from launch import job_records, slurm
from nano3.config.cluster import ClusterConfig

DEVCLUSTER = HERE.parent / "slurm" / "devcluster.sh"
# Keys of a Job; all others are those of its cluster.
OWN = (
    "container",
    "folders",
    "preview",
    "label",
    "after",
    "args",
    "save_config",
    "may_roll_back",
    "restart_after_crash",
)
MakeJob = Callable[..., launch.Job]


@pytest.fixture(autouse=True)
def _entries_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that the tests start find launch_entries and this working copy."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{HERE}")


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """make_job(*options of launch_entries.count, cluster keys by keyword) -> a Job in its own folder."""

    def make(*options: str, name: str = "run", entry: str = "launch_entries:count", **keys: Any) -> launch.Job:
        run_dir = tmp_path / name
        own = {key: keys.pop(key) for key in OWN if key in keys}
        args = own.pop("args", (str(run_dir), *options))
        return launch.Job(name, run_dir, entry, args, ClusterConfig(**{"kind": "local", **keys}), **own)

    return make


@pytest.fixture(scope="session")
def slurm_conf() -> Iterator[str]:
    """Path of slurm.conf of a running test cluster: the one in the environment, or one for this session."""
    given = os.environ.get("SLURM_CONF")
    if given and subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0:
        yield given
        return
    state = Path(tempfile.mkdtemp(prefix="nano3-slurm-"))  # not tmp_path: munge wants folders that everybody may enter
    state.chmod(0o755)
    subprocess.run([DEVCLUSTER, "up", state, "--pyxis"], check=True)
    yield str(state / "slurm.conf")
    subprocess.run([DEVCLUSTER, "down", state, "--purge"], check=True)


@pytest.fixture
def slurm_job(slurm_conf: str, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeJob]:
    """make_job for the test cluster; jobs left in the queue are canceled at the end."""
    monkeypatch.setenv("SLURM_CONF", slurm_conf)
    # A job that has ended holds its node for a moment; some tests say on which node theirs must run.
    busy, deadline = ["squeue", "--noheader", "--states=RUNNING,COMPLETING"], time.monotonic() + 30
    while subprocess.run(busy, capture_output=True, check=True).stdout and time.monotonic() < deadline:
        time.sleep(0.1)
    made: list[launch.Job] = []

    def make(*options: str, **keys: Any) -> launch.Job:
        job = make_job(*options, **{"kind": "slurm", "poll_s": 0.3, "mem": "200M", "time": "10", **keys})
        made.append(job)
        return job

    yield make
    left = [
        job_id
        for job in made
        for entry in job_records.read_records(job.run_dir)
        for job_id in entry.ids
        if not entry.state
    ]
    if left:
        slurm.cancel(left)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH whose `srun` writes its words and environment to srun.json there and ends with $SRUN_CODE.

    `scontrol` appends its arguments to scontrol.txt and prints a job in state $JOB_STATE; `sbatch` rejects every job.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    quoted = shlex.quote(str(folder))
    programs = {
        "srun": f"#!{sys.executable}\nimport json, os, sys\n"
        f'json.dump([sys.argv[1:], dict(os.environ)], open({str(folder / "srun.json")!r}, "w"))\n'
        'sys.exit(int(os.environ.get("SRUN_CODE", "0")))\n',
        "scontrol": f'#!/bin/sh\necho "$@" >>{quoted}/scontrol.txt\n'
        'echo "JobId=1 JobState=${JOB_STATE:-RUNNING} Reason=None"\n',
        "sinfo": "#!/bin/sh\necho batch\necho short\n",
        "sbatch": "#!/bin/sh\necho 'sbatch: error: not today' >&2\nexit 1\n",
        "sleep": "#!/bin/sh\nexit 0\n",
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
