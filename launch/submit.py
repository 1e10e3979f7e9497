"""Submit one job, or one array of jobs with equal resources; submitit makes the job script."""

import contextlib
import hashlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launch import container, job_records, local_job, script, slurm, snapshot, submissions
from launch.job import Job
from launch.lock import hold_run_lock
from launch.task import RankTask
from nano3.utils.console import warn
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, UserError
from nano3.utils.files import write_json

# Threads that write the records of a sweep.
_WRITERS = 8


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
        return submissions.log_path(self.folder, self.id, rank)


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
        binds: list[str] = []
        if first.cluster.container_runtime != "none":
            folders = [path for job in self.jobs for path in container.mounted_folders(job)]
            binds = container.bind_mounts(first, [self.folder, *folders])
        self._tasks = [asdict(task) for task in self.tasks]
        # Named after its content, so that a dry run shows the script that is submitted.
        digest = hashlib.sha256(json.dumps(self._tasks).encode()).hexdigest()[:12]
        self.tasks_file = self.folder / f"tasks-{digest}.json"
        python = script.python_command(first, self.snapshot.boot, binds, sys.executable)
        self._command = f"{python} -u -m launch.task {shlex.quote(str(self.tasks_file))}"
        self.executor = SlurmExecutor(self.folder, python=python)
        self.executor.update_parameters(**script.executor_parameters(first, name, self.folder, binds))
        self._kept_variables = user_sbatch_variables(first)

    def script_text(self) -> str:
        """Return the job script, byte for byte as `submit` passes it to sbatch."""
        if len(self.tasks) > 1:
            self.executor.parameters["map_count"] = len(self.tasks)
        try:
            return self.executor._make_submission_file_text(self._command, "")
        finally:
            self.executor.parameters.pop("map_count", None)

    def test(self) -> tuple[bool, str]:
        """Return whether Slurm would accept the batch, and its answer."""
        with slurm.submit_environment(self._kept_variables):
            return slurm.test_only(self.script_text(), self.jobs[0].cluster.partition)

    @contextlib.contextmanager
    def submit(self, whole: bool = True) -> Iterator[list[str]]:
        """Submit the batch and yield the ids of its jobs, or of an array with one job; the caller records them.

        Args:
            whole: False if the batch is useless without others that are submitted in the block.

        Raises:
            UserError: Slurm rejected it; the message is Slurm's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.snapshot.write()
        if new := not self.tasks_file.exists():
            write_json(self.tasks_file, self._tasks)
        runs = tuple(submissions.PendingRun(str(job.run_dir.absolute()), job.name) for job in self.jobs)
        submission = submissions.Submission(submissions.now(), runs, array=len(self.jobs) > 1, whole=whole)
        try:
            with submissions.submit(self.folder, self.script_text(), submission, self._kept_variables) as base:
                yield submission.job_ids(base)
        except UserError:
            if new:
                self.tasks_file.unlink()
            raise

    def script_file(self, job_id: str) -> Path:
        """Return the path of the job script that is kept; the tasks of an array share one."""
        return submissions.script_path(self.folder, job_id)


def rank_task(job: Job, folder: Path) -> RankTask:
    """Return what each task of `job` runs; `folder` is the slurm folder."""
    return RankTask(
        entry=job.entry,
        args=job.args,
        folder=str(folder),
        progress_file=str(job.run_dir.absolute() / job.progress_marker),
        signal_delay_s=job.cluster.signal_delay_s,
        max_crashes=job.cluster.max_crashes,
        restart_after_crash=job.restart_after_crash,
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
        submissions.check_not_active(job.run_dir for job in batch.jobs)
        _at_once(Job.prepare, batch.jobs)
        submitted: list[SubmittedJob] = []
        try:
            with signals_blocked(), batch.submit() as ids:
                submitted += _at_once(lambda pair: record_submission(batch, *pair), zip(batch.jobs, ids, strict=True))
        except UserError:
            for job in batch.jobs:
                local_job.record_refused(job.run_dir)
            raise
        except KeyboardInterrupt:
            if not submitted:
                raise
            warn(f"{', '.join(job.id for job in submitted)} was submitted before this interrupt and keeps running")
            sys.exit(INTERRUPTED_EXIT_CODE)  # "stopped" would be wrong
        return submitted


def _at_once[T, R](write: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Write the records of several jobs in threads, because a file system syncs several files in the time of one.

    Args:
        write: Writes those of one job.
        items: Its arguments.

    Returns:
        What `write` returned, in the order of the items.
    """
    first, *others = items
    done = [write(first)]  # alone: it also fills caches, such as that of the Git commit
    if others:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=_WRITERS) as pool:
            done += pool.map(write, others)
    return done


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
    log, script_file = str(submitted.log()), str(batch.script_file(job_id))
    record = job_records.JobRecord(job_id, job.name, submissions.now(), log, script_file, parts)
    job_records.add_record(job.run_dir, record)
    return submitted
