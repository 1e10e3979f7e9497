"""Runs and their Slurm jobs: state, iteration, loss.

nano3 jobs                              runs under output/nano3/runs
nano3 jobs output/nano3/runs/my_sweep   the points of one sweep
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from launch import ledger, slurm
from launch.follow import describe
from launch.metrics import last_metrics, loss_text
from nano3.console import say, table, warn
from nano3.errors import Failure, UserError

HELP = "list runs with the state of their Slurm jobs"
RUNS = Path("output/nano3/runs")
_NOT_RUNS = {"slurm", "logs", "checkpoints", "tensorboard", "starts", "wandb"}
_COLUMNS = ("run", "job", "state", "exit", "iteration", "loss", "submitted")


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
    states = _states([entries[-1] for run_dir in runs if (entries := ledger.read(run_dir))])
    table("runs", _COLUMNS, [_row(run_dir, states) for run_dir in runs], right=("exit", "iteration", "loss"))
    return 0


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders at or below `folder` that launch or a run has written into."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NOT_RUNS]
        if {ledger.FILE, "config.yaml"} & set(files):
            yield Path(place)


def _states(entries: list[ledger.Entry]) -> dict[str, slurm.JobState]:
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
    entries = ledger.read(run_dir)
    if not entries:
        return (run_dir, "", "finished" if (run_dir / "finished.json").exists() else "here", "", *progress, "")
    last = entries[-1]
    state = states.get(last.id, slurm.UNKNOWN)
    return (run_dir, last.id, describe(state), state.code if state.ended else "", *progress, last.submitted)
