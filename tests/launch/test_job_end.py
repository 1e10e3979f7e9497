"""launch.job_end: the marker files of a job and the crash loop check. The job script is in test_script.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.job_end import AfterFailure, JobMarkers, current_job_id
from nano3.utils.errors import Failure


def test_first_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, code in (("3", 9), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        JobMarkers(tmp_path, "7_2").record_failure(code)
    assert (tmp_path / "7_2.exit").read_text().split()[:2] == ["9", "3"]
    failure = JobMarkers(tmp_path, "7_2").first_failure()
    assert failure and (failure.code, failure.rank) == (9, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["7_2.exit"]


@pytest.mark.parametrize(
    ("progress", "gives_up_at"),
    [
        ([None, None, None], 2),
        ([None, "1", "1", "1"], 3),
        (["1", "2", "3", "4", "5"], None),
        ([None, "1", "1", "2", "2"], None),
        (["5", "5", "5"], 2),
    ],
    ids=["never", "stuck after one", "always", "now and then", "resumed and stuck"],
)
def test_crash_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: list[str | None], gives_up_at: int | None
) -> None:
    file = tmp_path / "progress.json"
    for start, value in enumerate(progress):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
        if value is not None:
            file.write_text(value)
        if start == gives_up_at:
            with pytest.raises(Failure, match="last 2 starts of this job made no progress"):
                JobMarkers(tmp_path, "7").check_crash_loop(file, max_crashes=2)
            return
        JobMarkers(tmp_path, "7").check_crash_loop(file, max_crashes=2)
    assert gives_up_at is None


def test_a_failure_names_the_node_and_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    JobMarkers(tmp_path, "7").record_failure(9, AfterFailure.RESTART)
    assert (tmp_path / "7.exit").read_text() == "9 3 node7 restart\n"
    JobMarkers(tmp_path, "8").record_failure(76, AfterFailure.GIVE_UP, "-")
    assert (tmp_path / "8.exit").read_text() == "76 3 - give-up\n"


def test_a_record_of_an_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "7.exit").write_text("9 3 node7\n")
    failure = JobMarkers(tmp_path, "7").first_failure()
    assert failure and (failure.code, failure.rank, failure.host) == (9, 3, "node7")


@pytest.mark.parametrize(
    ("progress", "last"),
    [
        ([("", ""), ("", "")], 2),
        ([("", "1"), ("1", "1"), ("1", "1")], 3),
        ([("", "1"), ("1", "2"), ("2", "3"), ("3", "4")], None),
        ([("", ""), ("", "1"), ("1", "1"), ("1", "1")], 4),
    ],
    ids=["never", "once", "always", "late"],
)
def test_a_crash_restarts_as_often_as_the_next_start_would_be_let(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: list[tuple[str, str]], last: int | None
) -> None:
    """Two starts in a row without progress end the job, after the second one and not at the beginning of a third."""
    file, markers = tmp_path / "progress.json", JobMarkers(tmp_path, "7")
    for start, (before, after) in enumerate(progress):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
        file.write_text(before)
        markers.check_crash_loop(file, max_crashes=2)
        file.write_text(after)
        assert markers.may_restart(file, max_crashes=2) == (start + 1 != last)


def test_starts_of_an_earlier_job_with_the_same_id_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7.starts.json").write_text('["", "", ""]')
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    JobMarkers(tmp_path, "7").check_crash_loop(tmp_path / "progress.json", max_crashes=1)


@pytest.mark.parametrize(
    ("array", "task", "known"), [(None, None, "7"), ("5", "0", "5_0"), ("5", "12", "5_12")], ids=str
)
def test_current_job_id(monkeypatch: pytest.MonkeyPatch, array: str | None, task: str | None, known: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in (("SLURM_ARRAY_JOB_ID", array), ("SLURM_ARRAY_TASK_ID", task)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert current_job_id() == known


def test_a_requeued_job_without_recorded_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start died before rank 0 recorded it; later starts count as usual."""
    progress = tmp_path / "progress.json"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    JobMarkers(tmp_path, "7").check_crash_loop(progress, max_crashes=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    JobMarkers(tmp_path, "7").check_crash_loop(progress, max_crashes=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(Failure, match=r"last 2 starts .*progress\.json did not change.*raise cluster\.max_crashes"):
        JobMarkers(tmp_path, "7").check_crash_loop(progress, max_crashes=2)


def test_starts_of_other_jobs_and_tasks_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for name in ("7_0", "7_1", "7", "77"):
        JobMarkers(tmp_path, name).check_crash_loop(tmp_path / "progress.json", max_crashes=1)


RECORD = """
import sys
from pathlib import Path
from launch.job_end import JobMarkers
sys.stdin.readline()
JobMarkers(Path(sys.argv[1]), "7").record_failure(int(sys.argv[2]))
"""


def test_only_one_of_many_concurrent_failures_is_recorded(tmp_path: Path) -> None:
    """Six processes fail at once: one failure is recorded and no other file is left."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RECORD, str(tmp_path), str(40 + rank)], stdin=subprocess.PIPE,
            env={**os.environ, "RANK": str(rank)},
        )
        for rank in range(6)
    ]  # fmt: skip
    for process in ranks:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.wait() for process in ranks] == [0] * 6
    code, rank, host, _after = (tmp_path / "7.exit").read_text().split()
    assert int(code) == 40 + int(rank) and host
    assert [p.name for p in tmp_path.iterdir()] == ["7.exit"]
