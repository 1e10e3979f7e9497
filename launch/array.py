"""`launch.run_array`: the same entry over the tasks of a job array, then a finalizer that needs them all.

    launch.run_array("prep", folder, entry="my.module:part", args=(plan,), tasks=64, finalize="my.module:finalize",
                     cluster=config.cluster, then=None, dry_run=False)

Task i calls `part(*args, i, 64)`; the finalizer calls `finalize(*args)` when all have returned 0. A task that fails is
started again alone, cluster.max_crashes times; one that was lost without a word (cancelled, its node gone) is repeated
by the finalizer. With tasks still missing the finalizer ends with 1 and names them; the same command then does the
rest, so the entry should find what is done already.
"""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launch import check, job_records, slurm
from launch.api import how_to_follow, nothing_left, show
from launch.follow import Watch, attached, follow, say
from launch.job import Job
from launch.lock import hold_run_lock
from launch.rank import call
from launch.submit import Batch, Submitted, rank_task, record, submit_batch
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import Failure, UserError

# More lost tasks than this were not lost by accident: the finalizer reports instead of repeating them one after
# another.
_REPEATED = 4


@dataclass(frozen=True)
class Array:
    """What `run_array` was asked for."""

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
        """Job files and logs."""
        return self.folder.absolute() / "slurm"

    def run(self, then: Job | None = None, dry_run: bool = False) -> int:
        """`run_array` for an array at hand."""
        if problems := self.problems(then):
            raise UserError(problems)
        cluster = self.cluster
        if cluster.kind == "slurm" and cluster.container_runtime != "none" and self.container is None:
            say(f"{self.name} runs without a container: its key container is not set")
        if then and then.finished and not dry_run:
            say(nothing_left(then))
            then = None
        if cluster.kind == "local":
            return _run_here(self, then, dry_run)
        if dry_run:
            return _show(self, then)
        submitted = _submit(self, then)
        ids = [job_id for one in submitted for job_id in job_records.read_records(one.run_dir)[-1].ids]
        told = f"submitted array {ids[0]} of {self.tasks} tasks, finalizer {ids[1]}"
        told += f", then job {ids[2]}" if then else ""
        if cluster.mode == "detached":
            say(told)
            say(how_to_follow(self.folder))
            return 0
        return attached(told, lambda: _watch(self, ids[0], submitted), ids, how_to_follow(self.folder))

    def parts(self) -> Batch:
        """The array: one process on one node for each task, without GPUs."""
        cluster = replace(self.cluster, nodes=1, ntasks_per_node=1, gpus_per_node=0)
        job = self.job(self.name, self.entry, self.args, cluster)
        task = rank_task(job, self.slurm_folder)
        # Tasks have no progress file: however often Slurm itself requeues one, it is not given up for that.
        task = replace(task, max_crashes=cluster.max_requeues + 1, retries=cluster.max_crashes)
        tasks = [replace(task, part=(index, self.tasks)) for index in range(self.tasks)]
        return Batch([job], self.name, self.slurm_folder, tasks)

    def finalizer(self, array_id: str) -> Batch:
        """The job that starts when every task has ended, whichever way."""
        dependency = [f"--dependency=afterany:{array_id}", "--kill-on-invalid-dep=yes"]
        cluster = replace(
            self.cluster,
            nodes=1,
            ntasks_per_node=1,
            gpus_per_node=0,
            sbatch_args=[*self.cluster.sbatch_args, *dependency],
        )
        args = (str(self.slurm_folder), array_id, str(self.tasks), self.entry, self.finalize, *self.args)
        job = self.job(f"{self.name}-final", "launch.array:finalize_main", args, cluster)
        return Batch([job], job.name, self.slurm_folder)

    def problems(self, then: Job | None = None) -> list[str]:
        """Everything that can be seen to be wrong before submission. Raises `Failure` when Slurm does not answer."""
        found = check.problems([self.job(self.name, self.entry, self.args, self.cluster), *([then] if then else [])])
        if not found and self.cluster.kind == "slurm" and self.tasks > (most := slurm.max_array_size()):
            found.append(f"cluster.tasks={self.tasks} is more than this Slurm's MaxArraySize allows: {most} at most.")
        return found

    def job(self, name: str, entry: str, args: tuple[str, ...], cluster: ClusterConfig) -> Job:
        """One of its jobs. Without an image they run without a container, whatever the profile's runtime is."""
        if self.container is None and cluster.container_runtime != "none":
            # The profile's Python and mounts are those of the container.
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
    """Run all tasks, then the finalizer, then the job `then`, where `cluster` says; the exit code of what ended it.

    Here (cluster.kind=local) everything runs in this process, one after another. On Slurm attached follows to the end
    of the last job, detached prints the ids. `folders` are mounted into the container, if there is one. Raises
    UserError with all problems that can be seen before submission.
    """
    array = Array(name, folder, entry, args, tasks, finalize, cluster, container, folders, preview)
    return array.run(then, dry_run)


