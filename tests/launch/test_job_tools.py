"""nano3 jobs, tail and cancel on run folders; with a real Slurm in test_slurm_many.py."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from launch import ledger, slurm
from launch.metrics import last_metrics, loss_text
from nano3.errors import Failure, UserError
from nano3.tools import cancel, jobs, tail


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One run that ended on Slurm, one that is on Slurm, one that ran here, and things that are not runs."""
    for name in ("ended", "active", "here", "here/checkpoints/iter_10", "notes"):
        (tmp_path / name).mkdir(parents=True)
    for name, job_id, more in (("ended", "7", {"state": "FAILED", "exit_code": 3}), ("active", "8", {})):
        log = tmp_path / name / "slurm" / f"{job_id}_0_log.out"
        log.parent.mkdir()
        log.write_text("".join(f"line {i}\n" for i in range(30)))
        ledger.add(tmp_path / name, ledger.Entry(job_id, name, "2026-01-01T00:00:00+00:00", str(log), "s", **more))
    (tmp_path / "here" / "config.yaml").write_text("")
    (tmp_path / "here" / "finished.json").write_text("{}")
    (tmp_path / "here" / "checkpoints" / "iter_10" / "config.yaml").write_text("")
    (tmp_path / "here" / "metrics.jsonl").write_text(
        '{"iteration": 10, "loss": 2.5}\n{"iteration": 10, "valid_loss": 3}\n'
    )
    return tmp_path


def test_jobs(runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def states(ids: Any) -> dict[str, slurm.JobState]:
        asked.extend(ids)
        return {"8": slurm.JobState("RUNNING", nodes="node1")}

    monkeypatch.setattr(slurm, "states", states)
    assert jobs.run(argparse.Namespace(folders=[runs])) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == [str(runs / name) for name in ("active", "ended", "here")]
    assert lines[0][1:5] == ["8", "RUNNING", "on", "node1"] and lines[1][1:4] == ["7", "FAILED", "3"]
    assert lines[2][1:] == ["finished", "10", "2.5000"]
    assert asked == ["8"], "Slurm is not asked about what has ended"


def test_jobs_without_slurm(runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert jobs.run(argparse.Namespace(folders=[runs])) == 0
    out, err = capfd.readouterr()
    assert "UNKNOWN" in out and "no scontrol" in err


def test_jobs_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs.run(argparse.Namespace(folders=[jobs.RUNS])) == 0
    assert "No runs under output/nano3/runs." in capfd.readouterr().out
    with pytest.raises(UserError, match="There is no folder nowhere"):
        jobs.run(argparse.Namespace(folders=[Path("nowhere")]))


def test_tail_of_an_ended_job(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tail.run(argparse.Namespace(run=str(runs / "ended"), lines=2, rank=0, no_follow=False)) == 0
    out, err = capfd.readouterr()
    assert out == "line 28\nline 29\n" and "job 7 FAILED" in err


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing", "There is no run"), ("here", "no Slurm job of this run"), (".", "is a sweep. Name one")],
)
def test_tail_of_what_cannot_be_followed(runs: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(runs)
    with pytest.raises(UserError, match=says):
        tail.run(argparse.Namespace(run=name, lines=2, rank=0, no_follow=False))


def test_run_by_its_name(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / jobs.RUNS / "mine").mkdir(parents=True)
    assert tail.run_folder("mine") == jobs.RUNS / "mine"


def test_cancel_when_slurm_is_not_there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
