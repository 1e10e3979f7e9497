"""Running here: in this process, as processes, under torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import eventually, start_attached

import launch
from launch import sweep
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


def test_errors_pass_to_the_caller(make_job: Any) -> None:
    with pytest.raises(Failure, match="disk full"):
        launch.run([make_job(entry="launch_entries:raise_failure", args=("disk full",))])


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


def test_torchrun_failed_rank_is_told_without_a_wall(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_stop_lets_all_ranks_save(make_job: Any, number: signal.Signals) -> None:
    job = make_job("pause=0.1", "steps=100000", nproc_per_node=2)
    command = start_attached(job, start_new_session=True)
    eventually(lambda: all((job.run_dir / f"environment_{rank}.json").exists() for rank in (0, 1)))
    command.send_signal(number)
    out, _err = command.communicate(timeout=200)
    assert command.returncode == 75 and "saved step" in out
    assert "saved step" in (job.run_dir / "logs" / "rank_1.log").read_text()


def points(make_job: Any, count: int, *options: str, **keys: Any) -> list[launch.Job]:
    return [
        make_job(*options, f"steps={i + 1}", name=f"sweep/steps={i + 1}", label=f"steps={i + 1}", **keys)
        for i in range(count)
    ]


def test_sweep_runs_every_point(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = points(make_job, 3)
    assert launch.run(jobs, sweep=True) == 0
    err = capfd.readouterr().err
    assert [json.loads((job.run_dir / "finished.json").read_text())["step"] for job in jobs] == [1, 2, 3]
    assert "3 of 3 points finished" in err


def test_sweep_shows_a_table(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    launch.run(points(make_job, 2), sweep=True)
    out = capfd.readouterr().out
    assert re.search(r"^point\s+job\s+state\s+loss\s+exit$", out, re.MULTILINE)
    assert re.search(r"^steps=2\s+-\s+finished\s+0.5000\s+0$", out, re.MULTILINE)


def test_a_failed_point_hides_no_other(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = points(make_job, 3)
    failing = make_job("fail_rank=0", "fail_code=7", name="sweep/bad", label="bad")
    assert launch.run([failing, *jobs], sweep=True) == 7
    err = capfd.readouterr().err
    assert all((job.run_dir / "finished.json").exists() for job in jobs)
    assert "3 of 4 points finished, 1 failed" in err and "boom on rank 0" in err


def test_sweep_again_does_only_what_is_missing(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = points(make_job, 3)
    launch.run(jobs, sweep=True)
    (jobs[1].run_dir / "finished.json").unlink()
    before = [(job.run_dir / "logs" / "rank_0.log").read_text() for job in jobs]
    assert launch.run(jobs, sweep=True) == 0
    after = [(job.run_dir / "logs" / "rank_0.log").read_text() for job in jobs]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    assert "finished before" in capfd.readouterr().out


def test_sweep_dry_run(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = points(make_job, 2, preview="a preview")
    assert launch.run(jobs, sweep=True, dry_run=True) == 0
    assert capfd.readouterr().out.count("a preview") == 2
    assert not jobs[0].run_dir.parent.exists()


def test_stopping_a_sweep_lets_the_point_save(make_job: Any) -> None:
    jobs = [make_job("steps=100000", "pause=0.1", name=f"sweep/{i}", label=str(i)) for i in range(2)]
    program = (
        "import sys, launch\nfrom pathlib import Path, PosixPath\nfrom nano3.config.cluster import ClusterConfig\n"
        f"Job = launch.Job\nsys.exit(launch.run({jobs!r}, sweep=True))\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    eventually(lambda: (jobs[0].run_dir / "environment_0.json").exists())
    command.send_signal(signal.SIGTERM)
    _, err = command.communicate(timeout=200)
    assert command.returncode == 75
    assert not jobs[1].run_dir.exists()
    assert "0 of 2 points finished, 1 stopped, 1 not started" in err


@pytest.mark.parametrize(
    ("codes", "told", "code"),
    [
        pytest.param([0, 0], "2 of 2 points finished", 0, id="all"),
        pytest.param([0, 3, None], "1 of 3 points finished, 1 failed, 1 not started", 3, id="interrupted"),
        pytest.param([75, None, 0], "1 of 3 points finished, 1 stopped, 1 not started", 75, id="waiting"),
        pytest.param([0, None], "1 of 2 points finished, 1 not started", 75, id="not started"),
        pytest.param([75, 4, 3], "0 of 3 points finished, 2 failed, 1 stopped", 4, id="first that failed"),
    ],
)
def test_how_a_sweep_ended(
    make_job: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], codes: list[int | None], told: str, code: int
) -> None:
    rows = [sweep.Row(job, code=end) for job, end in zip(points(make_job, len(codes)), codes, strict=True)]
    assert sweep._outcome(rows, lambda row: tmp_path / "no log") == code
    assert capfd.readouterr().err.splitlines()[-1] == f"launch: {told}"


def test_a_point_that_stops_by_itself_hides_no_other(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Each was to train for so long; nobody asked the sweep to stop."""
    jobs = [make_job("steps=9", "limit=2", name=f"sweep/{i}", label=str(i)) for i in range(2)]
    assert launch.run(jobs, sweep=True) == 75
    assert [json.loads((job.run_dir / "progress.json").read_text())["step"] for job in jobs] == [2, 2]
    err = capfd.readouterr().err
    assert "0: stopped, exit code 75" in err and "0 of 2 points finished, 2 stopped" in err


def test_local_array(tmp_path: Path) -> None:
    from nano3.config.cluster import ClusterConfig

    code = launch.run_array(
        "prep", tmp_path, entry="launch_entries:part", args=(str(tmp_path), ""), tasks=3,
        finalize="launch_entries:gather", cluster=ClusterConfig(),
    )  # fmt: skip
    assert code == 0 and (tmp_path / "gathered").read_text() == "0 of 3\n1 of 3\n2 of 3"


def test_local_array_stops_at_a_failure(tmp_path: Path) -> None:
    from nano3.config.cluster import ClusterConfig

    code = launch.run_array(
        "prep", tmp_path, entry="launch_entries:part", args=(str(tmp_path), "always:1"), tasks=3,
        finalize="launch_entries:gather", cluster=ClusterConfig(),
    )  # fmt: skip
    assert code == 9 and not (tmp_path / "gathered").exists()
