"""launch.sweep: local sweeps, the table, and the exit code."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import ROOT, eventually
from rich.console import Console

import launch
from launch import slurm, sweep
from launch.follow import failure_lines
from launch.submit import SubmittedJob
from launch.sweep_table import SweepRow, SweepTable
from nano3.config.cluster import ClusterConfig


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
    assert re.search(r"^point\s+job\s+state\s+iteration\s+loss\s+elapsed\s+left\s+exit$", out, re.MULTILINE)
    assert re.search(r"^steps=2\s+-\s+finished\s+2\s+0.5000\s+0$", out, re.MULTILINE)


def test_a_failed_point_hides_no_other(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = points(make_job, 3)
    failing = make_job("fail_rank=0", "fail_code=7", name="sweep/bad", label="bad")
    assert launch.run([failing, *jobs], sweep=True) == 7
    err = capfd.readouterr().err
    assert all((job.run_dir / "finished.json").exists() for job in jobs)
    assert "3 of 4 points finished, 1 failed" in err and "boom on rank 0" in err


def test_a_repeated_sweep_runs_only_missing_points(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
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
    ("codes", "expected", "code"),
    [
        pytest.param([0, 0], "2 of 2 points finished", 0, id="all"),
        pytest.param([0, 3, None], "1 of 3 points finished, 1 failed, 1 not started", 3, id="interrupted"),
        pytest.param([75, None, 0], "1 of 3 points finished, 1 stopped, 1 not started", 75, id="waiting"),
        pytest.param([0, None], "1 of 2 points finished, 1 not started", 75, id="not started"),
        pytest.param([75, 4, 3], "0 of 3 points finished, 2 failed, 1 stopped", 4, id="first that failed"),
    ],
)
def test_exit_code_and_summary_of_a_sweep(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], codes: list[int | None], expected: str, code: int
) -> None:
    assert sweep._report([SweepRow(str(end), tmp_path, code=end) for end in codes]) == code
    assert capfd.readouterr().err.splitlines()[-1] == f"launch: {expected}"


def test_a_point_that_stops_by_itself_hides_no_other(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Each point reaches a limit of its own; the sweep was not asked to stop."""
    jobs = [make_job("steps=9", "limit=2", name=f"sweep/{i}", label=str(i)) for i in range(2)]
    assert launch.run(jobs, sweep=True) == 75
    assert [json.loads((job.run_dir / "progress.json").read_text())["step"] for job in jobs] == [2, 2]
    err = capfd.readouterr().err
    assert "0: stopped, exit code 75" in err and "0 of 2 points finished, 2 stopped" in err


def test_a_point_that_is_stopped_before_it_starts_counts_as_stopped(make_job: Any) -> None:
    jobs = [make_job(name=f"s/{i}", label=str(i), entry="launch_entries:not_ready") for i in range(2)]
    jobs = [replace(job, args=(str(job.run_dir),)) for job in jobs]
    program = (
        "import sys, launch\nfrom pathlib import Path, PosixPath\nfrom nano3.config.cluster import ClusterConfig\n"
        f"Job = launch.Job\nsys.exit(launch.run({jobs!r}, sweep=True))\n"
    )
    command = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    eventually((jobs[0].run_dir / "waits").exists)
    command.send_signal(signal.SIGTERM)
    _, err = command.communicate()
    assert command.returncode == 75 and "0 of 2 points finished, 1 stopped, 1 not started" in err


def on_a_terminal(program: str, lines: int = 24) -> str:
    """Return what a program writes to a terminal of 200 columns without colors."""
    mine, theirs = pty.openpty()
    env = {
        **os.environ,
        "TERM": "dumb",
        "COLUMNS": "200",
        "LINES": str(lines),
        "PYTHONPATH": f"{ROOT}",
        "NO_COLOR": "1",
    }
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            new = os.read(mine, 1 << 16)
        except OSError:  # EIO: the other end has closed
            break
        if not new:
            break
        written += new
    os.close(mine)
    assert process.wait() == 0, written.decode()
    return written.decode()


SHOW = """
from pathlib import Path
from launch.sweep_table import SweepRow, SweepTable
with SweepTable([SweepRow("lr=1", Path("/nowhere"), state={state!r})]):
    pass
"""
MANY = """
from pathlib import Path
from launch.sweep_table import SweepRow, SweepTable
def row(number):
    code = 3 if number % 50 == 49 else 0 if number < 100 else None
    state = "FAILED" if code else "COMPLETED" if code == 0 else "RUNNING on node1" if number < 110 else "PENDING"
    return SweepRow(f"lr={number}", Path("/nowhere"), 10, state, code)
table = SweepTable([row(number) for number in range(200)])
table._out.print(table._table())
"""


