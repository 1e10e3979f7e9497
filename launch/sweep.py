"""Run the points of a sweep: on Slurm one array for each set of equal resources, here one process after another.

A finished point is not run again, so the same command runs only the missing points. A failed point does not stop the
others. The exit code is that of the first failed point in order; without one, 75 if a point stopped or was not started.
"""

import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from launch import job_records, slurm, submissions
from launch.follow import Watch, failure_lines, follow_attached, follow_hint, say
from launch.job import Job
from launch.local import run_process, show_job
from launch.lock import hold_run_lock
from launch.submit import Batch, SubmittedJob, submit_batch
from launch.sweep_table import SweepRow, SweepTable
from nano3.utils.console import printable, write
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, RESTART_EXIT_CODE, UserError


@dataclass(frozen=True)
class SweepEnd:
    """The exit code of a sweep, and that of each job; None for a job that was not started or is not followed."""

    code: int
    codes: list[int | None]
    # This command was asked to stop.
    interrupted: bool = False


def _rows(jobs: list[Job]) -> list[SweepRow]:
    return [
        SweepRow(job.label or job.name, job.run_dir, job.iterations, state="finished before", code=0)
        if job.finished
        else SweepRow(job.label or job.name, job.run_dir, job.iterations)
        for job in jobs
    ]


def _report(rows: list[SweepRow]) -> int:
    """Print how the points ended and return the exit code of the sweep."""
    failed = [row for row in rows if row.failed]
    for row in failed:
        log = row.failed_log()
        say(f"{row.label}: {row.reason()}; end of {log}:")
        for line in failure_lines(log, 5):
            say(f"    {line}")
    codes = [row.code for row in rows]
    unfinished = {"failed": len(failed), "stopped": codes.count(RESTART_EXIT_CODE), "not started": codes.count(None)}
    words = "".join(f", {count} {how}" for how, count in unfinished.items() if count)
    say(f"{codes.count(0)} of {len(rows)} points finished{words}")
    if failed:
        return failed[0].code or 1
    return RESTART_EXIT_CODE if codes.count(0) < len(rows) else 0


def show_local(jobs: list[Job]) -> int:
    """Print what a local sweep would run, for a dry run."""
    for job in jobs:
        write(f"# ---- point {printable(f'{job.label}: {job.run_dir}')}{' (finished before)' * job.finished}\n")
        show_job(job)
    return 0


def run_local(jobs: list[Job]) -> SweepEnd:
    """Run one point after another, each in a process that writes to RUN_DIR/logs/rank_0.log."""
    rows = _rows(jobs)
    stop_requested = False
    with SweepTable(rows) as sweep_table:
        for row, job in zip(rows, jobs, strict=True):
            if row.code == 0:
                continue
            row.set_state("running")
            sweep_table.update()
            stop_requested = _run_point(row, job)
            sweep_table.update()
            if stop_requested:
                break
    return _end(_report(rows), rows, stop_requested)


def _end(code: int, rows: list[SweepRow], interrupted: bool = False) -> SweepEnd:
    return SweepEnd(code, [row.code for row in rows], interrupted)


def _run_point(row: SweepRow, job: Job) -> bool:
    """Run one point and return whether this command was asked to stop meanwhile."""
    try:
        with hold_run_lock(job.run_dir) as lock:
            submissions.check_not_active([job.run_dir])
            job.prepare()
            end = run_process(job, row.log(), lock)
    except UserError as error:
        row.code, row.state = error.exit_code, "refused"
        say(f"{row.label}: {error}")
        return False
    row.code, row.state = end.code, {0: "finished", RESTART_EXIT_CODE: "stopped"}.get(end.code, "failed")
    return end.stop_requested


def base_folder(jobs: list[Job]) -> Path:
    """Return the folder that holds the run folders of all points."""
    return Path(os.path.commonpath([job.run_dir.absolute().parent for job in jobs]))


def make_batches(jobs: list[Job]) -> list[Batch]:
    """Return the unfinished jobs, in one batch for each set of equal resources."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.finished:
            groups.setdefault(repr((astuple(job.cluster), job.container, job.after)), []).append(job)
    return [Batch(group, group[0].name, base_folder(jobs) / "slurm") for group in groups.values()]


def run_slurm(jobs: list[Job]) -> SweepEnd:
    """Submit the unfinished points and, if attached, follow them to their end; the exit code is 0 if detached."""
    rows = _rows(jobs)
    submissions.check_not_active(job.run_dir for job in jobs if not job.finished)
    submitted: list[SubmittedJob] = []
    try:
        for batch in make_batches(jobs):
            submitted += submit_batch(batch)
    except BaseException:
        if submitted:
            slurm.cancel(job.id for job in submitted)
            say(f"canceled {', '.join(job.id for job in submitted)}: a sweep is submitted as a whole or not at all")
        raise
    by_run_dir = {job.run_dir: job for job in submitted}
    for row in rows:
        if row.run_dir in by_run_dir:
            row.submitted, row.state = by_run_dir[row.run_dir], "submitted"
    hint, arrays = follow_hint(base_folder(jobs)), sorted(array_ids(submitted))
    message = f"submitted {len(submitted)} of {len(jobs)} points" + (f": job {', '.join(arrays)}" if arrays else "")
    if jobs[0].cluster.mode == "detached":
        say(message)
        say(hint)
        return _end(0, rows)
    code = follow_attached(message, lambda: follow_rows(rows, jobs[0].cluster.poll_s), arrays, hint)
    return _end(code, rows, code == INTERRUPTED_EXIT_CODE)


def array_ids(jobs: list[SubmittedJob]) -> set[str]:
    """Return the ids of the whole arrays, and of single jobs."""
    return {job.id.partition("_")[0] for job in jobs}


def follow_rows(rows: list[SweepRow], poll_s: float) -> int:
    """Show the submitted points until all have ended, record their ends, and return the exit code of the sweep.

    Args:
        rows: All points; those with a submitted job and no exit code are followed.
        poll_s: Seconds between queries.
    """
    followed = {row.submitted.id: row for row in rows if row.submitted and row.code is None}
    watch = Watch(list(followed), poll_s, lambda job_id: followed[job_id].end_without_slurm())
    with SweepTable(rows) as sweep_table:
        while followed and not watch.ended:
            if watch.poll():
                for job_id, row in followed.items():
                    row.update(watch.states[job_id])
                sweep_table.update()
            time.sleep(min(0.25, poll_s))
    for job_id, row in followed.items():
        job_records.record_end(row.run_dir, job_id, watch.states[job_id])
    return _report(rows)
