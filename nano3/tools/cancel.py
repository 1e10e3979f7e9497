"""Stop a run, or all points of a sweep.

Slurm jobs are canceled. A process on this machine saves a checkpoint and stops.

nano3 cancel output/nano3/runs/tiny
"""

import argparse
from pathlib import Path

from launch import job_records, lock, slurm
from nano3.tools._arguments import RUNS, find_run, find_runs_below
from nano3.tools._local_runs import stop_local_run
from nano3.utils.console import print_problems, say
from nano3.utils.errors import Failure

HELP = "stop a run or a sweep, on Slurm or on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("runs", nargs="+", metavar="run", help=f"run or sweep folder, or its name under {RUNS}")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    folders = sorted({folder for name in args.runs for folder in find_runs_below(find_run(name))})
    stopped, failed = stop_local_runs(folders)
    records = [
        records[-1] for folder in folders if (records := job_records.read_records(folder)) and not records[-1].state
    ]
    ids = [job for record in records for job in record.ids]
    states = slurm.states(record.id for record in records)
    active = [r for r in records if states[r.id] != slurm.UNKNOWN and not states[r.id].ended]
    canceled = [job for record in active for job in record.ids]
    if canceled:
        slurm.cancel(canceled)
        say(f"canceled {', '.join(canceled)}")
    if not (canceled or stopped or failed):
        last = f" (last: {ids[-1]})" if ids else ""
        say(f"No process and no Slurm job of {', '.join(args.runs)} is running or pending{last}.")
    return Failure.exit_code if failed else 0


def stop_local_runs(folders: list[Path]) -> tuple[int, int]:
    """Stop every local process that holds one of the runs; return (stopped, failed) counts."""
    stopped = failed = 0
    for folder in folders:
        if holder := lock.lock_holder(folder):
            try:
                say(stop_local_run(folder, holder))
                stopped += 1
            except Failure as error:
                print_problems(error.problems)
                failed += 1
    return stopped, failed
