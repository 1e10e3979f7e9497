"""launch.local: runs in this process and under torchrun."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import eventually, start_attached

import launch
from launch import local
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import Failure


def test_one_rank_runs_in_this_process(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GREETING", raising=False)
    job = make_job("steps=4", env={"GREETING": "hello"})
    assert launch.run([job]) == 0
    assert json.loads((job.run_dir / "finished.json").read_text()) == {"step": 4}
    assert os.environ["GREETING"] == "hello"
    assert not (job.run_dir / "jobs.json").exists()


@pytest.mark.parametrize("code", [0, 1, 2, 75, 3])
def test_exit_code(make_job: Any, code: int) -> None:
    assert launch.run([make_job("fail_rank=0", f"fail_code={code}")]) == code


def test_errors_propagate_to_the_caller(make_job: Any) -> None:
    with pytest.raises(Failure, match="disk full"):
        launch.run([make_job(entry="launch_entries:raise_failure", args=("disk full",))])


def test_a_record_that_cannot_be_written_does_not_change_the_code(
    make_job: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch.run([make_job(entry="launch_entries:occupy_record")]) == 75
    assert "local.json: the end of this start cannot be recorded: Is a directory" in capfd.readouterr().err


@pytest.mark.parametrize("ranks", [1, 4])
def test_dry_run_starts_nothing(make_job: Any, capfd: pytest.CaptureFixture[str], ranks: int) -> None:
    job = make_job(preview="resolved: config", nproc_per_node=ranks)
    assert launch.run([job], dry_run=True) == 0
    out = capfd.readouterr().out
    assert "resolved: config" in out and ("--nproc-per-node=4" in out) == (ranks == 4)
    assert not job.run_dir.exists()


def loaded_by(modules: str) -> set[str]:
    program = f"import sys, {modules}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_launch_is_light() -> None:
    assert loaded_by("launch") & {"submitit", "torch", "hydra", "omegaconf", "rich"} == set()


def test_a_rank_loads_nothing_it_does_not_need() -> None:
    assert loaded_by("launch.rank, launch.task") & {"submitit", "hydra", "omegaconf", "rich"} == set()


@pytest.mark.slow
def test_torchrun_all_ranks_meet(make_job: Any) -> None:
    job = make_job(entry="launch_entries:all_reduce", nproc_per_node=2)
    job = launch.Job(job.name, job.run_dir, job.entry, (str(job.run_dir),), job.cluster)
    assert launch.run([job]) == 0
    assert [(job.run_dir / f"sum_{rank}.txt").read_text() for rank in (0, 1)] == ["3.0", "3.0"]


def test_torchrun_failed_rank_is_reported_without_a_traceback_wall(
    make_job: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job("pause=0.1", "steps=100000", "fail_rank=1", "fail_code=4", nproc_per_node=2)
    assert launch.run([job]) == 4
    out, err = capfd.readouterr()
    assert "rank 1 failed first, with exit code 4" in err and "boom on rank 1" in err
    assert out.count("fresh start") == 1 and "Traceback" not in err and "torch.distributed" not in err


def test_torchrun_killed_rank(make_job: Any) -> None:
    job = make_job("pause=0.1", "steps=100000", nproc_per_node=2)
    command = start_attached(job)
    pid = eventually(lambda: (f := job.run_dir / "logs" / "1.pid").exists() and f.read_text())
    eventually(lambda: (job.run_dir / "environment_1.json").exists())
    os.kill(int(pid), signal.SIGKILL)
    _out, err = command.communicate(timeout=200)
    assert command.returncode == 137 and "rank 1 failed first, with exit code 137" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_torchrun_stop_lets_all_ranks_save(make_job: Any, number: signal.Signals) -> None:
    job = make_job("pause=0.1", "steps=100000", nproc_per_node=2)
    command = start_attached(job, start_new_session=True)
    eventually(lambda: all((job.run_dir / f"environment_{rank}.json").exists() for rank in (0, 1)))
    command.send_signal(number)
    out, _err = command.communicate(timeout=200)
    assert command.returncode == 75 and "saved step" in out
    assert "saved step" in (job.run_dir / "logs" / "rank_1.log").read_text()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_that_are_rolled_back_start_again(make_job: Any, ranks: int) -> None:
    job = make_job(entry="launch_entries:roll_back", nproc_per_node=ranks, may_roll_back=True, args=())
    job = replace(job, args=(str(job.run_dir), "2"))
    assert launch.run([job]) == 0
    for rank in range(ranks):
        assert len((job.run_dir / f"starts_{rank}.txt").read_text().splitlines()) == 3
    assert json.loads((job.run_dir / "local.json").read_text())["exit_code"] == 0


@pytest.mark.parametrize("unfinished", ["0", "1"])
def test_an_empty_exit_file_hides_no_other_rank(tmp_path: Path, unfinished: str) -> None:
    """torchrun ends the other ranks with SIGTERM at any point, even while one writes its exit file."""
    failed = "1" if unfinished == "0" else "0"
    (tmp_path / f"{failed}.exit").write_text("42")
    (tmp_path / f"{unfinished}.exit").write_text("")
    (tmp_path / "torchrun.log").write_text("")
    job = launch.Job("n", tmp_path, "a:b", (), ClusterConfig(nproc_per_node=2))
    code, why = local._torchrun_end(job, tmp_path, 1)
    assert code == 42 and f"rank {failed} failed first, with exit code 42" in why


TORCHRUN_LOG = """
Failures:
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 4)
------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 5)
"""


def test_the_killed_rank_is_named_and_not_a_rank_ended_by_torchrun(tmp_path: Path) -> None:
    (tmp_path / "0.exit").write_text("1")
    (tmp_path / "rank_1.log").write_text("its last words\n")
    (tmp_path / "torchrun.log").write_text(TORCHRUN_LOG)
    job = launch.Job("n", tmp_path, "a:b", (), ClusterConfig(nproc_per_node=2))
    code, why = local._torchrun_end(job, tmp_path, 1)
    assert code == 137 and "rank 1 failed first, with exit code 137" in why and "its last words" in why


def test_of_a_killed_rank_0_the_log_of_its_entry_is_shown(tmp_path: Path) -> None:
    """Its own lines went to the terminal; a rank that ended by itself has shown the log already."""
    (tmp_path / "rank_0.log").write_text("its last words\n")
    (tmp_path / "torchrun.log").write_text(TORCHRUN_LOG.replace("rank      : 1", "rank      : 0"))
    job = launch.Job("n", tmp_path, "a:b", (), ClusterConfig(nproc_per_node=2))
    code, why = local._torchrun_end(job, tmp_path, 1)
    assert code == 137 and "rank 0 failed first" in why and "its last words" in why
    (tmp_path / "torchrun.log").write_text("")
    (tmp_path / "0.exit").write_text("4")
    code, why = local._torchrun_end(job, tmp_path, 1)
    assert code == 4 and "rank 0 failed first" in why and "its last words" not in why


def test_of_a_killed_single_rank_the_log_is_shown(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = make_job(entry="launch_entries:kill_itself", args=(), may_roll_back=True)
    job = replace(job, args=(str(job.run_dir),))
    assert launch.run([job]) == 128 + signal.SIGKILL
    assert "rank 0 ended with exit code 137" in (err := capfd.readouterr().err) and "its last words" in err
