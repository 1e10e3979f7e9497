"""Submitting through submitit: one job, or one array of jobs that ask for the same resources."""

import contextlib
import datetime
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import container, job_records, script, slurm, snapshot
from launch.job import Job
from launch.lock import hold_run_lock
from launch.task import RankTask
from nano3.utils.errors import UserError


@dataclass(frozen=True)
class Submitted:
    """A job that Slurm has taken."""

    id: str
    run_dir: Path
    # RUN_DIR/slurm, or that of the sweep.
    folder: Path
    poll_s: float = 2.0

    def log(self, rank: int = 0) -> Path:
        """Stdout and stderr of one rank; rank 0's has what Slurm and the job script say as well."""
        return self.folder / f"{self.id}_{rank}_log.out"


class Batch:
    """Jobs with equal resources, to be submitted together: one sbatch. Making one writes nothing."""

    def __init__(self, jobs: Sequence[Job], name: str, folder: Path, tasks: Sequence[RankTask] | None = None) -> None:
        from submitit import SlurmExecutor

        self.jobs = list(jobs)
        self.folder = folder.absolute()
        first = self.jobs[0]
        self.tasks = list(tasks or [rank_task(job, self.folder) for job in self.jobs])
        self.snapshot = snapshot.plan(
            self.folder, {job.entry for job in self.jobs} | {task.entry for task in self.tasks}
        )
        binds = container.mounts(first, [self.folder, *(place for job in self.jobs for place in container.places(job))])
        python = script.python_command(first, self.snapshot.boot, binds, sys.executable)
        self.executor = SlurmExecutor(self.folder, python=python)
        self.executor.update_parameters(**script.parameters(first, name, self.folder, binds))
        self._keep = kept_variables(first)

    def text(self) -> str:
        """The job script, byte for byte as `submit` hands it to sbatch."""
        if len(self.tasks) > 1:
            self.executor.parameters["map_count"] = len(self.tasks)
        try:
            return self.executor._make_submission_file_text(self.executor._submitit_command_str, "")
        finally:
            self.executor.parameters.pop("map_count", None)

    def test(self) -> tuple[bool, str]:
        """What Slurm says about it without taking it."""
        with slurm.submit_environment(self._keep):
            return slurm.test_only(self.text())

    def submit(self) -> list[str]:
        """Hand it to Slurm; ids in the order of the tasks. Raises UserError with Slurm's words when it refuses."""
        from submitit.core.utils import FailedJobError

        self.folder.mkdir(parents=True, exist_ok=True)
        self.snapshot.write()
        try:
            with slurm.submit_environment(self._keep), contextlib.redirect_stderr(io.StringIO()):
                return [job.job_id for job in self.executor.submit_array(self.tasks)]
        except FailedJobError as error:
            for pickle in self.folder.glob("*.pkl"):
                if "_submitted" not in pickle.name:
                    pickle.unlink()
            raise UserError(f"Slurm refused the job: {str(error).strip().removeprefix('sbatch: error: ')}") from None
        finally:
            for link in self.folder.glob(".submission_file_*"):
                link.unlink()

    def script_file(self, job_id: str) -> Path:
        """Where submitit keeps the script of a job; an array has one."""
        return self.folder / f"{job_id.partition('_')[0]}_submission.sh"


def rank_task(job: Job, folder: Path, **more: Any) -> RankTask:
    """What the ranks of `job` get to know."""
    return RankTask(
        entry=job.entry,
        args=job.args,
        folder=str(folder),
        progress_file=str(job.run_dir.absolute() / job.progress_marker),
        signal_delay_s=job.cluster.signal_delay_s,
        max_crashes=job.cluster.max_crashes,
        **more,
    )


def kept_variables(job: Job) -> list[str]:
    """A user's own sbatch defaults hold where the profile says nothing; they would otherwise win over the job
    script.
    """
    defaults = {
        "SBATCH_ACCOUNT": job.cluster.account,
        "SBATCH_PARTITION": job.cluster.partition,
        "SBATCH_QOS": job.cluster.qos,
    }
    return [key for key, value in defaults.items() if value is None and key in os.environ]


def submit_batch(batch: Batch) -> list[Submitted]:
    """Freeze every run and submit, unless one of them is in use; note it in every run folder."""
    with contextlib.ExitStack() as locks:
        for job in batch.jobs:
            locks.enter_context(hold_run_lock(job.run_dir))
        job_records.check_not_active(job.run_dir for job in batch.jobs)
        for job in batch.jobs:
            job.prepare()
        ids = batch.submit()
        return [record(batch, job, job_id) for job, job_id in zip(batch.jobs, ids, strict=True)]


def record(batch: Batch, job: Job, job_id: str, parts: tuple[str, ...] = ()) -> Submitted:
    """Write a submission into its run's jobs.json."""
    one = Submitted(job_id, job.run_dir, batch.folder, job.cluster.poll_s)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    job_records.add_record(
        job.run_dir, job_records.JobRecord(job_id, job.name, now, str(one.log()), str(batch.script_file(job_id)), parts)
    )
    return one
