"""Submit through submitit: one job, or one array of jobs with equal resources."""

import contextlib
import datetime
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import container, job_records, local_job, script, slurm, snapshot
from launch.job import Job
from launch.lock import hold_run_lock
from launch.task import RankTask
from nano3.utils.console import warn
from nano3.utils.errors import UserError


@dataclass(frozen=True)
class SubmittedJob:
    """A job that Slurm has accepted."""

    id: str
    run_dir: Path
    # RUN_DIR/slurm, or SWEEP_DIR/slurm.
    folder: Path
    poll_s: float = 2.0

    def log(self, rank: int = 0) -> Path:
        """Return the log of one rank; that of rank 0 also has the output of Slurm and of the job script."""
        return self.folder / f"{self.id}_{rank}_log.out"


class Batch:
    """Jobs with equal resources that are submitted together with one sbatch. Creating a batch writes nothing.

    Args:
        jobs: The jobs; the job script is made from the first.
        name: Job name.
        folder: The slurm folder, for job files and logs.
        tasks: What each task of the array runs; by default the ranks of each job.
    """

    def __init__(self, jobs: Sequence[Job], name: str, folder: Path, tasks: Sequence[RankTask] | None = None) -> None:
        from submitit import SlurmExecutor

        self.jobs = list(jobs)
        self.folder = folder.absolute()
        first = self.jobs[0]
        self.tasks = list(tasks or [rank_task(job, self.folder) for job in self.jobs])
        self.snapshot = snapshot.plan_snapshot(
            self.folder, {job.entry for job in self.jobs} | {task.entry for task in self.tasks}
        )
        binds = container.bind_mounts(
            first, [self.folder, *(path for job in self.jobs for path in container.mounted_folders(job))]
        )
        python = script.python_command(first, self.snapshot.boot, binds, sys.executable)
        self.executor = SlurmExecutor(self.folder, python=python)
        self.executor.update_parameters(**script.executor_parameters(first, name, self.folder, binds))
        self._kept_variables = user_sbatch_variables(first)

    def script_text(self) -> str:
        """Return the job script, byte for byte as `submit` passes it to sbatch."""
        if len(self.tasks) > 1:
            self.executor.parameters["map_count"] = len(self.tasks)
        try:
            return self.executor._make_submission_file_text(self.executor._submitit_command_str, "")
        finally:
            self.executor.parameters.pop("map_count", None)

    def test(self) -> tuple[bool, str]:
        """Return whether Slurm would accept the batch, and its answer."""
        with slurm.submit_environment(self._kept_variables):
            return slurm.test_only(self.script_text(), self.jobs[0].cluster.partition)

    def submit(self) -> list[str]:
        """Submit the batch and return the job ids in the order of the tasks.

        Raises:
            UserError: Slurm rejected it; the message is Slurm's.
        """
        from submitit.core.utils import FailedJobError

        self.folder.mkdir(parents=True, exist_ok=True)
        self.snapshot.write()
        try:
            with (
                slurm.submit_environment(self._kept_variables),
                contextlib.redirect_stderr(io.StringIO()),
                _sbatch_in_own_session(),
            ):
                return [job.job_id for job in self.executor.submit_array(self.tasks)]
        except FailedJobError as error:
            for pickle in self.folder.glob("*.pkl"):
                if "_submitted" not in pickle.name:
                    pickle.unlink()
            raise UserError(f"Slurm rejected the job: {str(error).strip().removeprefix('sbatch: error: ')}") from None
        finally:
            for link in self.folder.glob(".submission_file_*"):
                link.unlink()

    def script_file(self, job_id: str) -> Path:
        """Return the path of the job script that submitit keeps; the tasks of an array share one."""
        return self.folder / f"{job_id.partition('_')[0]}_submission.sh"


def rank_task(job: Job, folder: Path) -> RankTask:
    """Return what each task of `job` runs; `folder` is the slurm folder."""
    return RankTask(
        entry=job.entry,
        args=job.args,
        folder=str(folder),
        progress_file=str(job.run_dir.absolute() / job.progress_marker),
        signal_delay_s=job.cluster.signal_delay_s,
        max_crashes=job.cluster.max_crashes,
    )


def user_sbatch_variables(job: Job) -> list[str]:
    """Return the names of the user's SBATCH_* defaults to keep: those whose key the profile leaves unset.

    sbatch prefers these variables to the job script, so others must not reach it.
    """
    defaults = {
        "SBATCH_ACCOUNT": job.cluster.account,
        "SBATCH_PARTITION": job.cluster.partition,
        "SBATCH_QOS": job.cluster.qos,
    }
    return [key for key, value in defaults.items() if value is None and key in os.environ]


def submit_batch(batch: Batch) -> list[SubmittedJob]:
    """Save the configuration of every run, submit the batch, and record the jobs in the run folders.

    Raises:
        UserError: One of the runs is in use, or Slurm rejected the batch.
    """
    with contextlib.ExitStack() as locks:
        for job in batch.jobs:
            locks.enter_context(hold_run_lock(job.run_dir))
        job_records.check_not_active(job.run_dir for job in batch.jobs)
        for job in batch.jobs:
            job.prepare()
        submitted: list[SubmittedJob] = []
        try:
            with signals_blocked():
                ids = batch.submit()
                submitted += [record_submission(batch, job, i) for job, i in zip(batch.jobs, ids, strict=True)]
        except UserError:
            for job in batch.jobs:
                local_job.record_refused(job.run_dir)
            raise
        except KeyboardInterrupt:
            if submitted:
                warn(f"{', '.join(job.id for job in submitted)} was submitted before this interrupt and keeps running")
            raise
        return submitted


@contextlib.contextmanager
def _sbatch_in_own_session() -> Iterator[None]:
    """Keep a Ctrl-C of the terminal from sbatch, which may have submitted the job already."""
    from submitit import SlurmExecutor

    plain = SlurmExecutor._make_submission_command
    if shutil.which("setsid"):
        own = lambda executor, path: ["setsid", *plain(executor, path)]  # noqa: E731
        SlurmExecutor._make_submission_command = own  # type: ignore[method-assign]
    try:
        yield
    finally:
        SlurmExecutor._make_submission_command = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Deliver Ctrl-C and other requests to end only after the block: a job that sbatch has submitted must be recorded.

    sbatch inherits the mask, and runs in a session of its own, so that it ends with Slurm's answer.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def record_submission(batch: Batch, job: Job, job_id: str, parts: tuple[str, ...] = ()) -> SubmittedJob:
    """Record a submission in jobs.json of its run.

    Args:
        batch: The submitted batch.
        job: Its job.
        job_id: The job's id.
        parts: Jobs that belong to it and are canceled with it.
    """
    submitted = SubmittedJob(job_id, job.run_dir, batch.folder, job.cluster.poll_s)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    job_records.add_record(
        job.run_dir,
        job_records.JobRecord(job_id, job.name, now, str(submitted.log()), str(batch.script_file(job_id)), parts),
    )
    return submitted
