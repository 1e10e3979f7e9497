"""What the tools accept as arguments: numbers, a run by path or name, prepared data by folder or artifact."""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from launch import job_records, submissions
from nano3.artifacts import resolver, store
from nano3.training.run.record import read_latest_start
from nano3.utils.console import warn
from nano3.utils.disk_errors import permission_problem
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import expand_user

RUNS = Path("output/nano3/runs")
# Subfolders of runs and sweeps that contain no runs.
_NOT_RUNS = {
    "slurm", "logs", "checkpoints", "tensorboard", "starts", "wandb", "exports", "evals", "index_cache", "index_job",
}  # fmt: skip


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers that are not below `minimum`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is too small. The minimum is {minimum}.")
        return value

    return number


def above_zero(text: str) -> float:
    """Return a number above 0, as an argparse type."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is out of range. Give a number above 0, for example 2.5.")
    return value


def find_run(name: str) -> Path:
    """Return the folder of a run given by its path or by its name under output/nano3/runs.

    Raises:
        UserError: There is no such folder.
    """
    for folder in (Path(name), RUNS / name):
        if folder.is_dir():
            return folder
    raise UserError(f"There is no run {name!r}, neither here nor under {RUNS}. `nano3 jobs` lists all runs.")


def find_runs_below(folder: Path) -> Iterator[Path]:
    """Return the run folders at or below `folder`: those with a jobs.json or a config.yaml.

    Jobs that were submitted by commands that were killed meanwhile are recorded first.

    Raises:
        UserError: `folder` itself may not be read; for folders below it, that is a warning.
    """
    runs = list(_run_folders(folder))
    try:
        submissions.recover(runs)
    except Failure as error:
        warn(str(error))
    return iter(runs)


def _run_folders(folder: Path) -> Iterator[Path]:
    def explain(error: OSError) -> None:
        problem = permission_problem(error, writes=False)
        if isinstance(error, PermissionError) and Path(error.filename) == folder:
            raise UserError(problem)
        warn(problem)

    for path, subfolders, files in os.walk(folder, onerror=explain):
        subfolders[:] = [name for name in subfolders if name not in _NOT_RUNS]
        if {job_records.FILE, "config.yaml"} & set(files):
            yield Path(path)


def find_data(reference: str) -> Path:
    """Return the folder of prepared data given by its path or, as in run.data, by its artifact (NAME:ALIAS).

    A path that does not exist is returned unchanged.

    Raises:
        UserError: The path is a file, or there is no such artifact.
    """
    folder = expand_user(reference)
    if folder.is_file():
        raise UserError(f"{reference} is a file. Give the folder that nano3.data_prep wrote (its output_dir).")
    if folder.is_dir() or (":" not in reference and not store.versions(reference)):
        return folder
    return resolver.resolve_reference(reference, key="").folder


def check_same_data(run_dir: Path, data: Path) -> None:
    """Check that a data folder still holds the data of a run's newest start.

    Args:
        run_dir: Run folder.
        data: Folder of prepared data.

    Raises:
        UserError: There is no prepared data in `data`.
        Failure: The data has another fingerprint, or a file cannot be read.
    """
    from nano3.data.dataset.manifest import load_manifest

    fingerprint = read_latest_start(run_dir).get("data", {}).get("fingerprint")
    if fingerprint not in (None, load_manifest(data).content):
        raise Failure(f"{data} is not the data that {run_dir} was trained on. It has been prepared again since.")
