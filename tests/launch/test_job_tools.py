"""nano3 jobs, tail and cancel on run folders; on a real Slurm in test_sweeps_on_slurm.py."""

import argparse
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from launch import job_records, local_job, slurm
from launch.lock import hold_run_lock
from launch.progress import last_metrics, loss_text
from nano3.tools import cancel, jobs, tail
from nano3.tools._arguments import RUNS, find_run
from nano3.utils.console import console
from nano3.utils.errors import Failure, UserError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One ended Slurm run, one active Slurm run, one local run, and folders that are not runs."""
    for name in ("ended", "active", "here", "here/checkpoints/iter_10", "notes"):
        (tmp_path / name).mkdir(parents=True)
    for name, job_id, more in (("ended", "7", {"state": "FAILED", "exit_code": 3}), ("active", "8", {})):
        log = tmp_path / name / "slurm" / f"{job_id}_0_log.out"
        log.parent.mkdir()
        log.write_text("".join(f"line {i}\n" for i in range(30)))
        job_records.add_record(
            tmp_path / name, job_records.JobRecord(job_id, name, "2026-01-01T00:00:00+00:00", str(log), "s", **more)
        )
    (tmp_path / "here" / "config.yaml").write_text("")
    (tmp_path / "here" / "finished.json").write_text('{"iteration": 10}')
    (tmp_path / "here" / "checkpoints" / "iter_10" / "config.yaml").write_text("")
    (tmp_path / "here" / "metrics.jsonl").write_text(
        '{"iteration": 10, "loss": 2.5}\n{"iteration": 10, "valid_loss": 3}\n'
    )
    return tmp_path


def list_runs(*folders: Path, active: bool = False) -> int:
    """Return the exit code of nano3 jobs."""
    return jobs.run(argparse.Namespace(folders=list(folders), active=active, watch=None))


def test_jobs(runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def states(ids: Any) -> dict[str, slurm.JobState]:
        asked.extend(ids)
        return {"8": slurm.JobState("RUNNING", nodes="node1", restarts=2)}

    monkeypatch.setattr(slurm, "states", states)
    assert list_runs(runs) == 0
    head, *lines = [line.split() for line in capfd.readouterr().out.splitlines()[1:]]
    assert head == ["run", "job", "state", "exit", "iteration", "loss", "last", "line", "restarts"]
    assert [line[0] for line in lines] == [str(runs / name) for name in ("here", "active", "ended")]
    assert lines[0][1:] == ["finished", "0", "10", "2.5000"]
    assert lines[1][1:7] == ["8", "RUNNING", "on", "node1", "restart", "2"] and lines[1][-1] == "2"
    assert lines[2][1:] == ["7", "FAILED", "3"]
    assert asked == ["8"], "Slurm is asked only about jobs without a recorded end"
    assert list_runs(runs, active=True) == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()[2:]] == [str(runs / "active")]


JUST_NOW = "2100-01-01T00:00:00"  # never more than a minute ago, however long the tests take


@pytest.mark.parametrize(
    ("state", "recorded"),
    [
        (slurm.JobState("COMPLETED"), True),
        (slurm.JobState("FAILED", 3, end="2026-01-01T10:00:00"), True),
        (slurm.JobState("PREEMPTED", 143, end=JUST_NOW), False),
        (slurm.JobState("FAILED", 3), False),
        (slurm.JobState("RUNNING"), False),
        (slurm.UNKNOWN, False),
    ],
    ids=["completed", "failed long ago", "ended just now", "ended at an unknown time", "running", "unknown"],
)
def test_the_end_of_a_job_is_asked_once(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    state: slurm.JobState,
    recorded: bool,
) -> None:
    """A job that is being requeued looks ended for a moment."""
    asked: list[list[str]] = []

    def states(ids: Any) -> dict[str, slurm.JobState]:
        asked.append(list(ids))
        return dict.fromkeys(asked[-1], state)

    monkeypatch.setattr(slurm, "states", states)
    list_runs(runs)
    first = capfd.readouterr().out
    list_runs(runs)
    assert capfd.readouterr().out == first and asked == [["8"], [] if recorded else ["8"]]
    end = job_records.read_records(runs / "active")[-1].end_state
    assert end == (state if recorded else None)


def test_newest_first_with_elapsed_time_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["old", "new"]):
        first = job_records.JobRecord(str(number), name, f"2026-01-0{number + 1}T00:00:00+00:00", "/l", "/s")
        job_records.add_record(RUNS / name, first)
        end = slurm.JobState("TIMEOUT", 124, restarts=1, start="2026-01-03T10:00:00", end="2026-01-03T13:05:00")
        job_records.record_end(RUNS / name, str(number), end)
    job_records.add_record(RUNS / "new", job_records.JobRecord("9", "new", "2026-01-04T00:00:00+00:00", "/l", "/s"))
    job_records.record_end(RUNS / "new", "9", slurm.JobState("COMPLETED", restarts=3))
    monkeypatch.setenv("PATH", "/nowhere")
    assert list_runs(RUNS) == 0
    lines = capfd.readouterr().out.splitlines()[2:]
    assert [line.split() for line in lines] == [
        ["new", "9", "COMPLETED", "restart", "3", "0", "5"],
        ["old", "0", "TIMEOUT", "restart", "1", "124", "3", "h", "05", "min", "1", "2026-01-03", "10:00"],
    ]


def test_points_of_one_submission_are_listed_by_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    states = ["COMPLETED", "FAILED", "PENDING", "COMPLETED", "TIMEOUT", "RUNNING"]
    for number in range(len(states)):
        record = job_records.JobRecord(f"7_{number}", "s", "2026-01-01T00:00:00+00:00", "/l", "/s")
        job_records.add_record(tmp_path / f"point{number}", record)
    answer = {f"7_{number}": slurm.JobState(state) for number, state in enumerate(states)}
    monkeypatch.setattr(slurm, "states", lambda ids: {job_id: answer[job_id] for job_id in ids})
    assert list_runs(tmp_path) == 0
    shown = [line.split()[2] for line in capfd.readouterr().out.splitlines()[2:]]
    assert shown == ["RUNNING", "PENDING", "FAILED", "TIMEOUT", "COMPLETED", "COMPLETED"]


def test_a_pending_job_shows_how_long_it_waits_and_when_it_may_start(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now()
    submitted, start = (f"{now + timedelta(minutes=m):%Y-%m-%dT%H:%M:%S}" for m in (-5, 7))
    state = slurm.JobState("PENDING", reason="Resources", start=start, eligible=submitted)
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, state))
    assert list_runs(runs, active=True) == 0
    line = capfd.readouterr().out.splitlines()[2]
    assert "PENDING (Resources: the nodes it needs are busy)" in line
    assert line.endswith("  waits 5 min  starts in 7 min")


def test_watch_prints_again_and_again(runs: Path) -> None:
    command = [sys.executable, "-m", "nano3", "jobs", "--watch", "1", str(runs / "here")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(6)]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert [bool(re.fullmatch(r"\d\d:\d\d:\d\d: 1 finished\n", line)) for line in lines] == [True, False, False] * 2


def read_times(fd: int, words: str, times: int) -> str:
    """Return what a command wrote until the words were there so many times."""
    read = ""
    while len(re.findall(words, read)) < times:
        new = os.read(fd, 1 << 16).decode()  # on a terminal OSError at its end
        assert new, f"{words!r} is not {times} times in {read!r}"
        read += new
    return read


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_watch_goes_on_without_runs(tmp_path: Path, terminal: bool) -> None:
    """When the last active one has ended, and when there was none."""
    (run := tmp_path / "runs" / "one").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    mine, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "nano3", "jobs", "runs", "--active", "--watch", "1"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "24", "PYTHONPATH": str(ROOT)}
    with hold_run_lock(run):
        process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=tmp_path, env=env)
        os.close(theirs)
        read_times(mine, r"\d\d:\d\d:\d\d: 1 running", 1)
    sentence = r"\d\d:\d\d:\d\d: No pending or running runs under runs\."
    read_times(mine, sentence, 2)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the end of a terminal
        while os.read(mine, 1 << 16):
            pass
    assert process.wait(timeout=60) == 130
    os.close(mine)


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_watch_shows_only_damaged_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], terminal: bool) -> None:
    listing = jobs.Listing([], [UserError("one/finished.json: damaged")], "")
    if terminal:
        console().print(jobs._screen("10:00:00: no runs to show", listing, console()))
    else:
        jobs._print_listing("10:00:00: no runs to show", listing)
    out, err = capsys.readouterr()
    assert [line.strip() for line in (out + err).splitlines()] == [
        "10:00:00: no runs to show",
        f"{'' if terminal else 'error: '}one/finished.json: damaged",
    ]


def test_jobs_without_slurm(runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert list_runs(runs) == 0
    out, err = capfd.readouterr()
    assert "UNKNOWN" in out and "no scontrol" in err


def test_jobs_names_damaged_records(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other runs are listed; the exit code is that of a start with the damaged record."""
    (runs / "here" / "finished.json").write_text("{")
    monkeypatch.setenv("PATH", "/nowhere")
    assert list_runs(runs) == UserError.exit_code
    out, err = capfd.readouterr()
    assert "ended" in out and "finished.json: damaged" in err


