"""`launch.run`: run single jobs and sweeps, on this machine and on Slurm."""

from launch import local, submissions
from launch import sweep as sweeping
from launch.check import check_jobs, check_not_torchrun
from launch.follow import follow, follow_attached, follow_hint, say
from launch.job import Job
from launch.lock import hold_run_lock
from launch.submit import Batch, submit_batch
from nano3.utils.console import printable, write
from nano3.utils.errors import UserError


def run(jobs: list[Job], *, dry_run: bool = False, sweep: bool = False) -> int:
    """Run the jobs where their `cluster` says.

    One job runs on this machine (in this process, or under torchrun) or is submitted to Slurm. A finished run is not
    submitted again.

    Args:
        jobs: One job, or the points of a sweep.
        dry_run: Show what would run and do nothing.
        sweep: Run every job as a point of a sweep (launch.sweep).

    Returns:
        The exit code of this command: that of the job, or 0 for a detached submission.

    Raises:
        UserError: With all problems that are known before anything starts.
    """
    if sweep:
        return run_sweep(jobs, dry_run=dry_run).code
    if len(jobs) > 1:
        raise UserError(f"There are {len(jobs)} jobs, but this is not a sweep. Add --multirun to sweep.")
    _check(jobs)
    job = jobs[0]
    if job.cluster.kind == "local":
        return local.show_job(job) if dry_run else _run_local(job)
    if job.finished:
        say(finished_message(job))
        if not dry_run:
            return 0
    batch = Batch([job], job.name, job.run_dir / "slurm")
    return show_batch(batch) if dry_run else _submit_one(batch)


def run_sweep(jobs: list[Job], *, dry_run: bool = False) -> sweeping.SweepEnd:
    """Run the jobs as the points of a sweep (launch.sweep).

    Args:
        jobs: The points.
        dry_run: Show what would run and do nothing.

    Raises:
        UserError: With all problems that are known before anything starts.
    """
    _check(jobs)
    kinds = {job.cluster.kind for job in jobs}
    if len(kinds) > 1:
        raise UserError("Points of one sweep cannot be partly local and partly on Slurm (cluster.kind varies).")
    if not dry_run:
        return sweeping.run_local(jobs) if kinds == {"local"} else sweeping.run_slurm(jobs)
    if kinds == {"local"}:
        code = sweeping.show_local(jobs)
    else:
        if all(job.finished for job in jobs):
            say(f"all {len(jobs)} points have finished: there is nothing to submit")
        code = max((show_batch(batch) for batch in sweeping.make_batches(jobs)), default=0)
    return sweeping.SweepEnd(code, [code for _ in jobs])


def _check(jobs: list[Job]) -> None:
    if not jobs:
        raise UserError("There is nothing to run.")
    check_not_torchrun("start the same jobs")
    check_jobs(jobs)


def _run_local(job: Job) -> int:
    if job.finished:
        return local.run_in_process(job)  # the entry shows its result and writes nothing
    with hold_run_lock(job.run_dir) as lock:
        submissions.check_not_active([job.run_dir])
        job.prepare()
        return local.run_in_process(job) if job.in_process else local.run_ranks(job, lock)


def finished_message(job: Job) -> str:
    """Return the message that replaces the submission of a finished run."""
    return f"{job.run_dir} has finished: nothing to do. To run it again, choose another name (run.name=...)."


def show_batch(batch: Batch) -> int:
    """Print the job script, what Slurm says about it, and each job's preview, for a dry run.

    Returns:
        1 if Slurm would reject the script, else 0.
    """
    write(f"# ---- job script\n{batch.script_text()}")
    accepted, answer = batch.test()
    write(f"# ---- sbatch --test-only\n{answer}\n")
    for job in batch.jobs:
        write(f"# ---- job {printable(f'{job.label or job.name}: {job.run_dir}')}\n")
        local.write_preview(job.preview)
    return 0 if accepted else 1


def _submit_one(batch: Batch) -> int:
    job = submit_batch(batch)[0]
    message = f"submitted job {job.id}: {job.run_dir}"
    if batch.jobs[0].cluster.mode == "detached":
        say(message)
        say(follow_hint(job.run_dir))
        return 0
    return follow_attached(message, lambda: follow(job), [job.id], follow_hint(job.run_dir))
