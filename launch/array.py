"""`launch.run_array`: run one entry over the tasks of a job array, then a finalizer that needs all of them.

    launch.run_array("prep", folder, entry="my.module:task", args=(plan,), tasks=64, finalize="my.module:finalize",
                     cluster=config.cluster, then=None, dry_run=False)

Task i calls `task(*args, i, 64)`; the finalizer calls `finalize(*args)` when all tasks have returned 0. A failed task
is requeued alone, up to cluster.max_crashes times. The finalizer repeats a few lost tasks (canceled, or on a failed
node). If tasks are still missing, it exits with 1 and names them. The same command then runs all tasks again, so the
entry should skip work that is already done.
"""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launch import check, job_records, slurm, submissions
from launch.api import finished_message, show_batch
from launch.follow import Watch, follow, follow_attached, follow_hint, say
from launch.job import Job
from launch.job_end import JobMarkers
from launch.lock import hold_run_lock
from launch.rank import call_entry
from launch.submit import Batch, SubmittedJob, rank_task, record_submission, signals_blocked, submit_batch
from nano3.config.cluster import ClusterConfig
from nano3.utils.console import write
from nano3.utils.errors import Failure, UserError

# The finalizer repeats at most this many lost tasks, one after another: more were not lost by accident.
_MAX_REPEATED = 4


@dataclass(frozen=True)
class Array:
    """The arguments of `run_array`, and the jobs made of them."""

    name: str
    folder: Path
    entry: str
    args: tuple[str, ...]
    tasks: int
    finalize: str
    cluster: ClusterConfig
    container: str | None = None
    folders: tuple[str, ...] = ()
    preview: str = ""

    @property
    def slurm_folder(self) -> Path:
        """Folder of job files and logs."""
        return self.folder.absolute() / "slurm"

    def run(self, then: Job | None = None, dry_run: bool = False) -> int:
        """Do what `run_array` does.

        Args:
            then: Job to run after the finalizer.
            dry_run: Show what would run and do nothing.

        Raises:
            UserError: With all problems that are known before submission.
        """
        if problems := self.problems(then):
            raise UserError(problems)
        cluster = self.cluster
        if cluster.kind == "slurm" and cluster.container_runtime not in ("none", "auto") and self.container is None:
            say(f"{self.name} runs without a container: its key container is not set")
        if then and then.finished and not dry_run:
            say(finished_message(then))
            then = None
        if cluster.kind == "local":
            return _run_local(self, then, dry_run)
        if dry_run:
            return _show(self, then)
        submitted = _submit(self, then)
        ids = [job_id for job in submitted for job_id in job_records.read_records(job.run_dir)[-1].ids]
        message = f"submitted array {ids[0]} of {self.tasks} tasks, finalizer {ids[1]}"
        message += f", then job {ids[2]}" if then else ""
        if cluster.mode == "detached":
            say(message)
            say(follow_hint(self.folder))
            return 0
        return follow_attached(message, lambda: _watch(self, ids[0], submitted), ids, follow_hint(self.folder))

    def task_batch(self) -> Batch:
        """Return the array job: one process on one node for each task, without GPUs."""
        cluster = replace(self.cluster, nodes=1, ntasks_per_node=1, gpus_per_node=0)
        job = self.job(self.name, self.entry, self.args, cluster)
        # Tasks have no progress file, so a task must not count as crashing however often Slurm itself requeues it.
        task = replace(
            rank_task(job, self.slurm_folder), max_crashes=cluster.max_requeues + 1, retries=cluster.max_crashes
        )
        tasks = [replace(task, array_task=(index, self.tasks)) for index in range(self.tasks)]
        return Batch([job], self.name, self.slurm_folder, tasks)

    def finalizer_batch(self, array_id: str) -> Batch:
        """Return the finalizer job, which starts when every task of the array has ended in any way."""
        dependency = [f"--dependency=afterany:{array_id}", "--kill-on-invalid-dep=yes"]
        cluster = replace(
            self.cluster,
            nodes=1,
            ntasks_per_node=1,
            gpus_per_node=0,
            dependency=None,  # the array has it
            sbatch_args=[*self.cluster.sbatch_args, *dependency],
        )
        args = (str(self.slurm_folder), array_id, str(self.tasks), self.entry, self.finalize, *self.args)
        job = self.job(f"{self.name}-final", "launch.array:finalize_main", args, cluster)
        return Batch([job], job.name, self.slurm_folder)

    def problems(self, then: Job | None = None) -> list[str]:
        """Return all problems that are known before submission.

        Args:
            then: Job to run after the finalizer.

        Raises:
            Failure: Slurm does not answer.
        """
        jobs = [self.job(self.name, self.entry, self.args, self.cluster), *([then] if then else [])]
        found = check.find_problems(jobs)
        if not found and self.cluster.kind == "slurm" and self.tasks > (most := slurm.max_array_size()):
            found.append(f"cluster.tasks={self.tasks} is more than this Slurm's MaxArraySize allows: {most} at most.")
        return found

    def job(self, name: str, entry: str, args: tuple[str, ...], cluster: ClusterConfig) -> Job:
        """Return one of the jobs; without an image it runs without a container, even if the profile has a runtime."""
        if self.container is None and cluster.container_runtime != "none":
            # The profile's Python and mounts are for the container.
            cluster = replace(cluster, container_runtime="none", python=None, mounts=[])
        return Job(
            name, self.folder, entry, args, cluster, self.container, "container", self.folders, preview=self.preview
        )


