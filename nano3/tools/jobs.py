"""List runs on this machine and on Slurm with their state, iteration and loss.

nano3 jobs                              runs under output/nano3/runs
nano3 jobs output/nano3/runs/my_sweep   the points of one sweep
"""

import argparse
from pathlib import Path

from launch import job_records, local_job, slurm
from launch.follow import describe_state, last_metrics, loss_text
from nano3.tools._arguments import RUNS, find_runs_below
from nano3.tools._local_runs import local_state, newest_start_is_local
from nano3.utils.console import print_problems, say, table, warn
from nano3.utils.errors import Failure, Nano3Error, UserError

HELP = "list runs with their state, on this machine or on Slurm"
ONLY_SHOWS = True
_COLUMNS = ("run", "job", "state", "exit", "iteration", "loss", "started")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[RUNS], help=f"run folders or their parents (default: {RUNS})"
    )


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    missing = [folder for folder in args.folders if not folder.is_dir()]
    if missing and args.folders != [RUNS]:
        raise UserError([f"There is no folder {folder}." for folder in missing])
    runs = sorted({run_dir for folder in args.folders if folder.is_dir() for run_dir in find_runs_below(folder)})
    if not runs:
        say(f"No runs under {', '.join(map(str, args.folders))}.")
        return 0
    last, problems = _last_jobs(runs)
    states = _states({run_dir: record for run_dir, record in last.items() if record})
    rows = []
    for run_dir in last:
        try:
            rows.append(_row(run_dir, states))
        except Nano3Error as error:
            problems += error.problems
    table("runs", _COLUMNS, rows, right=("exit", "iteration", "loss"))
    print_problems(problems)
    return Failure.exit_code if problems else 0


def _last_jobs(runs: list[Path]) -> tuple[dict[Path, job_records.JobRecord | None], list[str]]:
    """Return the newest Slurm job of each run (None if it has none), and the problems of unreadable job records."""
    last: dict[Path, job_records.JobRecord | None] = {}
    problems: list[str] = []
    for run_dir in runs:
        try:
            last[run_dir] = next(reversed(job_records.read_records(run_dir)), None)
        except Nano3Error as error:
            problems += error.problems
    return last, problems


def _states(records: dict[Path, job_records.JobRecord]) -> dict[Path, slurm.JobState]:
    """Return the state of each run's newest job. Slurm is queried only for jobs without a recorded end."""
    try:
        states = job_records.job_states(records)
    except Failure as error:
        warn(str(error))
        return {run_dir: slurm.JobState(r.state, r.exit_code or 0) for run_dir, r in records.items() if r.state}
    for run_dir, state in states.items():
        if state.state == "COMPLETED" and not records[run_dir].state:
            job_records.record_end(run_dir, records[run_dir].id, state)
    return states


def _row(run_dir: Path, states: dict[Path, slurm.JobState]) -> tuple[object, ...]:
    """Return a run's cells for the table."""
    metrics = last_metrics(run_dir)
    progress = (metrics.get("iteration", ""), loss_text(metrics))
    if newest_start_is_local(run_dir):
        local, job = local_state(run_dir), local_job.newest_local_job(run_dir)
        return (run_dir, "", local, "" if local.code is None else local.code, *progress, job.started if job else "")
    last = job_records.read_records(run_dir)[-1]
    state = states.get(run_dir, slurm.UNKNOWN)
    started = "" if state.state == "PENDING" else state.start or last.started
    return (run_dir, last.id, describe_state(state), state.code if state.ended else "", *progress, started)
