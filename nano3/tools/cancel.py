"""Cancel the Slurm jobs of a run, or of all points of a sweep.

nano3 cancel output/nano3/runs/tiny
"""

import argparse

from launch import ledger, slurm
from nano3.console import say
from nano3.tools.jobs import RUNS, run_folders
from nano3.tools.tail import run_folder

HELP = "cancel the Slurm jobs of a run or a sweep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="run", help=f"run or sweep folder, or its name under {RUNS}")


def run(args: argparse.Namespace) -> int:
    folders = sorted({found for name in args.runs for found in run_folders(run_folder(name))})
    entries = [entries[-1] for folder in folders if (entries := ledger.read(folder)) and not entries[-1].state]
    ids = [job for entry in entries for job in entry.ids]
    states = slurm.states(entry.id for entry in entries)
    active = [e for e in entries if states[e.id] != slurm.UNKNOWN and not states[e.id].ended]
    if not active:
        say(f"No job of {', '.join(args.runs)} waits or runs{f' (last: {ids[-1]})' if ids else ''}.")
        return 0
    cancelled = [job for entry in active for job in entry.ids]
    slurm.cancel(cancelled)
    say(f"cancelled {', '.join(cancelled)}")
    return 0
