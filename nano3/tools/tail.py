"""Follow a run as the command that started it would: rank 0's log, then its exit code.

nano3 tail output/nano3/runs/tiny
nano3 tail tiny -n 100 --no-follow

A run of one process here writes to the terminal that started it: of such a run metrics.jsonl is shown.
"""

import argparse
import time
from pathlib import Path

from launch import job_records, local_job, slurm
from launch.follow import LogStream, describe_state, follow, read_tail_and_size, say
from launch.submit import SubmittedJob
from nano3.tools import _local
from nano3.tools._arguments import at_least
from nano3.tools._folders import RUNS, run_folder, run_folders
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, UserError

HELP = "show and follow the log of a run"
_LOOK_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    parser.add_argument("-n", "--lines", type=at_least(0), default=20, help="lines of the log to begin with (20)")
    parser.add_argument("--rank", type=at_least(0), default=0, help="show the log of this rank (0)")
    parser.add_argument("--no-follow", action="store_true", help="show these lines and stop")


def run(args: argparse.Namespace) -> int:
    run_dir = run_folder(args.run)
    refuse_sweep(run_dir)
    if _local.is_newest(run_dir):
        return tail_here(run_dir, args)
    entry = job_records.read_records(run_dir)[-1]
    job = SubmittedJob(entry.id, run_dir, Path(entry.log).parent)
    text, size = read_tail_and_size(job.log(args.rank), args.lines)
    print(text, end="", flush=True)
    if args.no_follow or entry.state:
        state = slurm.JobState(entry.state, entry.exit_code or 0) if entry.state else slurm.states([entry.id])[entry.id]
        say(f"job {entry.id} {describe_state(state)}; log: {job.log(args.rank)}")
        return 0
    try:
        return follow(job, rank=args.rank, offset=size)
    except KeyboardInterrupt:
        say(f"job {entry.id} goes on")
        return INTERRUPTED_EXIT_CODE


def tail_here(run_dir: Path, args: argparse.Namespace) -> int:
    """The same for a run on this machine."""
    log = log_here(run_dir, args.rank)
    text, size = read_tail_and_size(log, args.lines)
    print(text, end="", flush=True)
    stream = LogStream(log, size)
    try:
        while not args.no_follow and _local.state_of(run_dir).holder:
            stream.copy()
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        say(f"{run_dir} goes on")
        return INTERRUPTED_EXIT_CODE
    stream.copy()
    state = _local.state_of(run_dir)
    say(f"{run_dir}: {state}; log: {log}")
    return 0 if args.no_follow else state.exit_code


def log_here(run_dir: Path, rank: int) -> Path:
    """Where the output of a rank is, or the best there is; says so when that is not the output."""
    start = local_job.newest_local_job(run_dir)
    kept = Path(start.log) if start and start.log and rank == 0 else run_dir / "logs" / f"rank_{rank}.log"
    if kept.exists():
        return kept
    if rank:
        raise UserError(f"{run_dir}: there is no log of rank {rank} ({kept}).")
    whose = f" (process {start.pid} on {start.host})" if start else ""
    say(f"{run_dir}: its output went to the terminal that started it{whose}; these are its metrics")
    return run_dir / "metrics.jsonl"


def refuse_sweep(run_dir: Path) -> None:
    """A sweep has no log of its own. Raises `UserError`."""
    folders = list(run_folders(run_dir))
    if run_dir in folders:
        return
    if folders:
        raise UserError(f"{run_dir} is a sweep. Name one of its points: {', '.join(sorted(map(str, folders)))}.")
    raise UserError(f"{run_dir}: no run was started there. `nano3 jobs` lists what there is.")