def _run_here(array: Array, then: Job | None, dry_run: bool) -> int:
    from launch import api

    if dry_run:
        print(array.preview)
        return api.run([then], dry_run=True) if then else 0
    for index in range(array.tasks):
        if code := call(array.entry, (*array.args, index, array.tasks)):
            return code
    code = call(array.finalize, array.args)
    return api.run([then]) if then and code == 0 else code


def _show(array: Array, then: Job | None) -> int:
    code = show(array.parts())
    print("# ---- job script of the finalizer")
    print(array.finalizer("ARRAY_JOB_ID").text(), end="")
    if then:
        print("# ---- job script of the next job")
        print(Batch([replace(then, after=("FINALIZER_JOB_ID",))], then.name, then.run_dir / "slurm").text(), end="")
        print(then.preview)
    return code


def _submit(array: Array, then: Job | None) -> list[Submitted]:
    """All or nothing."""
    taken: list[str] = []
    with hold_run_lock(array.folder), _cancelling(taken):
        job_records.check_not_active([array.folder, *([then.run_dir] if then else [])])
        parts = array.parts()
        taken += parts.submit()[:1]
        array_id = taken[0].partition("_")[0]
        final = array.finalizer(array_id)
        taken += final.submit()
        one = record(final, final.jobs[0], taken[1], parts=(array_id,))
        if then is None:
            return [one]
        batch = Batch([replace(then, after=(*then.after, one.id))], then.name, then.run_dir / "slurm")
        return [one, *submit_batch(batch)]


@contextlib.contextmanager
def _cancelling(ids: list[str]) -> Iterator[None]:
    """Cancel what has been submitted when the rest could not be."""
    try:
        yield
    except BaseException:
        if ids:
            slurm.cancel(job.partition("_")[0] for job in ids)
        raise


def _watch(array: Array, array_id: str, submitted: list[Submitted]) -> int:
    """Tell how many tasks are in which state, then follow the finalizer and the next job."""
    ids = [f"{array_id}_{index}" for index in range(array.tasks)] if array.tasks > 1 else [array_id]
    watch = Watch(ids, array.cluster.poll_s)
    told = ""
    while not watch.ended:
        if watch.look():
            counts = Counter(state.state for state in watch.states.values())
            now = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
            if now != told:
                say(f"array {array_id}: {now}")
                told = now
        time.sleep(min(0.25, array.cluster.poll_s))
    for one in submitted:
        if code := follow(one):
            return code
    return 0


def finalize_main(folder: str, array_id: str, count: str, entry: str, finalize: str, *args: str) -> int:
    """The finalizer's entry. Raises Failure with the tasks that are missing."""
    tasks = int(count)

    def missing() -> dict[int, Path]:
        ids = {index: f"{array_id}_{index}" if tasks > 1 else array_id for index in range(tasks)}
        return {index: Path(folder) / job for index, job in ids.items() if not Path(folder, f"{job}.done").exists()}

    lost = missing()
    for index, place in lost.items() if len(lost) <= _REPEATED else ():
        print(f"launch: task {index} did not finish; repeating it here", flush=True)
        words = ["--part", str(index), count, entry, *args]
        if subprocess.run([sys.executable, "-u", "-m", "launch.rank", *words], check=False).returncode == 0:
            place.with_name(place.name + ".done").touch()
    if lost := missing():
        logs = ", ".join(f"{place}_0_log.out" for place in list(lost.values())[:_REPEATED])
        raise Failure(
            f"{len(lost)} of {tasks} tasks did not finish: {_ranges(list(lost))}. See {logs}. "
            "The same command started again does what is missing."
        )
    return call(finalize, args)


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] as "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
