"""Stop a run, or all points of a sweep: Slurm jobs are cancelled, a process of this machine is asked to save and end.

nano3 cancel output/nano3/runs/tiny
"""

import argparse
from pathlib import Path

from launch import job_records, lock, slurm
from nano3.tools import _local
from nano3.tools._folders import RUNS, run_folder, run_folders
from nano3.utils.console import print_problems, say
from nano3.utils.errors import Failure

HELP = "stop a run or a sweep, on Slurm or here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="run", help=f"run or sweep folder, or its name under {RUNS}")


def run(args: argparse.Namespace) -> int:
    folders = sorted({found for name in args.runs for found in run_folders(run_folder(name))})
    asked, failed = stop_here(folders)
    entries = [
        entries[-1] for folder in folders if (entries := job_records.read_records(folder)) and not entries[-1].state
    ]
    ids = [job for entry in entries for job in entry.ids]
    states = slurm.states(entry.id for entry in entries)
    active = [e for e in entries if states[e.id] != slurm.UNKNOWN and not states[e.id].ended]
    cancelled = [job for entry in active for job in entry.ids]
    if cancelled:
        slurm.cancel(cancelled)
        say(f"cancelled {', '.join(cancelled)}")
    if not (cancelled or asked or failed):
        last = f" (last: {ids[-1]})" if ids else ""
        say(f"Nothing of {', '.join(args.runs)} waits or runs, neither here nor on Slurm{last}.")
    return Failure.exit_code if failed else 0


def stop_here(folders: list[Path]) -> tuple[int, int]:
    """Ask every process that works on one of the runs to stop; how many were, and how many could not be."""
    asked = failed = 0
    for folder in folders:
        if holder := lock.lock_holder(folder):
            try:
                say(_local.stop(folder, holder))
                asked += 1
            except Failure as error:
                print_problems(error.problems)
                failed += 1
    return asked, failed