def run_array(
    name: str,
    folder: Path,
    *,
    entry: str,
    args: tuple[str, ...],
    tasks: int,
    finalize: str,
    cluster: ClusterConfig,
    then: Job | None = None,
    dry_run: bool = False,
    container: str | None = None,
    folders: tuple[str, ...] = (),
    preview: str = "",
) -> int:
    """Run all tasks, then the finalizer, then the job `then`, where `cluster` says.

    With cluster.kind=local everything runs in this process, one after another. On Slurm, attached mode follows the jobs
    to the end of the last one, and detached mode prints their ids.

    Args:
        name: Job name.
        folder: Folder for the files of the jobs.
        entry: "package.module:function" of a task, called as function(*args, index, tasks).
        args: Arguments of the entry and of the finalizer.
        tasks: Number of tasks.
        finalize: "package.module:function" of the finalizer, called as function(*args).
        cluster: Where to run.
        then: Job to run after the finalizer.
        dry_run: Show what would run and do nothing.
        container: Container image; None runs without a container.
        folders: Folders to mount into the container.
        preview: Shown by a dry run.

    Returns:
        The exit code of the first of these jobs that failed, or 0.

    Raises:
        UserError: With all problems that are known before submission.
    """
    array = Array(name, folder, entry, args, tasks, finalize, cluster, container, folders, preview)
    return array.run(then, dry_run)


def _run_local(array: Array, then: Job | None, dry_run: bool) -> int:
    from launch import api

    if dry_run:
        write(f"{array.preview}\n")
        return api.run([then], dry_run=True) if then else 0
    for index in range(array.tasks):
        if code := call_entry(array.entry, (*array.args, index, array.tasks)):
            return code
    code = call_entry(array.finalize, array.args)
    return api.run([then]) if then and code == 0 else code


def _show(array: Array, then: Job | None) -> int:
    code = show_batch(array.task_batch())
    write(f"# ---- job script of the finalizer\n{array.finalizer_batch('ARRAY_JOB_ID').script_text()}")
    if then:
        batch = Batch([replace(then, after=("FINALIZER_JOB_ID",))], then.name, then.run_dir / "slurm")
        write(f"# ---- job script of the next job\n{batch.script_text()}{then.preview}\n")
    return code


def _submit(array: Array, then: Job | None) -> list[SubmittedJob]:
    """Submit the array, the finalizer and the next job, or none of them."""
    submitted: list[str] = []
    with hold_run_lock(array.folder), _cancel_on_error(submitted), signals_blocked():
        submissions.check_not_active([array.folder, *([then.run_dir] if then else [])])
        with array.task_batch().submit(whole=False) as (array_id,):
            submitted.append(array_id)
            batch = array.finalizer_batch(array_id)
            with batch.submit() as (finalizer_id,):
                submitted.append(finalizer_id)
                finalizer = record_submission(batch, batch.jobs[0], finalizer_id, parts=(array_id,))
        if then is None:
            return [finalizer]
        next_batch = Batch([replace(then, after=(*then.after, finalizer.id))], then.name, then.run_dir / "slurm")
        return [finalizer, *submit_batch(next_batch)]


@contextlib.contextmanager
def _cancel_on_error(ids: list[str]) -> Iterator[None]:
    """Cancel the jobs in `ids` if the block raises."""
    try:
        yield
    except BaseException:
        if ids:
            slurm.cancel(ids)
            say(f"canceled {', '.join(ids)}, which were submitted before this")
        raise


def _watch(array: Array, array_id: str, submitted: list[SubmittedJob]) -> int:
    """Report how many tasks are in which state, then follow the finalizer and the next job."""
    watch = Watch(_task_ids(array_id, array.tasks), array.cluster.poll_s)
    shown = ""
    while not watch.ended:
        if watch.poll():
            counts = Counter(state.state for state in watch.states.values())
            now = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
            if now != shown:
                say(f"array {array_id}: {now}")
                shown = now
        time.sleep(min(0.25, array.cluster.poll_s))
    for job in submitted:
        if code := follow(job):
            return code
    return 0


def _task_ids(array_id: str, tasks: int) -> list[str]:
    """Return the job ids of the tasks; submitit submits a single task as a plain job."""
    return [f"{array_id}_{index}" for index in range(tasks)] if tasks > 1 else [array_id]


def finalize_main(folder: str, array_id: str, count: str, entry: str, finalize: str, *args: str) -> int:
    """Repeat lost tasks, then call the finalizer; this is the entry of the finalizer job.

    Args:
        folder: The slurm folder of the array.
        array_id: Id of the array.
        count: Number of tasks.
        entry: Entry of a task.
        finalize: Entry of the finalizer.
        *args: Arguments of both.

    Raises:
        Failure: Tasks are still missing; the error names them.
    """
    markers = [JobMarkers(Path(folder), job_id) for job_id in _task_ids(array_id, int(count))]

    def missing_tasks() -> list[int]:
        return [index for index, marker in enumerate(markers) if not marker.done]

    lost = missing_tasks()
    for index in lost if len(lost) <= _MAX_REPEATED else ():
        write(f"launch: task {index} did not finish; repeating it here\n")
        words = ["--array-task", str(index), count, entry, *args]
        if subprocess.run([sys.executable, "-u", "-m", "launch.rank", *words], check=False).returncode == 0:
            markers[index].mark_done()
    if lost := missing_tasks():
        logs = ", ".join(f"{folder}/{markers[index].job_id}_0_log.out" for index in lost[:_MAX_REPEATED])
        raise Failure(
            f"{len(lost)} of {count} tasks did not finish: {_format_ranges(lost)}. See {logs}. "
            "Run the same command again to do the missing tasks."
        )
    return call_entry(finalize, args)


def _format_ranges(numbers: list[int]) -> str:
    """Return [1, 2, 3, 7] as "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
