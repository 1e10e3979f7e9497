"""launch.dependency: cluster.dependency, with names of runs."""

from pathlib import Path
from typing import Any

import pytest

from launch import dependency, slurm
from launch.job_records import JobRecord, add_record
from launch.submit import Batch
from nano3.utils.errors import UserError


def record(run_dir: Path, job_id: str, state: str = "", code: int | None = None, finished: bool = False) -> None:
    run_dir.mkdir(parents=True)
    add_record(run_dir, JobRecord(job_id, "x", "2026-01-01T00:00:00+00:00", "log", "script", (), state, code))
    if finished:
        (run_dir / "finished.json").write_text("{}")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs in several states; returns the folder of the run that waits."""
    for job_id, name in (("5", "waits"), ("6", "other"), ("8_0", "sweep/a"), ("8_1", "sweep/b")):
        record(tmp_path / name, job_id)
    record(tmp_path / "failed", "7", "FAILED", 9)
    record(tmp_path / "done", "4", "COMPLETED", 0, finished=True)
    record(tmp_path / "sweep/c", "8_2", "COMPLETED", 0, finished=True)
    (tmp_path / "local").mkdir()
    (tmp_path / "local/finished.json").write_text("{}")
    (tmp_path / "nothing").mkdir()
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.JobState("PENDING")))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("waits", "afterok:5"),
        ("{here}/waits", "afterok:5"),
        ("afterany:waits", "afterany:5"),
        ("after:waits", "after:5"),
        ("afterok:waits:other:77", "afterok:5:6:77"),
        ("waits,afterany:other", "afterok:5,afterany:6"),
        ("waits?other", "afterok:5?afterok:6"),
        ("sweep", "afterok:8"),
        ("sweep/a", "afterok:8_0"),
        ("done", ""),
        ("local", ""),
        ("done,waits", "afterok:5"),
        ("done?waits", ""),
        ("afterany:failed", ""),
        ("afterok:123:124", "afterok:123:124"),
        ("afternotok:12_3,singleton", "afternotok:12_3,singleton"),
        ("after:123+10", "after:123+10"),
        ("afterok:12_*", "afterok:12_*"),
    ],
)
def test_what_a_job_waits_for(runs: Path, given: str, resolved: str) -> None:
    assert dependency.resolve(given.format(here=runs.parent), runs) == resolved


def test_a_point_of_a_sweep_waits_for_a_run_beside_its_sweep(runs: Path) -> None:
    assert dependency.resolve("waits", runs / "lr=1") == "afterok:5"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("missing", "there is no run 'missing'. Give the name or folder of a run, or"),
        ("afterok:", "there is no run ''"),
        ("afterany:x:waits", "there is no run 'x'"),
        ("failed", r"failed: job 7 ended as FAILED with exit code 9. Run it again first, or .*: afterany:failed\."),
        ("nothing", "nothing has no Slurm job to wait for, and has not finished"),
        ("afternotok:waits", "afternotok needs job ids. Names of runs go with afterok, afterany, after."),
        ("missing,failed", "(?s)no run 'missing'.*failed: job 7"),
    ],
)
def test_what_cannot_be_waited_for(runs: Path, given: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        dependency.resolve(given, runs)


@pytest.mark.parametrize(
    ("keys", "after", "lines"),
    [
        ({"dependency": "waits"}, (), ["--dependency=afterok:5", "--kill-on-invalid-dep=yes"]),
        ({"dependency": "afterany:other"}, ("3",), ["--dependency=afterok:3,afterany:6"]),
        ({"dependency": "done"}, (), []),
    ],
)
def test_the_job_script(
    make_job: Any, srun_on_path: None, runs: Path, keys: dict[str, str], after: tuple[str, ...], lines: list[str]
) -> None:
    job = make_job(kind="slurm", after=after, **keys)
    found = Batch([job], "x", job.run_dir / "slurm").script_text().splitlines()
    assert [line for line in found if line.startswith("#SBATCH --dependency")] == [f"#SBATCH {x}" for x in lines[:1]]
    assert all(f"#SBATCH {line}" in found for line in lines)
