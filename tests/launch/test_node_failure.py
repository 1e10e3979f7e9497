"""A node failure on a real Slurm."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch_helpers import eventually, log_of, start_attached

pytestmark = pytest.mark.slurm


def of_node(node: str, job_folder: Path) -> set[psutil.Process]:
    """Return every slurmstepd of a job on one node with its child processes."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURMD_NODENAME") == node and str(job_folder) in " ".join(process.cmdline()):
                for step in (p for p in process.parents() if p.name().startswith("slurmstepd")):
                    found |= {step, *step.children(recursive=True)}
        except psutil.Error:
            continue
    return found


@contextmanager
def dead(node: str, slurm_conf: str, job_folder: Path) -> Iterator[None]:
    """Simulate a node failure: slurmd does not answer, the processes of the job are gone, and the node is down."""
    slurmd = int((Path(slurm_conf).parent / "run" / f"slurmd-{node}.pid").read_text())
    os.kill(slurmd, signal.SIGSTOP)
    try:
        # The oldest first: the job's script must not see its ranks die, or it ends the job itself.
        for process in sorted(of_node(node, job_folder), key=psutil.Process.create_time):
            with suppress(psutil.Error):
                process.kill()
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
        yield
    finally:
        os.kill(slurmd, signal.SIGCONT)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)
        eventually(
            lambda: "idle" in subprocess.run(["sinfo", "-hn", node, "-o", "%t"], capture_output=True, text=True).stdout
        )


@pytest.mark.timeout(600)
def test_a_job_on_a_failed_node_restarts_on_another(slurm_conf: str, slurm_job: Any) -> None:
    job = slurm_job("pause=0.1", "steps=100000", "more=3")
    command = start_attached(job)
    eventually(lambda: (job.run_dir / "progress.json").exists())
    with dead("node1", slurm_conf, job.run_dir):
        out, err = command.communicate(timeout=400)
    assert command.returncode == 0, err
    assert "restart 1" in err and "resuming from step" in out
    assert json.loads((job.run_dir / "environment_0.json").read_text())["SLURMD_NODENAME"] == "node2"
    assert log_of(job.run_dir).count("fresh start") == 1
