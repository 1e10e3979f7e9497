"""A task that Slurm starts again before it had begun, ends that have no name, and writers of one snapshot."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import eventually

from launch import snapshot
from launch.task import RankProcess, RankTask, check_starts, job_id
from nano3.utils.errors import Failure


@pytest.fixture
def _signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("array", "task", "known"), [(None, None, "7"), ("5", "0", "5_0"), ("5", "12", "5_12")], ids=str
)
def test_the_id_of_a_job_is_that_of_its_task(
    monkeypatch: pytest.MonkeyPatch, array: str | None, task: str | None, known: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in (("SLURM_ARRAY_JOB_ID", array), ("SLURM_ARRAY_TASK_ID", task)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert job_id() == known


def test_a_requeued_job_that_had_not_begun_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node died, or the image could not be had, before rank 0 wrote anything; then it counts as any other."""
    progress = tmp_path / "progress.json"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    check_starts(tmp_path / "7", progress, max_crashes=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    check_starts(tmp_path / "7", progress, max_crashes=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(Failure, match=r"last 2 starts .*progress\.json did not change.*raise cluster\.max_crashes"):
        check_starts(tmp_path / "7", progress, max_crashes=2)


def test_starts_of_other_jobs_and_tasks_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for name in ("7_0", "7_1", "7", "77"):
        check_starts(tmp_path / name, tmp_path / "progress.json", max_crashes=1)


@pytest.mark.usefixtures("_signals_restored")
@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGRTMIN, signal.SIGRTMIN + 6, signal.SIGRTMAX], ids=int)
def test_a_rank_may_be_ended_by_any_signal(capfd: pytest.CaptureFixture[str], number: int) -> None:
    assert (
        RankProcess([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})"], 10).wait()
        == 128 + number
    )
    told = capfd.readouterr().err
    assert "the rank was ended by " in told
    assert str(int(number)) in told or told.rstrip().endswith(signal.Signals(number).name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_rank_that_was_told_to_stop_while_it_began_is_started_again(tmp_path: Path, number: signal.Signals) -> None:
    """Before it handles signals they end it: it had done nothing, so that is no failure."""
    words = ("launch_entries:not_ready", (str(tmp_path),), str(tmp_path), str(tmp_path / "progress.json"))
    program = f"import sys; from launch.task import RankTask; sys.exit(RankTask(*{words!r}, 600, 2)._run())"
    env = {**os.environ, "RANK": "0", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}
    task = subprocess.Popen([sys.executable, "-c", program], env=env)
    eventually((tmp_path / "waits").exists)
    task.send_signal(number)
    assert task.wait() == 0
    assert {p.name for p in tmp_path.glob("7.*")} == {"7.again", "7.starts.json"}


def test_a_point_that_was_told_to_stop_while_it_began_has_stopped(make_job: Any) -> None:
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


@pytest.mark.usefixtures("_signals_restored")
def test_a_signal_from_before_the_rank_was_there_is_not_forgotten() -> None:
    """It comes between the handler and the process; the time limit is as near as for a later one."""
    popen = subprocess.Popen

    def told_meanwhile(*words: Any, **keys: Any) -> "subprocess.Popen[bytes]":
        os.kill(os.getpid(), signal.SIGUSR2)
        return popen(*words, preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN), **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", told_meanwhile)
        child = RankProcess(["sleep", "600"], 1)
    assert child.told_to_stop and child.wait() == 137 and child.killed_late


@pytest.mark.usefixtures("_signals_restored")
def test_words_of_an_entry_arrive_as_they_are(tmp_path: Path) -> None:
    """No shell is between the task and its rank."""
    words = ("a b", "$HOME;`id`", "'", '"', "--part", "\n", "", "*", "é😀", os.fsdecode(b"caf\xe9"))
    task = RankTask("launch_entries:count", words, str(tmp_path), str(tmp_path / "p"), 60, 2, part=(3, 8))
    expected = ["-u", "-m", "launch.rank", "--part", "3", "8", "launch_entries:count", *words]
    assert task.command == [sys.executable, *expected]
    program = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    child = RankProcess(["sh", "-c", f'exec "$0" -c "$1" "$@" >{tmp_path}/out', sys.executable, program, *words], 10)
    assert child.wait() == 0
    assert (tmp_path / "out").read_bytes().split(b"\0")[1:] == [os.fsencode(word) for word in words]


RECORD = """
import sys
from pathlib import Path
from launch.task import record_failure
sys.stdin.readline()
record_failure(Path(sys.argv[1]), int(sys.argv[2]))
"""


def test_the_first_failure_of_many_ranks_is_whole(tmp_path: Path) -> None:
    """All at once, each in a process of its own: one of them is recorded, and nothing else is left."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RECORD, str(tmp_path / "7"), str(40 + rank)], stdin=subprocess.PIPE,
            env={**os.environ, "RANK": str(rank)},
        )
        for rank in range(6)
    ]  # fmt: skip
    for process in ranks:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.wait() for process in ranks] == [0] * 6
    code, rank, host = (tmp_path / "7.exit").read_text().split()
    assert int(code) == 40 + int(rank) and host
    assert [p.name for p in tmp_path.iterdir()] == ["7.exit"]


def test_two_submissions_write_one_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of one sweep started from two terminals share a folder; the second writes while the first does."""
    plan, describe = snapshot.plan(tmp_path, {"launch_entries:count"}), snapshot.describe

    def meanwhile(root: Path) -> dict[str, object]:
        monkeypatch.setattr(snapshot, "describe", describe)
        plan.write()
        return describe(root)

    monkeypatch.setattr(snapshot, "describe", meanwhile)
    plan.write()
    assert [p.name for p in tmp_path.iterdir()] == [plan.folder.name], "the copy that came second is gone"
    assert all((plan.folder / place).read_bytes() == source.read_bytes() for place, source in plan.files.items())


def test_a_snapshot_that_cannot_be_written_is_not_half_there(tmp_path: Path) -> None:
    plan = snapshot.plan(tmp_path / "slurm", set())
    (tmp_path / "slurm").write_text("a file")
    with pytest.raises(OSError, match="slurm"):
        plan.write()
    assert not plan.folder.exists()


@pytest.mark.parametrize(
    ("entry", "module"),
    [
        pytest.param("my_entry:main", "my_entry.py", id="a module"),
        pytest.param("my_entry.deep.one:main", "my_entry/deep/one.py", id="a package"),
        pytest.param("my_entry.one:main", "my_entry/one.py", id="a package without __init__"),
    ],
)
def test_code_of_an_entry_goes_with_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, module: str
) -> None:
    file = tmp_path / "code" / module
    file.parent.mkdir(parents=True)
    file.write_text("def main(): pass\n")
    if "deep" in entry:
        for folder in (file.parent, file.parent.parent):
            (folder / "__init__.py").touch()
    (tmp_path / "code" / "bystander.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "code")
    plan = snapshot.plan(tmp_path / "slurm", {entry})
    assert plan.files[module] == file
    assert not [place for place in plan.files if "bystander" in place or place.endswith(".pyc")]
    file.write_text("def main(): return 1\n")
    assert snapshot.plan(tmp_path / "slurm", {entry}).folder != plan.folder, "named after its bytes"


def test_an_entry_that_is_nowhere_here_is_left_to_the_ranks(tmp_path: Path) -> None:
    """It may be in the container's image."""
    assert snapshot.plan(tmp_path, {"not_here.at_all:main"}).files == snapshot.plan(tmp_path, set()).files