def test_jobs_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert list_runs(RUNS) == 0
    assert "No runs under output/nano3/runs." in capfd.readouterr().out
    with pytest.raises(UserError, match="There is no folder nowhere, neither here nor under output/nano3/runs"):
        list_runs(Path("nowhere"))


def test_jobs_takes_the_name_of_a_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As all other tools do. A folder of this name has precedence."""
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    RUNS.parent.mkdir(parents=True)
    RUNS.symlink_to(runs)
    assert list_runs(Path("ended")) == 0
    out = capfd.readouterr().out
    assert "FAILED" in out and out.count("\n") == 3
    Path("ended").mkdir()
    assert list_runs(Path("ended")) == 0
    assert "No runs under ended." in capfd.readouterr().out


def test_tail_of_an_ended_job(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tail.run(argparse.Namespace(run=str(runs / "ended"), lines=2, rank=0, no_follow=False)) == 3
    out, err = capfd.readouterr()
    assert out == "line 28\nline 29\n" and "job 7 ended as FAILED with exit code 3" in err
    (runs / "ended/slurm/7.exit").write_text("3 1 node2")
    (runs / "ended/slurm/7_1_log.out").write_text("boom on rank 1\n")
    assert tail.run(argparse.Namespace(run=str(runs / "ended"), lines=2, rank=0, no_follow=True)) == 0
    err = capfd.readouterr().err
    assert "rank 1 on node2 failed first, with exit code 3" in err and "boom on rank 1" in err


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing", "There is no run"), ("notes", "no run was started there"), (".", "is a sweep. Name one")],
)
def test_tail_needs_a_run(runs: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(runs)
    with pytest.raises(UserError, match=says):
        tail.run(argparse.Namespace(run=name, lines=2, rank=0, no_follow=False))


def test_run_by_its_name(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUNS / "mine").mkdir(parents=True)
    assert find_run("mine") == RUNS / "mine"


def test_cancel_without_slurm(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match="no scontrol"):
        cancel.run(argparse.Namespace(runs=[str(runs / "active")]))


@pytest.mark.parametrize("tool", [jobs, tail, cancel])
def test_help(tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    assert tool.HELP and parser.format_help()


@pytest.mark.parametrize(
    ("lines", "loss"),
    [
        ([], ""),
        (['{"loss": 1.5}'], "1.5000"),
        (['{"loss": 1.5}', '{"loss": 0.25}', '{"valid_loss": 9}'], "0.2500"),
        (['{"loss": 1.5}', '{"loss": 0.2'], "1.5000"),
        (["[1]", "null", '{"loss": 2}'], "2"),
        ([json.dumps({"loss": 3.0, "x": "y" * 70000}), '{"loss": 4.0}'], "4.0000"),
    ],
    ids=["empty", "one", "validation last", "being written", "not objects", "long line"],
)
def test_newest_loss(tmp_path: Path, lines: list[str], loss: str) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert loss_text(last_metrics(tmp_path)) == loss


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) == {}


def record_local_start(run_dir: Path, code: int | None, log: str = "") -> None:
    """Write the record of a start on this machine."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text("")
    start = local_job.LocalJob(1, "host", "2026-01-01T00:00:00+00:00", log, code)
    (run_dir / local_job.FILE).write_text(json.dumps(vars(start)))


