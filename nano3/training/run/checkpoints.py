"""Checkpoint folders of both backends, without torch: names, markers, completeness, checksums.

    checkpoints/iter_0000100/
      checkpoint.json  written last; a folder without it is incomplete
      ...              the backend's files

checkpoint.json holds counters, the identity of the run, and the size and sha256 of each file where the backend records
them.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from nano3.config import PretrainConfig
from nano3.utils.errors import Failure
from nano3.utils.files import read_json

MARKER = "checkpoint.json"
_NAME = re.compile(r"iter_(\d{7,})")
# Names of fields in checkpoint.json of earlier releases.
_OLD_KEYS = {"fixed": "run_identity", "told": "mutable_settings"}


class FileRecord(TypedDict):
    """Size and checksum of one file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointInfo:
    """The contents of checkpoint.json.

    `run_identity` must be the same on a resume. `mutable_settings` may differ; a difference is logged (see
    nano3/training/run/resume.py).
    """

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    elapsed_s: float
    parameters: int
    run_identity: dict[str, Any]
    mutable_settings: dict[str, Any]
    files: dict[str, FileRecord] = field(default_factory=dict)


def folder_name(iteration: int) -> str:
    """Return the name of the checkpoint folder of an iteration, such as iter_0000100."""
    return f"iter_{iteration:07d}"


def iteration_of(folder: Path) -> int:
    """Return the iteration in the name of a checkpoint folder.

    Raises:
        ValueError: The folder is not named like a checkpoint.
    """
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not a checkpoint folder")
    return int(match[1])


def iteration_folders(root: Path) -> list[Path]:
    """Return every folder in `root` that is named like a checkpoint, oldest first, complete or not."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()), key=iteration_of)


def complete_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders in `root` that have a marker, oldest first."""
    return [p for p in iteration_folders(root) if (p / MARKER).is_file()]


def latest_checkpoint(root: Path) -> Path | None:
    """Return the newest complete checkpoint in `root`, or None."""
    found = complete_checkpoints(root)
    return found[-1] if found else None


def checkpoint_dir(config: PretrainConfig, run_dir: Path) -> Path:
    """Return the folder that a run saves its checkpoints in."""
    return Path(config.checkpoint.save or run_dir / "checkpoints").absolute()


def recorded_checkpoint_dir(run_dir: Path) -> Path:
    """Return the checkpoint folder according to RUN/config.yaml, by default RUN/checkpoints.

    A folder inside the original run folder is looked up inside `run_dir`, so a moved run finds its checkpoints.
    """
    recorded = Path(run_dir) / "config.yaml"
    if recorded.is_file():
        from omegaconf import OmegaConf

        config = OmegaConf.load(recorded)
        if save := OmegaConf.select(config, "checkpoint.save"):
            original = OmegaConf.select(config, "run.output_dir")
            inside = original and Path(save).is_relative_to(original)
            return Path(run_dir) / Path(save).relative_to(original) if inside else Path(save)
    return Path(run_dir) / "checkpoints"


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read checkpoint.json, also in the form of earlier releases.

    Raises:
        Failure: The file is missing or damaged.
    """
    path = folder / MARKER
    try:
        return CheckpointInfo(**{_OLD_KEYS.get(key, key): value for key, value in read_json(path).items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise Failure(_damaged(folder, f"{path} cannot be read ({error})")) from error


def checkpoint_fingerprint(folder: Path) -> str:
    """Return a sha256 that differs between two contents of the same checkpoint folder.

    It covers the checksums of the files. Megatron's shards are too large to checksum; there it covers checkpoint.json,
    whose elapsed_s differs from one training to the next.
    """
    files = read_checkpoint_info(folder).files
    checksums = json.dumps(sorted((name, entry["sha256"]) for name, entry in files.items()))
    return hashlib.sha256(checksums.encode() if files else (folder / MARKER).read_bytes()).hexdigest()


def verify_checkpoint(folder: Path, info: CheckpointInfo) -> None:
    """Compare the size and sha256 of every file with checkpoint.json.

    Raises:
        Failure: Lists each file that is missing or differs.
    """
    problems = []
    for name, expected in info.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{path} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}")
        elif file_sha256(path) != expected["sha256"]:
            problems.append(f"{path} has changed (sha256 differs)")
    if problems:
        raise Failure([_damaged(folder, p) for p in problems])


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _damaged(folder: Path, what: str) -> str:
    return (
        f"Checkpoint damaged: {what}. Remove {folder} to resume from the checkpoint before it, or to start from "
        "scratch if there is none."
    )
