"""Checkpoint folders of both backends, without torch: names, markers, completeness, checksums.

    checkpoints/iter_0000100/
      checkpoint.json  written last; a folder without it is incomplete
      ...              the backend's files

checkpoint.json holds counters, the identity of the run, the size and checksum of each file, and a checksum of its own.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from nano3.config import PretrainConfig
from nano3.training.run.config_file import load_config_file
from nano3.utils.records import damaged, read_record, with_checksum, write_record

MARKER = "checkpoint.json"
_NAME = re.compile(r"iter_(\d{7,})")
# Names of fields in checkpoint.json of earlier releases.
_OLD_KEYS = {"fixed": "run_identity", "told": "mutable_settings"}


Count = Annotated[int, msgspec.Meta(ge=0)]


class FileRecord(TypedDict):
    """Size and checksum of one file of a checkpoint. Earlier releases recorded its sha256."""

    bytes: Count
    xxh128: NotRequired[str]
    sha256: NotRequired[str]


@dataclass(frozen=True)
class CheckpointInfo:
    """The contents of checkpoint.json.

    `run_identity` must be the same on a resume. `mutable_settings` may differ; a difference is logged (see
    nano3/training/run/resume.py). `guard_window` holds [iteration, loss, gradient norm] of the last iterations. `order`
    is the plan of the samples (`training/order/plan.py`); empty for Megatron's order.
    """

    iteration: Count
    consumed_samples: Count
    consumed_tokens: Count
    elapsed_s: Annotated[float, msgspec.Meta(ge=0)]
    parameters: Count
    run_identity: dict[str, Any]
    mutable_settings: dict[str, Any]
    files: dict[str, FileRecord] = field(default_factory=dict)
    guard_window: list[list[float]] = field(default_factory=list)
    order: dict[str, Any] = field(default_factory=dict)


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

    Raises:
        DamagedRecordError: RUN/config.yaml is damaged.
    """
    recorded = Path(run_dir) / "config.yaml"
    if recorded.is_file():
        from omegaconf import OmegaConf

        config = load_config_file(recorded)
        save, original = (OmegaConf.select(config, key) for key in ("checkpoint.save", "run.output_dir"))
        if save and isinstance(save, str):
            inside = isinstance(original, str) and original and Path(save).is_relative_to(original)
            return Path(run_dir) / Path(save).relative_to(original) if inside else Path(save)
    return Path(run_dir) / "checkpoints"


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read checkpoint.json, also in the form of earlier releases.

    Raises:
        DamagedRecordError: The file is missing or damaged, or names another iteration than its folder.
    """
    path, fix = folder / MARKER, removal_hint(folder)
    try:
        info = read_record(path, CheckpointInfo, fix, _OLD_KEYS)
    except FileNotFoundError as error:
        raise damaged(path, "it is missing", fix) from error
    if _NAME.fullmatch(folder.name) and iteration_of(folder) != info.iteration:
        raise damaged(path, f"it is of iteration {info.iteration}, its folder {folder.name}", fix)
    return info


def write_checkpoint_info(folder: Path, info: CheckpointInfo) -> None:
    """Write checkpoint.json, which marks the folder as complete."""
    write_record(folder / MARKER, info)


def checkpoint_fingerprint(folder: Path) -> str:
    """Return a sha256 that differs between two contents of the same checkpoint folder.

    It covers the checksums of the files. Megatron's are computed after checkpoint.json is written; there it covers
    checkpoint.json without them, whose elapsed_s differs from one training to the next.
    """
    info = read_checkpoint_info(folder)
    if info.run_identity.get("backend") == "megatron" or not info.files:
        text = json.dumps(with_checksum(asdict(replace(info, files={}))), sort_keys=True)
    else:
        text = json.dumps(sorted((n, e.get("xxh128") or e.get("sha256")) for n, e in info.files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def removal_hint(folder: Path) -> str:
    """Return what a user can do about a damaged checkpoint."""
    return f"Remove {folder} to resume from the checkpoint before it, or to start from scratch if there is none."
