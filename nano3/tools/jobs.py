"""Runs, here and on Slurm: state, iteration, loss.

nano3 jobs                              runs under output/nano3/runs
nano3 jobs output/nano3/runs/my_sweep   the points of one sweep
"""

import argparse
from pathlib import Path

from launch import job_records, local_job, slurm
from launch.follow import describe_state, last_metrics, loss_text
from nano3.tools import _local
from nano3.tools._folders import RUNS, run_folders
from nano3.utils.console import print_problems, say, table, warn
from nano3.utils.errors import Failure, Nano3Error, UserError

HELP = "list runs with their state, here or on Slurm"
_COLUMNS = ("run", "job", "state", "exit", "iteration", "loss", "started")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="*", type=Path, default=[RUNS], help=f"run folders or their parents ({RUNS})")


def run(args: argparse.Namespace) -> int:
    missing = [folder for folder in args.folders if not folder.is_dir()]
    if missing and args.folders != [RUNS]:
        raise UserError([f"There is no folder {folder}." for folder in missing])
    runs = sorted({found for folder in args.folders if folder.is_dir() for found in run_folders(folder)})
    if not runs:
        say(f"No runs under {', '.join(map(str, args.folders))}.")
        return 0
    last, damaged = _last_jobs(runs)
    states = _states([entry for entry in last.values() if entry])
    table("runs", _COLUMNS, [_row(run_dir, states) for run_dir in last], right=("exit", "iteration", "loss"))
    print_problems(damaged)
    return Failure.exit_code if damaged else 0


def _last_jobs(runs: list[Path]) -> tuple[dict[Path, job_records.JobRecord | None], list[str]]:
    """The newest job of each run whose jobs can be read, None for one without; and what is wrong with the others."""
    found: dict[Path, job_records.JobRecord | None] = {}
    damaged: list[str] = []
    for run_dir in runs:
        try:
            found[run_dir] = next(reversed(job_records.read_records(run_dir)), None)
        except Nano3Error as error:
            damaged += error.problems
    return found, damaged


def _states(entries: list[job_records.JobRecord]) -> dict[str, slurm.JobState]:
    """Slurm is asked only about jobs whose end has not been noted."""
    states = {e.id: slurm.JobState(e.state, e.exit_code or 0) for e in entries if e.state}
    try:
        return states | slurm.states(e.id for e in entries if not e.state)
    except Failure as error:
        warn(str(error))
        return states


def _row(run_dir: Path, states: dict[str, slurm.JobState]) -> tuple[object, ...]:
    metrics = last_metrics(run_dir)
    progress = (metrics.get("iteration", ""), loss_text(metrics))
    if _local.is_newest(run_dir):
        here, start = _local.state_of(run_dir), local_job.newest_local_job(run_dir)
        code = "" if here.code is None else here.code
        return (run_dir, "", here, code, *progress, start.started if start else "")
    last = job_records.read_records(run_dir)[-1]
    state = states.get(last.id, slurm.UNKNOWN)
    return (run_dir, last.id, describe_state(state), state.code if state.ended else "", *progress, last.submitted)
