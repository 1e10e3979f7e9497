"""launch.lock: one process at a time in a run folder, and no configuration is saved for a refused start."""

import errno
import fcntl
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import eventually, start_attached

import launch
from launch import job_records, slurm
from launch.lock import hold_run_lock, lock_holder
from nano3.utils.errors import UserError


def test_one_process_holds_a_run_folder(tmp_path: Path) -> None:
    with (
        hold_run_lock(tmp_path / "run"),
        pytest.raises(UserError, match=f"is in use by process {os.getpid()} on {socket.gethostname()}"),
        hold_run_lock(tmp_path / "run"),
    ):
        pass
    with hold_run_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_run_lock(tmp_path):
        pass
    assert "this file system has no locks" in capfd.readouterr().err


def test_a_second_local_start_fails_until_the_first_has_ended(make_job: Any) -> None:
    job = make_job("steps=100000", "pause=0.05", "more=1")
    first = start_attached(job)
    eventually(lambda: (job.run_dir / "progress.json").exists())
    with pytest.raises(UserError, match=f"in use by process {first.pid} on"):
        launch.run([job])
    assert len(list(job.run_dir.glob("environment_*"))) == 1
    first.kill()
    first.communicate()
    assert launch.run([job]) == 0


def test_torchrun_ranks_hold_the_run_folder(make_job: Any) -> None:
    job = make_job("steps=100000", "pause=0.05", "more=1", nproc_per_node=2)
    first = start_attached(job)
    eventually(lambda: all((job.run_dir / name).exists() for name in ("progress.json", "environment_1.json")))
    ranks = [int((job.run_dir / "logs" / f"{rank}.pid").read_text()) for rank in (0, 1)]
    with pytest.raises(UserError, match=f"in use by process {first.pid} on .*, which runs as process") as refused:
        launch.run([job])
    os.kill(first.pid, signal.SIGKILL)
    os.waitpid(first.pid, 0)
    with pytest.raises(UserError, match="in use by"):
        launch.run([job])
    torchrun = re.search(r"runs as process (\d+)", str(refused.value))
    assert torchrun is not None
    os.kill(int(torchrun[1]), signal.SIGKILL)
    # The ranks die with the thread that started them; torchrun holds the lock until its last thread ends.
    eventually(lambda: all(ended(pid) for pid in (int(torchrun[1]), *ranks)) and not lock_holder(job.run_dir))
    assert launch.run([job]) == 0


def ended(pid: int) -> bool:
    """Return whether a process is gone or a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_locked_point_is_refused_and_the_others_run(make_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [make_job("steps=1", name=f"s/{i}", label=f"p{i}") for i in range(2)]
    with hold_run_lock(jobs[0].run_dir):
        assert launch.run(jobs, sweep=True) == 2
    assert [job.finished for job in jobs] == [False, True]
    shown = capfd.readouterr()
    assert re.search(r"^p0 +- +refused", shown.out, re.MULTILINE), shown.out
    assert "1 of 2 points finished, 1 failed" in shown.err


class SavingRun:
    """A run that counts how often its configuration is saved."""

    def __init__(self, make_job: Any, **keys: Any) -> None:
        self.times = 0
        self.job = make_job("steps=1", save_config=self._save, **keys)

    def _save(self) -> None:
        self.times += 1


@pytest.mark.parametrize("sweep", [False, True])
def test_the_configuration_is_saved_under_the_run_lock(make_job: Any, sweep: bool) -> None:
    run = SavingRun(make_job, label="p")
    launch.run([run.job], dry_run=True, sweep=sweep)
    assert run.times == 0
    with hold_run_lock(run.job.run_dir):
        if sweep:
            assert launch.run([run.job], sweep=True) == 2
        else:
            with pytest.raises(UserError, match="in use"):
                launch.run([run.job])
    assert run.times == 0
    assert launch.run([run.job], sweep=sweep) == 0
    assert run.times == 1


@pytest.mark.parametrize("kind", ["local", "slurm"])
@pytest.mark.parametrize("sweep", [False, True])
def test_no_configuration_is_saved_while_a_job_is_active(
    make_job: Any, recorder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sweep: bool
) -> None:
    run = SavingRun(make_job, kind=kind, label="p")
    run.job.run_dir.mkdir()
    job_records.add_record(
        run.job.run_dir, job_records.JobRecord("77", "run", "2026-01-01T00:00:00+00:00", "/log", "/script")
    )
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.JobState("RUNNING")))
    if kind == "local" and sweep:
        assert launch.run([run.job], sweep=True) == 2
    else:
        with pytest.raises(UserError, match="job 77 of this run is RUNNING"):
            launch.run([run.job], sweep=sweep)
    assert run.times == 0


def test_no_configuration_is_saved_for_an_invalid_job(make_job: Any, recorder: Path) -> None:
    run = SavingRun(make_job, kind="slurm", partition="nowhere")
    with pytest.raises(UserError, match="no such partition"):
        launch.run([run.job])
    assert run.times == 0


def test_submission_saves_the_configuration(make_job: Any, recorder: Path) -> None:
    run = SavingRun(make_job, kind="slurm")
    with pytest.raises(UserError, match="Slurm rejected the job"):
        launch.run([run.job])
    assert run.times == 1


def test_nothing_is_submitted_if_the_next_run_is_active(
    make_job: Any, recorder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = SavingRun(make_job, kind="slurm")
    following.job.run_dir.mkdir()
    job_records.add_record(
        following.job.run_dir, job_records.JobRecord("77", "run", "2026-01-01T00:00:00+00:00", "/log", "/script")
    )
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.JobState("RUNNING")))
    with pytest.raises(UserError, match="job 77 of this run is RUNNING"):
        launch.run_array(
            "prep", tmp_path / "prep", entry="launch_entries:part", args=(str(tmp_path), ""), tasks=2,
            finalize="launch_entries:gather", cluster=following.job.cluster, then=following.job,
        )  # fmt: skip
    assert following.times == 0
    assert not list((tmp_path / "prep").glob("slurm/*"))
