"""Which folder a user means: a run by its path or name, the runs below a folder, prepared data by its place or name."""

import os
from collections.abc import Iterator
from pathlib import Path

from launch import job_records
from nano3.artifacts import resolver, store
from nano3.training.run.record import read_latest_start
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import expand_user

RUNS = Path("output/nano3/runs")
_NOT_RUNS = {"slurm", "logs", "checkpoints", "tensorboard", "starts", "wandb"}


def run_folder(name: str) -> Path:
    """The folder that a user means by a path or by a name under output/nano3/runs."""
    for folder in (Path(name), RUNS / name):
        if folder.is_dir():
            return folder
    raise UserError(f"There is no run {name!r}, neither here nor under {RUNS}. `nano3 jobs` lists what there is.")


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders at or below `folder` that launch or a run has written into."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NOT_RUNS]
        if {job_records.FILE, "config.yaml"} & set(files):
            yield Path(place)


def data_folder(reference: str) -> Path:
    """Prepared data by its folder or, as in run.data, by its artifact (NAME:ALIAS). Raises `UserError`."""
    folder = expand_user(reference)
    if folder.is_file():
        raise UserError(f"{reference} is a file; name the folder that nano3.data_prep made (its output_dir).")
    if folder.is_dir() or (":" not in reference and not store.versions(reference)):
        return folder
    return resolver.resolve_reference(reference, key="").folder


def refuse_other_data(folder: Path, data: Path) -> None:
    """Raise `Failure` when the data is not what the run's newest start read."""
    from nano3.data.dataset.manifest import load_manifest

    read = read_latest_start(folder).get("data", {}).get("fingerprint")
    if read not in (None, load_manifest(data).content):
        raise Failure(f"{data}: is not the data that {folder} was trained on; it was prepared anew since.")
