"""Follow a run like the command that started it: print rank 0's log, then return the run's exit code.

nano3 tail output/nano3/runs/tiny
nano3 tail tiny -n 100 --no-follow
nano3 tail output/nano3/runs/my_sweep      the table of a sweep on Slurm

Of a run on this machine it shows RUN/logs/rank_N.log, which also has what libraries print.
"""

import argparse
import time
from pathlib import Path

from launch import job_records, local_job, slurm
from launch.follow import LogStream, follow, read_tail_and_size, report_failure, say
from launch.names import natural_order
from launch.progress import last_iteration
from launch.state_text import describe_state, waiting_text
from launch.submit import SubmittedJob
from launch.sweep import follow_rows
from launch.sweep_table import SweepRow, SweepTable
from nano3.tools._arguments import RUNS, at_least, find_run, find_runs_below
from nano3.tools._local_runs import local_state, newest_start_is_local
from nano3.utils.console import write
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, UserError, list_some

HELP = "show and follow the log of a run"
ONLY_SHOWS = True
_POLL_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    parser.add_argument(
        "-n", "--lines", type=at_least(0), default=20, help="lines of the log to begin with (default: 20)"
    )
    parser.add_argument("--rank", type=at_least(0), default=0, help="show the log of this rank (default: 0)")
    parser.add_argument("--no-follow", action="store_true", help="show these lines and stop")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    run_dir = find_run(args.run)
    if rows := sweep_rows(run_dir):
        return follow_sweep(run_dir, rows, args.no_follow)
    check_is_run(run_dir)
    if newest_start_is_local(run_dir):
        return tail_local_run(run_dir, args)
    record = job_records.read_records(run_dir)[-1]
    job = SubmittedJob(record.id, run_dir, Path(record.log).parent)
    text, size = read_tail_and_size(job.log(args.rank), args.lines)
    write(text)
    if args.no_follow or record.state:
        state = job_records.job_states({run_dir: record})[run_dir]
        if state.ended and state.code:
            report_failure(job, state, args.rank)
        else:
            waiting = waiting_text(state)
            said = f"{describe_state(state)}{f', {waiting}' if waiting else ''}"
            say(f"job {record.id} {said}; log: {job.log(args.rank)}")
        return 0 if args.no_follow else state.code
    try:
        return follow(job, rank=args.rank, offset=size)
    except KeyboardInterrupt:
        say(f"job {record.id} continues")
        return INTERRUPTED_EXIT_CODE


def sweep_rows(folder: Path) -> list[SweepRow]:
    """Return the points of a sweep on Slurm with their recorded ends; [] if the folder is a run or no such sweep."""
    run_dirs = list(find_runs_below(folder))
    if folder in run_dirs or not run_dirs or any(newest_start_is_local(run_dir) for run_dir in run_dirs):
        return []
    rows = []
    for run_dir in run_dirs:
        record = job_records.read_records(run_dir)[-1]
        job = SubmittedJob(record.id, run_dir, Path(record.log).parent)
        row = SweepRow(str(run_dir.relative_to(folder)), run_dir, last_iteration(run_dir), submitted=job)
        if end := record.end_state:
            row.update(end)
        rows.append(row)
    return sorted(rows, key=lambda row: natural_order(row.submitted.id if row.submitted else ""))


def follow_sweep(folder: Path, rows: list[SweepRow], no_follow: bool) -> int:
    """Show the points of a sweep until all have ended; return the exit code of the sweep, or 0 with --no-follow.

    Args:
        folder: Folder of the sweep.
        rows: Its points.
        no_follow: Show the present state and stop.
    """
    active = {row.submitted.id: row for row in rows if row.submitted and row.code is None}
    if no_follow:
        for job_id, state in slurm.states(active).items():
            active[job_id].update(active[job_id].end_without_slurm() if state == slurm.UNKNOWN else state)
        with SweepTable(rows):
            return 0
    try:
        return follow_rows(rows, _POLL_SECONDS * 4)
    except KeyboardInterrupt:
        say(f"{folder} continues")
        return INTERRUPTED_EXIT_CODE


def tail_local_run(run_dir: Path, args: argparse.Namespace) -> int:
    """Show and follow a run on this machine; return its exit code, or 0 with --no-follow."""
    log = local_log(run_dir, args.rank)
    text, size = read_tail_and_size(log, args.lines)
    write(text)
    stream = LogStream(log, size)
    try:
        while not args.no_follow and local_state(run_dir).holder:
            stream.copy()
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        say(f"{run_dir} continues")
        return INTERRUPTED_EXIT_CODE
    stream.copy()
    state = local_state(run_dir)
    say(f"{run_dir}: {state}; log: {log}")
    return 0 if args.no_follow else state.exit_code


def local_log(run_dir: Path, rank: int) -> Path:
    """Return the log of a rank, or the metrics file of a run that wrote to its terminal.

    Args:
        run_dir: Run folder.
        rank: Number of the rank.

    Raises:
        UserError: There is no log of this rank, and it is not rank 0.
    """
    job = local_job.newest_local_job(run_dir)
    log = Path(job.log) if job and job.log and rank == 0 else run_dir / "logs" / f"rank_{rank}.log"
    if log.exists():
        return log
    if rank:
        raise UserError(f"{run_dir}: there is no log of rank {rank} ({log}).")
    process = f" (process {job.pid} on {job.host})" if job else ""
    say(f"{run_dir}: its output went to the terminal that started it{process}; these are its metrics")
    return run_dir / "metrics.jsonl"


def check_is_run(folder: Path) -> None:
    """Raise UserError if a folder is a sweep, which has no log of its own, or no run at all."""
    run_dirs = list(find_runs_below(folder))
    if folder in run_dirs:
        return
    if run_dirs:
        raise UserError(f"{folder} is a sweep. Name one of its points: {list_some(sorted(run_dirs))}.")
    raise UserError(f"{folder}: no run was started there. `nano3 jobs` lists all runs.")
