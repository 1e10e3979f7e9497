"""`launch.run`: the one road for single runs and sweeps, here and on Slurm."""

import shlex
from pathlib import Path

from launch import job_records, local
from launch import sweep as sweeping
from launch.check import check
from launch.follow import attached, follow, say
from launch.job import Job
from launch.lock import hold_run_lock
from launch.submit import Batch, submit_batch
from nano3.utils.console import console
from nano3.utils.errors import UserError


def run(jobs: list[Job], *, dry_run: bool = False, sweep: bool = False) -> int:
    """Run the jobs where their `cluster` says, and give the exit code of this command.

    One job runs here (in this process, or under torchrun) or is submitted; attached it is followed to its end and its
    exit code is returned, detached 0. A run that has finished is not submitted again. With `sweep=True` every job is a
    point: see launch.sweep. `dry_run` shows and does nothing. Raises UserError with all problems that can be seen
    before anything is started.
    """
    if not jobs:
        raise UserError("There is nothing to run.")
    if len(jobs) > 1 and not sweep:
        raise UserError(f"{len(jobs)} jobs were asked for, but this is not a sweep. Add --multirun to sweep.")
    check(jobs)
    if sweep:
        return _sweep(jobs, dry_run)
    job = jobs[0]
    if job.cluster.kind == "local":
        return local.show(job) if dry_run else _run_here(job)
    if job.finished:
        say(nothing_left(job))
        if not dry_run:
            return 0
    batch = Batch([job], job.name, job.run_dir / "slurm")
    return show(batch) if dry_run else _submit_one(batch)


def _run_here(job: Job) -> int:
    if job.finished:
        return local.run_here(job)  # shows its result and writes nothing
    with hold_run_lock(job.run_dir) as lock:
        job_records.check_not_active([job.run_dir])
        job.prepare()
        return local.run_here(job) if job.ranks == 1 else local.run_torchrun(job, lock)


def nothing_left(job: Job) -> str:
    """What is said instead of submitting a finished run."""
    return f"{job.run_dir} has finished: nothing to do. Another run of it needs another name (run.name=...)."


def _sweep(jobs: list[Job], dry_run: bool) -> int:
    kinds = {job.cluster.kind for job in jobs}
    if len(kinds) > 1:
        raise UserError("Points of one sweep cannot be partly local and partly on Slurm (cluster.kind varies).")
    if kinds == {"local"}:
        return sweeping.show_local(jobs) if dry_run else sweeping.run_local(jobs)
    if dry_run:
        if all(job.finished for job in jobs):
            say(f"all {len(jobs)} points have finished: there is nothing to submit")
        return max((show(batch) for batch in sweeping.batches(jobs)), default=0)
    return sweeping.run_slurm(jobs)


def show(batch: Batch) -> int:
    """Print the job script, what Slurm says to it, and each job's preview. 1 when Slurm would refuse it."""
    out = console()
    out.print("# ---- job script", markup=False)
    print(batch.text(), end="", flush=True)  # byte for byte: no wrapping
    accepted, words = batch.test()
    out.print("# ---- sbatch --test-only", markup=False)
    print(words, flush=True)
    for job in batch.jobs:
        out.print(f"# ---- job {job.label or job.name}: {job.run_dir}", markup=False)
        if job.preview:
            print(job.preview.rstrip("\n"), flush=True)
    return 0 if accepted else 1


def how_to_follow(run_dir: Path) -> str:
    """What to type later."""
    place = shlex.quote(str(run_dir))
    return f"Follow it with `nano3 tail {place}`, end it with `nano3 cancel {place}`."


def _submit_one(batch: Batch) -> int:
    one = submit_batch(batch)[0]
    told = f"submitted job {one.id}: {one.run_dir}"
    if batch.jobs[0].cluster.mode == "detached":
        say(told)
        say(how_to_follow(one.run_dir))
        return 0
    return attached(told, lambda: follow(one), [one.id], how_to_follow(one.run_dir))
