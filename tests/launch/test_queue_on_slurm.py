"""What nano3 shows of waiting, requeued and ended jobs, on a real Slurm."""

import argparse
import os
import re
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import eventually, last_id, state_of

import launch
from launch import job_records, slurm
from launch.follow import follow
from launch.submit import SubmittedJob
from nano3.tools import jobs, logs

pytestmark = pytest.mark.slurm


def listed(folder: Path, capfd: pytest.CaptureFixture[str], active: bool = False) -> dict[str, str]:
    """Return the line of each run in the table of nano3 jobs, by the run's name."""
    capfd.readouterr()
    assert jobs.run(argparse.Namespace(folders=[folder], active=active, watch=None)) == 0
    lines = capfd.readouterr().out.splitlines()[2:]
    return {Path(line.split()[0]).name: line for line in lines}


@pytest.fixture
def queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which every call of scontrol, squeue and sacct appends its name."""
    log, folder = tmp_path / "queries", tmp_path / "counting"
    folder.mkdir()
    for name in ("scontrol", "squeue", "sacct"):
        real = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (folder / name).write_text(f'#!/bin/sh\necho {name} >>{log}\nexec {real} "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def test_waiting_running_and_ended_runs(
    slurm_job: Any, tmp_path: Path, queries: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    all_cpus = {"nodes": 2, "sbatch_args": ["--exclusive"], "time": "5", "mode": "detached"}
    failed = slurm_job("fail_rank=0", "fail_code=3", name="failed", mode="detached")
    launch.run([failed])
    eventually(lambda: state_of(failed.run_dir).state == "FAILED")
    running = slurm_job("steps=600", "pause=0.5", name="running", **all_cpus)
    waiting = slurm_job(name="waiting", **all_cpus)
    never = slurm_job(
        name="never", mode="detached",
        sbatch_args=[f"--dependency=afterok:{last_id(failed.run_dir)}", "--kill-on-invalid-dep=no"],
    )  # fmt: skip
    launch.run([running])
    eventually(lambda: state_of(running.run_dir).state == "RUNNING")
    for job in (waiting, never):
        launch.run([job])
    eventually(lambda: state_of(waiting.run_dir).start)
    eventually(lambda: state_of(never.run_dir).reason == "DependencyNeverSatisfied")
    eventually(lambda: (running.run_dir / "metrics.jsonl").exists())
    queries.unlink(missing_ok=True)
    lines = listed(tmp_path, capfd)
    assert queries.read_text().split() == ["squeue"], "Slurm is asked once for all"
    assert list(lines)[-1] == "failed" and re.search(r" FAILED +3 ", lines["failed"])
    assert re.search(r" RUNNING on node\[1-2\] .* \d+ s +\d+ s ", lines["running"]), "elapsed time and age"
    waits = r"\(Resources: the nodes it needs are busy\) .* waits \d+ s +starts in [345] min"
    assert re.search(waits, lines["waiting"])
    assert "(DependencyNeverSatisfied: it can never start: a job that it depends on failed)" in lines["never"]
    expected = state_of(waiting.run_dir).start
    asked = ["squeue", "--start", "-h", "-o", "%S", "-j", last_id(waiting.run_dir)]
    assert expected == subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert set(listed(tmp_path, capfd, active=True)) == {"running", "waiting", "never"}


def test_a_job_that_can_never_start_says_so_while_it_is_followed(
    slurm_job: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = slurm_job("fail_rank=0", "fail_code=3", name="failed", mode="detached")
    launch.run([failed])
    eventually(lambda: state_of(failed.run_dir).state == "FAILED")
    dependency = f"--dependency=afterok:{last_id(failed.run_dir)}"
    never = slurm_job(name="never", mode="detached", sbatch_args=[dependency, "--kill-on-invalid-dep=no"])
    launch.run([never])
    one = SubmittedJob(last_id(never.run_dir), never.run_dir, never.run_dir / "slurm", 0.3)
    following = threading.Thread(target=follow, args=[one])
    following.start()
    time.sleep(3)
    slurm.cancel([one.id])
    following.join()
    err = capfd.readouterr().err
    assert "it can never start: a job that it depends on failed), waiting for " in err
    assert f"end it with `nano3 cancel {never.run_dir}`" in err


def test_restarts_are_counted_and_recorded(slurm_job: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job("steps=40", "pause=0.25", name="run", mode="detached", partition="batch")
    launch.run([job])
    eventually(lambda: (job.run_dir / "progress.json").exists())
    subprocess.run(["scontrol", "requeue", last_id(job.run_dir)], check=True)
    eventually(lambda: state_of(job.run_dir).restarts == 1 and state_of(job.run_dir).state == "RUNNING")
    assert re.search(r"restart 1 .* 1  \d{4}-", listed(tmp_path, capfd)["run"])
    eventually(lambda: state_of(job.run_dir).state == "COMPLETED")
    listed(tmp_path, capfd)
    record = job_records.read_records(job.run_dir)[-1]
    assert (record.state, record.restarts) == ("COMPLETED", 1) and record.started < record.ended


def test_logs_of_a_sweep_name_the_point_and_the_rank(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"ntasks_per_node": 2, "mode": "attached"}
    made = [slurm_job("steps=30", "pause=0.2", name=f"s/n={n}", label=f"n={n}", **options) for n in (1, 2)]
    made[1] = replace(made[1], args=(*made[1].args, "fail_rank=1", "fail_code=7"))
    assert launch.run(made, sweep=True) == 7
    capfd.readouterr()
    base = made[0].run_dir.parent
    words = {"run": str(base), "rank": None, "ignore_case": False, "lines": 5}
    assert logs.run(argparse.Namespace(grep="boom", **words)) == 0
    log = base / "slurm" / f"{last_id(made[1].run_dir)}_1_log.out"
    heading, line, *more = capfd.readouterr().out.splitlines()
    assert heading == f"n=2, rank 1: {log}" and line.endswith(": boom on rank 1") and not more
    assert logs.run(argparse.Namespace(grep="fresh start|resuming", **words)) == 0
    ranks = [line.partition(":")[0] for line in capfd.readouterr().out.splitlines() if not line.startswith(" ")]
    assert ranks == ["n=1, rank 0", "n=1, rank 1", "n=2, rank 0", "n=2, rank 1"]
