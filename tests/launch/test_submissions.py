"""launch.submissions: sbatch is called between two records, and a job of a killed command is found again."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_helpers import eventually

from launch import job_records, submissions
from launch.submissions import PendingRun, Submission, check_not_active, recover
from nano3.utils.errors import UserError

SCRIPT = """
import sys
from pathlib import Path
from launch import submissions
from launch.submissions import PendingRun, Submission

folder = Path(sys.argv[1])
runs = tuple(PendingRun(str(folder.parent / name), name) for name in sys.argv[2].split(","))
submission = Submission(submissions.now(), runs, array=len(runs) > 1, whole=sys.argv[3] == "whole")
with submissions.submit(folder, "#!/bin/sh", submission) as base:
    print(base)
"""


@pytest.fixture
def slurm_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder first on PATH whose sbatch answers job 41 after `answer` exists, and whose squeue knows it then."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "sbatch": f'touch {folder}/called\nwhile [ ! -e {folder}/answer ]; do sleep 0.05; done\n'
        f'echo "41 $1" >{folder}/jobs\necho Submitted batch job 41\n',
        "squeue": f"cat {folder}/jobs 2>/dev/null; exit 0\n",
        "sacct": "exit 1\n",
        "scancel": f'echo "$@" >{folder}/canceled\n',
        "scontrol": 'echo "JobId=41 JobState=RUNNING ExitCode=0:0"\n'
        'echo "JobId=41 ArrayJobId=41 ArrayTaskId=0-1 JobState=RUNNING ExitCode=0:0"\n',
    }  # fmt: skip
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    (folder / "answer").touch()  # ends an sbatch that is left


def start(folder: Path, runs: str, whole: str = "whole") -> "subprocess.Popen[str]":
    for run in runs.split(","):
        (folder.parent / run).mkdir(exist_ok=True)
    words = [sys.executable, "-c", SCRIPT, str(folder), runs, whole]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ids(run_dir: Path) -> list[str]:
    return [record.id for record in job_records.read_records(run_dir)]


def test_nothing_is_left_after_a_submission(tmp_path: Path, slurm_clients: Path) -> None:
    (slurm_clients / "answer").touch()
    process = start(tmp_path / "slurm", "a")
    assert process.communicate()[0] == "41\n"
    assert [path.name for path in (tmp_path / "slurm").iterdir()] == ["41_submission.sh"]


def test_nothing_is_left_after_a_refusal(tmp_path: Path, slurm_clients: Path) -> None:
    (slurm_clients / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: not today' >&2\nexit 1\n")
    submission = Submission(submissions.now(), (PendingRun(str(tmp_path), "a"),), array=False)
    with (
        pytest.raises(UserError, match=r"^Slurm rejected the job: not today$"),
        submissions.submit(tmp_path / "slurm", "", submission),
    ):
        raise AssertionError
    assert not list((tmp_path / "slurm").iterdir())


@pytest.mark.parametrize(("runs", "found"), [("a", {"a": ["41"]}), ("a,b", {"a": ["41_0"], "b": ["41_1"]})])
def test_the_job_of_a_killed_command_is_recorded_later(
    tmp_path: Path, slurm_clients: Path, capfd: pytest.CaptureFixture[str], runs: str, found: dict[str, list[str]]
) -> None:
    folder = tmp_path / "slurm"
    process = start(folder, runs)
    eventually((slurm_clients / "called").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_dirs = [tmp_path / name for name in found]
    assert recover(run_dirs) == run_dirs, "sbatch still waits for its answer"
    with pytest.raises(UserError, match="another command is submitting a job of this run now"):
        check_not_active(run_dirs)
    (slurm_clients / "answer").touch()
    eventually(lambda: not recover(run_dirs))
    assert {run.name: ids(run) for run in run_dirs} == found
    assert "was submitted by a command that was killed; it is recorded now" in capfd.readouterr().err
    assert not (folder / "submitting").exists()
    with pytest.raises(UserError, match=r"job 41.* of this run is RUNNING"):
        check_not_active(run_dirs)


def test_a_part_that_is_useless_alone_is_canceled(tmp_path: Path, slurm_clients: Path) -> None:
    process = start(tmp_path / "slurm", "a", "part")
    eventually((slurm_clients / "called").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (slurm_clients / "answer").touch()
    eventually(lambda: not recover([tmp_path / "a"]))
    assert (slurm_clients / "canceled").read_text() == "41\n" and ids(tmp_path / "a") == []


def test_a_job_that_could_not_be_recorded_is_recorded_later(tmp_path: Path, slurm_clients: Path) -> None:
    (slurm_clients / "answer").touch()
    (tmp_path / "a").mkdir()
    submission = Submission(submissions.now(), (PendingRun(str(tmp_path / "a"), "a"),), array=False)
    with (
        pytest.raises(OSError, match="No space left"),
        submissions.submit(tmp_path / "slurm", "x", submission),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert recover([tmp_path / "a"]) == []
    assert ids(tmp_path / "a") == ["41"] and not (tmp_path / "slurm/submitting").exists()


@pytest.mark.parametrize("recorded", [False, True], ids=["never submitted", "recorded"])
def test_a_command_that_was_killed_before_or_after(tmp_path: Path, slurm_clients: Path, recorded: bool) -> None:
    """Killed before sbatch was called, or between the record of the job and the end of the submission."""
    (slurm_clients / "answer").touch()
    submission = Submission(submissions.now(), (PendingRun(str(tmp_path / "a"), "a"),), array=False)
    (tmp_path / "a").mkdir()
    kept: dict[Path, bytes] = {}
    with submissions.submit(tmp_path / "slurm", "x", submission):
        kept = {path: path.read_bytes() for path in (tmp_path / "slurm/submitting").iterdir()}
        if recorded:
            job_records.add_record(tmp_path / "a", job_records.JobRecord("41", "a", submissions.now(), "log", "script"))
        else:
            (slurm_clients / "jobs").unlink()
    (tmp_path / "slurm/submitting").mkdir()
    for path, text in kept.items():
        path.write_bytes(text)
    assert recover([tmp_path / "a"]) == []
    assert ids(tmp_path / "a") == ["41"] * recorded
    assert not (tmp_path / "slurm/submitting").exists()


def test_a_job_that_has_ended_is_found_in_the_accounting(tmp_path: Path, slurm_clients: Path) -> None:
    (slurm_clients / "sacct").write_text('#!/bin/sh\necho "7|sbatch x.sh"\necho "41_[0-3]|sbatch /runs/a/TOKEN.sh"\n')
    from launch import slurm

    assert slurm.find_job("TOKEN.sh", submissions.now()) == "41"
    assert slurm.find_job("OTHER.sh", submissions.now()) == ""


def test_a_damaged_record_is_named(tmp_path: Path, slurm_clients: Path) -> None:
    (tmp_path / "slurm/submitting").mkdir(parents=True)
    for name, text in (("1.json", '{"time": 1}'), ("1.lock", "")):
        (tmp_path / "slurm/submitting" / name).write_text(text)
    with pytest.raises(UserError, match=r"1\.json: damaged .*Check with squeue whether"):
        recover([tmp_path / "a"])
    json.loads((tmp_path / "slurm/submitting/1.json").read_text())


def test_runs_without_a_submission_cost_no_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert recover([tmp_path / name for name in "abc"]) == []


def test_the_arguments_of_a_submission(tmp_path: Path, slurm_clients: Path) -> None:
    """sbatch gets the script's path only, in a session of its own."""
    (slurm_clients / "sbatch").write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/words\nps -o sid= -p $$ >{tmp_path}/session\necho Submitted batch job 41\n'
    )
    submission = Submission(submissions.now(), (PendingRun(str(tmp_path / "a"), "a"),), array=False)
    with submissions.submit(tmp_path / "slurm", "x", submission) as base:
        assert base == "41"
    assert Path((tmp_path / "words").read_text().strip()).parent == tmp_path / "slurm/submitting"
    assert int((tmp_path / "session").read_text()) != os.getsid(0)