ENDS = {"finished": 0, "stopped": 75, "interrupted": 130, "refused": 2, "failed": 1, "killed": None, "segfault": 139}
WORDS = {"interrupted": "stopped", "killed": "failed", "segfault": "failed"}


@pytest.mark.parametrize(("name", "code"), ENDS.items(), ids=ENDS)
def test_state_of_an_ended_local_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, code: int | None
) -> None:
    record_local_start(tmp_path / name, code)
    assert list_runs(tmp_path) == 0
    words = capfd.readouterr().out.splitlines()[2].split()
    assert words[1] == WORDS.get(name, name)
    assert words[-2] == "2026-01-01" and (code is None or words[2] == str(code))


@pytest.mark.parametrize(
    ("saved", "last", "word"), [(10, 10, "stopped"), (12, 10, "stopped"), (5, 10, "failed"), (None, 10, "failed")]
)
def test_state_of_a_local_run_without_a_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], saved: int | None, last: int, word: str
) -> None:
    """The run was started with torchrun by hand or by an older nano3."""
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"iteration": last, "loss": 1.0}) + "\n")
    if saved:
        (tmp_path / "progress.json").write_text(json.dumps({"iteration": saved, "checkpoint": ""}))
    list_runs(tmp_path)
    assert capfd.readouterr().out.splitlines()[2].split()[1] == word


