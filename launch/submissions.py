"""Call sbatch so that no job is lost if the command that submits it is killed meanwhile.

All files are in RUN_DIR/slurm/submitting (or SWEEP_DIR/slurm/submitting) and exist only during a submission.

TOKEN.json  What is being submitted: the runs, in the order of the tasks. Written before sbatch is called, removed when
            the jobs are recorded in the jobs.json of their runs.
TOKEN.sh    The job script. Slurm keeps its path as the command of the job, so a job can be found by the token.
TOKEN.lock  Locked by the command and, should that be killed, by sbatch until it has Slurm's answer.

`recover` records the jobs of a command that was killed. Every command that starts, shows or cancels a run calls it.
"""

import contextlib
import datetime
import os
import re
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launch import job_records, slurm
from nano3.utils.console import warn
from nano3.utils.errors import UserError
from nano3.utils.locks import lock_fd
from nano3.utils.records import read_record, write_record

_FOLDER = "submitting"


@dataclass(frozen=True)
class PendingRun:
    """A run whose job is being submitted."""

    run_dir: str
    # Name of the job.
    name: str


@dataclass(frozen=True)
class Submission:
    """One call of sbatch, as recorded before it."""

    # Local time with its offset, ISO 8601.
    time: str
    # One for each task; all tasks of an array that is no sweep belong to one run.
    runs: tuple[PendingRun, ...]
    # Whether the job is a job array.
    array: bool
    # False for a job that is useless without others that are submitted after it: it is canceled.
    whole: bool = True

    def job_ids(self, base: str) -> list[str]:
        """Return the id of the job of each run.

        Args:
            base: The id that sbatch returned.
        """
        return [f"{base}_{index}" for index in range(len(self.runs))] if self.array else [base]


def log_path(folder: Path, job_id: str, rank: int = 0) -> Path:
    """Return the log of one rank; that of rank 0 also has the output of Slurm and of the job script.

    Args:
        folder: The slurm folder.
        job_id: The job.
        rank: The rank.
    """
    return folder / f"{job_id}_{rank}_log.out"


def script_path(folder: Path, job_id: str) -> Path:
    """Return the job script of a job; the tasks of an array share one.

    Args:
        folder: The slurm folder.
        job_id: The job.
    """
    return folder / f"{job_id.partition('_')[0]}_submission.sh"


@contextlib.contextmanager
def submit(folder: Path, script: str, submission: Submission, keep: Iterable[str] = ()) -> Iterator[str]:
    """Call sbatch and yield the job's id; the caller records the jobs in the block.

    If the block cannot write a record, `recover` does so later.

    Args:
        folder: The slurm folder.
        script: The job script.
        submission: What to record before the call.
        keep: SBATCH_* variables of the user that sbatch may read.

    Raises:
        UserError: Slurm rejected the job; the message is Slurm's.
    """
    token = secrets.token_hex(8)
    files = [folder / _FOLDER / f"{token}.{suffix}" for suffix in ("json", "sh", "lock")]
    record, script_file, lock_file = files
    lock = _create(lock_file)
    recorded = True
    try:
        lock_fd(lock)
        script_file.write_bytes(script.encode(errors="surrogateescape"))
        write_record(record, submission)
        base = _call_sbatch(script_file, lock, keep)
        script_file.replace(script_path(folder, base))
        try:
            yield base
        except OSError:  # for example a full disk
            recorded = False
            raise
    finally:
        if recorded:
            _remove(files)
        os.close(lock)


def _create(file: Path) -> int:
    """Open a new file; another submission may remove its folder, which is empty, at any time."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)


def _call_sbatch(script: Path, lock: int, keep: Iterable[str]) -> str:
    with slurm.submit_environment(keep):
        # In a session of its own: Ctrl-C of the terminal must not end it when the job may exist already.
        done = subprocess.run(
            ["sbatch", str(script)], capture_output=True, text=True, check=False,
            errors="replace", start_new_session=True, pass_fds=[lock], stdin=subprocess.DEVNULL,
        )  # fmt: skip
    found = re.search(r"job (\d+)", done.stdout)
    if done.returncode or not found:
        answer = (done.stderr.strip() or done.stdout.strip()).removeprefix("sbatch: error: ")
        raise UserError(f"Slurm rejected the job: {answer}")
    return found[1]


def _remove(files: Iterable[Path]) -> None:
    """Remove the files of a submission, the record first, and their folder if no other submission uses it."""
    for file in files:
        file.unlink(missing_ok=True)
        folder = file.parent
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_not_active(run_dirs: Iterable[Path]) -> None:
    """Check that no run has a pending or running job, also after recording jobs of commands that were killed.

    Raises:
        UserError: Some have, or a job of one is being submitted now; the error lists them all.
        Failure: Slurm does not answer.
    """
    run_dirs = list(run_dirs)
    if busy := recover(run_dirs):
        raise UserError(
            f"{run_dir}: another command is submitting a job of this run now. Wait for it, then see `nano3 jobs`."
            for run_dir in busy
        )
    job_records.check_not_active(run_dirs)


def recover(run_dirs: Iterable[Path]) -> list[Path]:
    """Record the jobs of these runs that were submitted by a command that was killed before it could.

    Args:
        run_dirs: Run folders.

    Returns:
        The runs whose jobs are being submitted now.

    Raises:
        Failure: Slurm does not answer.
    """
    wanted = {run_dir.absolute(): run_dir for run_dir in run_dirs}
    folders = dict.fromkeys(folder / "slurm" for run_dir in wanted for folder in (run_dir, run_dir.parent))
    busy: list[Path] = []
    for folder in folders:
        if (folder / _FOLDER).is_dir():
            for record in sorted((folder / _FOLDER).glob("*.json")):
                busy += [wanted[run] for run in _recover_one(folder, record) if run in wanted]
    return busy


def _recover_one(folder: Path, record: Path) -> list[Path]:
    """Finish one submission, unless it is still in progress; return the runs if it is."""
    files = [record, record.with_suffix(".sh"), record.with_suffix(".lock")]
    try:
        lock = os.open(files[2], os.O_RDWR)
    except (PermissionError, FileNotFoundError):  # a run of another user, or just finished
        return []
    try:
        fix = f"Check with squeue whether {files[1]} was submitted, then remove both files."
        submission = read_record(record, Submission, fix)
        lock_fd(lock)
        base = slurm.find_job(files[1].name, since=submission.time)
        if base and not submission.whole:
            slurm.cancel([base])
            warn(f"canceled job {base}: the command that submitted it was killed before it could submit all jobs")
        elif base:
            _record(folder, submission, base)
        _remove(files)
    except FileNotFoundError:  # just finished
        return []
    except BlockingIOError:
        return [Path(run.run_dir) for run in submission.runs]
    finally:
        os.close(lock)
    return []


def _record(folder: Path, submission: Submission, base: str) -> None:
    for run, job_id in zip(submission.runs, submission.job_ids(base), strict=True):
        run_dir = Path(run.run_dir)
        if not any(known.id == job_id for known in job_records.read_records(run_dir)):
            log, script = log_path(folder, job_id), script_path(folder, job_id)
            job_records.add_record(
                run_dir, job_records.JobRecord(job_id, run.name, submission.time, str(log), str(script))
            )
            warn(f"{run_dir}: job {job_id} was submitted by a command that was killed; it is recorded now")


def now() -> str:
    """Return the local time with its offset, ISO 8601."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