@pytest.mark.parametrize("height", [24, 50])
def test_a_large_sweep_fits_the_screen_with_failures_first(height: int) -> None:
    lines = on_a_terminal(MANY, height).rstrip().splitlines()
    assert len(lines) < height
    assert "sweep of 200 points: 4 failed, 10 running, 88 pending, 98 finished" in lines[0]
    assert all("FAILED, rank 0" in line for line in lines[4:8]) and "RUNNING" in lines[8]
    assert [line.split()[:3] for line in lines if "PENDING" in line] == [["88", "points", "PENDING"]]
    assert re.fullmatch(r"and \d+ finished", lines[-1].strip())


@pytest.mark.parametrize("columns", [80, 100, 130, 200])
def test_names_and_states_are_cut_but_numbers_are_not(tmp_path: Path, columns: int) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 12345, "loss": 10.25}\n')
    rows = [
        SweepRow(f"model.hidden_size=4096__optimizer.lr=3e-4__seed={n}", tmp_path, 100_000, "RUNNING on node[1-64]")
        for n in range(3)
    ]
    for row in rows:
        row.submitted, row.started = SubmittedJob("1234567_10", tmp_path, tmp_path), time.time() - 5000
        row.first_iteration = 0
    out = io.StringIO()
    view = SweepTable(rows)
    view._out = Console(file=out, width=columns, height=24)
    view._out.print(view._table())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns and len(lines) < 10
    shown = [line for line in lines if "seed=" in line]
    assert [line.split()[0][-6:] for line in shown] == ["seed=0", "seed=1", "seed=2"]
    assert all("RUNNING on" in line and "12345/100000" in line and "10.2500" in line for line in shown)
    assert all(("1234567_10" in line) == (columns >= 130) for line in shown), "the number of the job goes first"


def test_the_error_is_shown_and_not_what_srun_adds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "error: boom\nsrun: error: node1: task 0: Exited with exit code 1\n"
        "srun: launch/slurm: _step_signal: Terminating StepId=62.0\n\n"
    )
    assert failure_lines(log, 5) == ["error: boom"]
    log.write_text("srun: error: node1: task 0: Out Of Memory\nsrun: launch/slurm: _step_signal: Terminating\n")
    assert failure_lines(log, 5) == ["srun: error: node1: task 0: Out Of Memory"]
    log.write_text("srun: error: node1: task 0: Exited with exit code 1\n")
    assert failure_lines(log, 5) == ["srun: error: node1: task 0: Exited with exit code 1"]


def test_the_time_left_follows_the_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = SweepRow("lr=1", tmp_path, 100)
    row.set_state("RUNNING on node1")
    monkeypatch.setattr("time.time", lambda at=row.started: at + 30)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 25, "loss": 1.5}\n')
    assert row.cells() == ("lr=1", "-", "RUNNING on node1", "25/100", "1.5000", "30 s", "2 min", "")


def test_a_failed_point_shows_the_rank_that_failed(tmp_path: Path) -> None:
    row = SweepRow("lr=1", tmp_path, submitted=SubmittedJob("7_0", tmp_path, tmp_path))
    (tmp_path / "7_0.exit").write_text("9 1 node2")
    (tmp_path / "7_0_1_log.out").write_text("error: boom on rank 1\n\n")
    row.update(slurm.JobState("FAILED", 9))
    assert row.cells()[2] == "FAILED, rank 1: boom on rank 1" and row.failed_log().name == "7_0_1_log.out"


@pytest.mark.parametrize("state", ["RUNNING on rack[a1-a4]", "RUNNING on n[1-2]", "PENDING (x[/bold])", "a:100:b"])
def test_a_terminal_shows_states_without_markup(state: str) -> None:
    assert state in on_a_terminal(SHOW.format(state=state))


@pytest.mark.parametrize(
    ("folders", "base"),
    [
        pytest.param(["/s/lr=1", "/s/lr=2"], "/s", id="side by side"),
        pytest.param(["/s/lr=1"], "/s", id="one point"),
        pytest.param(["/s/a/lr=1", "/s/ab/lr=2"], "/s", id="in folders with a common name prefix"),
        pytest.param(["s/1", "s/2"], "{here}/s", id="relative"),
        pytest.param(["s/1", "{here}/s/2"], "{here}/s", id="relative and absolute"),
    ],
)
def test_base_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], base: str) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [launch.Job("n", Path(f.format(here=tmp_path)), "a:b", (), ClusterConfig()) for f in folders]
    assert str(sweep.base_folder(jobs)) == base.format(here=tmp_path)
