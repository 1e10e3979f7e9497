"""Follow a run's Slurm job as the command that submitted it would: rank 0's log, then the job's exit code.

nano3 tail output/nano3/runs/tiny
nano3 tail tiny -n 100 --no-follow
"""

import argparse
from pathlib import Path

from launch import ledger, slurm
from launch.follow import INTERRUPTED, describe, follow, say, tail_and_size
from launch.submit import Submitted
from nano3.errors import UserError
from nano3.tools.jobs import RUNS, run_folders

HELP = "show and follow the log of a run's Slurm job"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    parser.add_argument("-n", "--lines", type=int, default=20, help="lines of the log to begin with (20)")
    parser.add_argument("--rank", type=int, default=0, help="show the log of this rank (0)")
    parser.add_argument("--no-follow", action="store_true", help="show these lines and stop")


def run(args: argparse.Namespace) -> int:
    run_dir = run_folder(args.run)
    entry = last_entry(run_dir)
    job = Submitted(entry.id, run_dir, Path(entry.log).parent)
    text, size = tail_and_size(job.log(args.rank), args.lines)
    print(text, end="", flush=True)
    if args.no_follow or entry.state:
        state = slurm.JobState(entry.state, entry.exit_code or 0) if entry.state else slurm.states([entry.id])[entry.id]
        say(f"job {entry.id} {describe(state)}; log: {job.log(args.rank)}")
        return 0
    try:
        return follow(job, rank=args.rank, offset=size)
    except KeyboardInterrupt:
        say(f"job {entry.id} goes on")
        return INTERRUPTED


def run_folder(name: str) -> Path:
    """The folder that a user means by a path or by a name under output/nano3/runs."""
    for folder in (Path(name), RUNS / name):
        if folder.is_dir():
            return folder
    raise UserError(f"There is no run {name!r}, neither here nor under {RUNS}. `nano3 jobs` lists what there is.")


def last_entry(run_dir: Path) -> ledger.Entry:
    """The newest submission of a run."""
    if entries := ledger.read(run_dir):
        return entries[-1]
    points = [str(folder) for folder in run_folders(run_dir) if folder != run_dir and ledger.read(folder)]
    if points:
        raise UserError(f"{run_dir} is a sweep. Name one of its points: {', '.join(sorted(points))}.")
    raise UserError(f"{run_dir}: no Slurm job of this run is known (no {ledger.FILE}).")
