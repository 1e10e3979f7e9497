"""Checkpoints of the transformers backend: found by scan, written whole or not at all, verified before use.

    checkpoints/iter_0000100/
      state.pt         model, optimizer, scheduler (torch.save)
      rng_00000.pt     random number generators of each rank
      hf/              only in the last one of a run: the model for transformers' from_pretrained, with its tokenizer
      checkpoint.json  written last: counters, identity of the run, versions, size and sha256 of every file

A save fills `iter_0000100.tmp` and renames it. torch is imported only where states are written or read.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nano3.utils.console import warn
from nano3.utils.errors import Failure
from nano3.utils.files import fsync_dir, read_json, write_json

MARKER = "checkpoint.json"
_NAME = re.compile(r"iter_(\d{7,})")


@dataclass(frozen=True)
class CheckpointInfo:
    """What checkpoint.json says. `fixed` may not differ on a resume, `told` may and is then named; see `resume.py`."""

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    elapsed_s: float
    parameters: int
    fixed: dict[str, Any]
    told: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def folder_name(iteration: int) -> str:
    """iter_0000100"""
    return f"iter_{iteration:07d}"


def iteration_of(folder: Path) -> int:
    """The inverse of `folder_name`; raises `ValueError` for another name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not a checkpoint folder")
    return int(match[1])


def complete(root: Path) -> list[Path]:
    """Checkpoint folders under `root` that carry their marker, oldest first. Anything else is ignored."""
    return [p for p in iteration_folders(root) if (p / MARKER).is_file()]


def iteration_folders(root: Path) -> list[Path]:
    """Every folder under `root` that is named like a checkpoint, oldest first, whoever wrote it."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()), key=iteration_of)


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint under `root`, or None."""
    found = complete(root)
    return found[-1] if found else None


def root_of(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints: checkpoint.save of its frozen config.yaml, else <run folder>/checkpoints.
    What lay in the run's own folder is there wherever that was moved to.
    """
    frozen = Path(run_dir) / "config.yaml"
    if frozen.is_file():
        from omegaconf import OmegaConf

        config = OmegaConf.load(frozen)
        if save := OmegaConf.select(config, "checkpoint.save"):
            begun_in = OmegaConf.select(config, "run.output_dir")
            own = begun_in and Path(save).is_relative_to(begun_in)
            return Path(run_dir) / Path(save).relative_to(begun_in) if own else Path(save)
    return Path(run_dir) / "checkpoints"


def read_info(folder: Path) -> CheckpointInfo:
    """Parse the marker; raises `Failure` naming it when it is damaged."""
    path = folder / MARKER
    try:
        return CheckpointInfo(**read_json(path))
    except (ValueError, TypeError) as error:
        raise Failure(_damaged(folder, f"{path} cannot be read ({error})")) from error


def content_of(folder: Path) -> str:
    """What tells one content of a checkpoint folder from another: sha256 over the checksums of its files or, where none
    are recorded (Megatron's shards are too large), over the marker, whose elapsed_s no two trainings have in common."""
    files = read_info(folder).files
    told = json.dumps(sorted((name, entry["sha256"]) for name, entry in files.items()))
    return hashlib.sha256(told.encode() if files else (folder / MARKER).read_bytes()).hexdigest()


def verify(folder: Path, info: CheckpointInfo) -> None:
    """Compare size and sha256 of every file with the marker; raises `Failure` naming each file that differs."""
    problems = []
    for name, expected in info.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{path} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}")
        elif _sha256(path) != expected["sha256"]:
            problems.append(f"{path} has changed (sha256 differs)")
    if problems:
        raise Failure([_damaged(folder, p) for p in problems])


def _damaged(folder: Path, what: str) -> str:
    return f"Checkpoint damaged: {what}. Remove {folder} to go on from the one before it, or afresh if there is none."


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class CheckpointWriter:
    """Writes checkpoints under `root`. Every rank calls `save`; `barrier` waits for all of them."""

    def __init__(self, root: Path, keep_last: int, rank: int, barrier: Callable[[], None]) -> None:
        self.root, self.keep_last, self.rank, self.barrier = root, keep_last, rank, barrier

    def clean(self) -> None:
        """Remove what a killed save or removal left behind; on rank 0, at the start of a run."""
        if self.rank == 0 and self.root.is_dir():
            for path in self.root.glob("iter_*.tmp"):
                shutil.rmtree(path)

    def save(self, info: CheckpointInfo, state: Any, rng: Any, extra: Callable[[Path], None] | None = None) -> Path:
        """Write one checkpoint, drop those beyond `keep_last`, return its folder.

        `extra(folder)` may add files on rank 0. Raises `Failure` when it cannot be written.
        """
        final = self.root / folder_name(info.iteration)
        temp = final.with_name(final.name + ".tmp")
        try:
            if self.rank == 0:
                shutil.rmtree(temp, ignore_errors=True)
                temp.mkdir(parents=True)
            self.barrier()
            _write(temp / f"rng_{self.rank:05d}.pt", rng)
            if self.rank == 0:
                _write(temp / "state.pt", state)
                if extra is not None:
                    extra(temp)
            self.barrier()
            if self.rank == 0:
                self._finish(temp, final, info)
        except OSError as error:
            if self.rank == 0:
                shutil.rmtree(temp, ignore_errors=True)  # it may be what fills the disk
            raise Failure(
                f"Cannot write checkpoint {final}: {error}. Earlier checkpoints are untouched; make room and start the "
                f"run again."
            ) from error
        self.barrier()
        return final

    def _finish(self, temp: Path, final: Path, info: CheckpointInfo) -> None:
        paths = sorted(p for p in temp.rglob("*") if p.is_file())
        files = {str(p.relative_to(temp)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in paths}
        for path in [*paths, *{p.parent for p in paths}]:
            _fsync(path)
        write_json(temp / MARKER, {**asdict(info), "files": files})
        if final.exists():
            self._remove(final)
        temp.rename(final)
        fsync_dir(self.root)
        if self.keep_last > 0:
            for old in [p for p in complete(self.root) if p != final][: -self.keep_last + 1 or None]:
                self._remove(old)

    def _remove(self, folder: Path) -> None:
        """Rename first, so that a half-removed folder is never taken for a checkpoint."""
        doomed = folder.with_name(f"{folder.name}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        fsync_dir(self.root)
        shutil.rmtree(doomed)


def _write(path: Path, value: Any) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(buffer.getbuffer())


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load_state(folder: Path) -> dict[str, Any]:
    """model, optimizer and scheduler state, on the CPU."""
    return _load(folder / "state.pt")


def load_rng(folder: Path, rank: int) -> dict[str, Any] | None:
    """The generators of `rank`, or None (with a warning) when the checkpoint was written by fewer ranks."""
    path = folder / f"rng_{rank:05d}.pt"
    if not path.is_file():
        warn(f"{folder} has no random state for rank {rank}; it is seeded anew.")
        return None
    return _load(path)


def _load(path: Path) -> dict[str, Any]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