@pytest.fixture
def running(make_job: Any, tmp_path: Path) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """A local run that counts until it is asked to stop."""
    job = make_job("steps=100000", "pause=0.1")
    code = (
        "import sys, pickle, launch; from nano3.config.cluster import ClusterConfig; from pathlib import Path;"
        f"sys.exit(launch.run([launch.Job('run', Path({str(job.run_dir)!r}), {job.entry!r}, {job.args!r}, "
        "ClusterConfig())]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not local_job.newest_local_job(job.run_dir) or not list(job.run_dir.glob("progress.json")):
        assert process.poll() is None
        time.sleep(0.05)
    (job.run_dir / "config.yaml").write_text("")
    yield job.run_dir, process
    process.kill()
    process.wait()


def test_a_local_run_is_listed_and_stopped(running: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir, process = running
    list_runs(run_dir)
    assert f"running (process {process.pid} on " in capfd.readouterr().out
    assert cancel.run(argparse.Namespace(runs=[str(run_dir)])) == 0
    assert f"asked process {process.pid} ({run_dir}) to save and stop" in capfd.readouterr().out
    assert process.wait(timeout=200) == 75
    list_runs(run_dir)
    assert "stopped" in capfd.readouterr().out
    assert cancel.run(argparse.Namespace(runs=[str(run_dir)])) == 0
    assert "No process and no Slurm job of" in capfd.readouterr().out


def test_a_run_on_another_machine_is_not_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record_local_start(tmp_path, None)
    with hold_run_lock(tmp_path) as lock:
        os.ftruncate(lock.fd, 0)
        os.pwrite(lock.fd, b"process 1 on elsewhere", 0)
        assert cancel.run(argparse.Namespace(runs=[str(tmp_path)])) == 1
    assert "ssh elsewhere kill 1" in capfd.readouterr().err


def test_tail_of_a_run_in_a_terminal_shows_metrics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record_local_start(tmp_path, 75)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n{"iteration": 2}\n')
    assert tail.run(argparse.Namespace(run=str(tmp_path), lines=1, rank=0, no_follow=False)) == 75
    out, err = capfd.readouterr()
    assert out == '{"iteration": 2}\n'
    assert "went to the terminal that started it (process 1 on host)" in err and "stopped" in err
    with pytest.raises(UserError, match="no log of rank 1"):
        tail.run(argparse.Namespace(run=str(tmp_path), lines=1, rank=1, no_follow=False))


def test_tail_of_a_local_sweep_point(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "rank_0.log"
    record_local_start(tmp_path, 1, str(log))
    log.parent.mkdir()
    log.write_text("one\ntwo\n")
    assert tail.run(argparse.Namespace(run=str(tmp_path), lines=1, rank=0, no_follow=True)) == 0
    assert capfd.readouterr().out == "two\n"
