"""nano3 logs: lines of all ranks, jobs and points."""

import argparse
from pathlib import Path

import pytest

from launch import job_records
from nano3.tools import logs
from nano3.utils.errors import UserError


def search(folder: Path, grep: str | None = None, **words: object) -> int:
    """Return the exit code of nano3 logs."""
    defaults = {"rank": None, "ignore_case": False, "lines": 2}
    return logs.run(argparse.Namespace(run=str(folder), grep=grep, **{**defaults, **words}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two points of a sweep on Slurm with two ranks; the first was submitted twice."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for job_id, point in (("7_0", "lr=1"), ("7_1", "lr=2"), ("9_0", "lr=1")):
        log = str(folder / f"{job_id}_0_log.out")
        record = job_records.JobRecord(job_id, point, "2026-01-01T00:00:00+00:00", log, "s")
        job_records.add_record(tmp_path / point, record)
        for rank in range(2):
            (folder / f"{job_id}_{rank}_log.out").write_text(f"begin {job_id}\nerror: boom {job_id} on rank {rank}\n")
    own = tmp_path / "lr=2" / "logs" / "rank_1.log"
    own.parent.mkdir()
    own.write_text("of a library\n\x1b[31merror: boom 7_1 on rank 1\x1b[0m\nBoom of a library\n")
    return tmp_path


def test_lines_of_all_points_jobs_and_ranks(sweep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert search(sweep, "error: boom") == 0
    slurm = sweep / "slurm"
    assert capfd.readouterr().out.splitlines() == [
        f"lr=1, rank 0: {slurm}/7_0_0_log.out", "  2: error: boom 7_0 on rank 0",
        f"lr=1, rank 0: {slurm}/9_0_0_log.out", "  2: error: boom 9_0 on rank 0",
        f"lr=1, rank 1: {slurm}/7_0_1_log.out", "  2: error: boom 7_0 on rank 1",
        f"lr=1, rank 1: {slurm}/9_0_1_log.out", "  2: error: boom 9_0 on rank 1",
        f"lr=2, rank 0: {slurm}/7_1_0_log.out", "  2: error: boom 7_1 on rank 0",
        f"lr=2, rank 1: {sweep}/lr=2/logs/rank_1.log", "  2: error: boom 7_1 on rank 1",
    ]  # fmt: skip


def test_one_rank_and_any_case(sweep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert search(sweep / "lr=2", "^boom", rank=1, ignore_case=True) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"rank 1: {sweep}/lr=2/logs/rank_1.log", "  3: Boom of a library",
    ]  # fmt: skip


def test_nothing_matches(sweep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert search(sweep, "no such text") == 1
    out, err = capfd.readouterr()
    assert out == "" and err == "no line of 7 logs matches no such text\n"


def test_the_ends_without_a_pattern(sweep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert search(sweep, rank=1, lines=1) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"lr=1, rank 1: {sweep}/slurm/9_0_1_log.out", "the newest log of each rank"
    assert lines[1:] == [
        "  error: boom 9_0 on rank 1", f"lr=2, rank 1: {sweep}/lr=2/logs/rank_1.log", "  Boom of a library",
    ]  # fmt: skip


def test_logs_of_an_array_and_its_finalizer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slurm").mkdir()
    log = str(tmp_path / "slurm" / "6_0_log.out")
    job_records.add_record(tmp_path, job_records.JobRecord("6", "p", "2026-01-01T00:00:00+00:00", log, "s", ("5",)))
    for name in ("5_0_0", "5_13_0", "6_0", "61_0", "15_0_0"):
        (tmp_path / "slurm" / f"{name}_log.out").write_text(f"boom {name}\n")
    assert search(tmp_path, "boom") == 0
    assert [line for line in capfd.readouterr().out.splitlines() if line.startswith(" ")] == [
        "  1: boom 5_0_0", "  1: boom 5_13_0", "  1: boom 6_0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"grep": "boom ("}, r"not a regular expression .* --grep 'boom"),
        ({"rank": 4}, "no log of rank 4. There are logs of: 0, 1"),
    ],
)
def test_refusals(sweep: Path, words: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        search(sweep, **words)


def test_a_folder_without_logs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run was started there"):
        search(tmp_path, "x")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="there are no logs yet"):
        search(tmp_path, "x")


def test_control_characters_are_shown_as_escapes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank_0.log").write_bytes(b"boom \x1b]0;title\x07 \xff\rnew\n")
    assert search(tmp_path, "boom") == 0
    assert capfd.readouterr().out.splitlines()[1] == "  1: boom \\x1b]0;title\\x07 \ufffd\\rnew"
