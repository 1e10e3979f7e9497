"""Write and load checkpoints of backend=transformers. A checkpoint is written completely or not at all.

    checkpoints/iter_0000100/
      state.pt         model, optimizer, scheduler (torch.save)
      rng_00000.pt     random number generators of each rank
      hf/              only in the last one of a run: the model for transformers' from_pretrained, with its tokenizer
      checkpoint.json  written last: counters, identity of the run, versions, size and sha256 of every file

A save fills `iter_0000100.tmp` and renames it. torch is imported only where states are written or read.
"""

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nano3.training.run.checkpoints import MARKER, CheckpointInfo, complete_checkpoints, file_sha256, folder_name
from nano3.utils.console import warn
from nano3.utils.errors import Failure
from nano3.utils.files import fsync_dir, write_json


class CheckpointWriter:
    """Writes checkpoints in `root`. Every rank calls `save`; `barrier` waits for all ranks."""

    def __init__(self, root: Path, keep_last: int, rank: int, barrier: Callable[[], None]) -> None:
        self.root, self.keep_last, self.rank, self.barrier = root, keep_last, rank, barrier

    def clean(self) -> None:
        """Remove incomplete folders of an interrupted save or removal. Only rank 0 acts."""
        if self.rank == 0 and self.root.is_dir():
            for path in self.root.glob("iter_*.tmp"):
                shutil.rmtree(path)

    def save(self, info: CheckpointInfo, state: Any, rng: Any, extra: Callable[[Path], None] | None = None) -> Path:
        """Write one checkpoint, remove those beyond `keep_last`, and return its folder.

        Args:
            info: The contents of checkpoint.json, without `files`.
            state: Model, optimizer and scheduler state; written by rank 0.
            rng: Random states of this rank.
            extra: Adds files to the folder; called on rank 0.

        Raises:
            Failure: The checkpoint cannot be written.
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
                f"Cannot write checkpoint {final}: {error}. Earlier checkpoints are untouched. Free disk space and "
                f"start the run again."
            ) from error
        self.barrier()
        return final

    def _finish(self, temp: Path, final: Path, info: CheckpointInfo) -> None:
        paths = sorted(p for p in temp.rglob("*") if p.is_file())
        files = {str(p.relative_to(temp)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in paths}
        for path in [*paths, *{p.parent for p in paths}]:
            _fsync(path)
        write_json(temp / MARKER, {**asdict(info), "files": files})
        if final.exists():
            self._remove(final)
        temp.rename(final)
        fsync_dir(self.root)
        if self.keep_last > 0:
            for old in [p for p in complete_checkpoints(self.root) if p != final][: -self.keep_last + 1 or None]:
                self._remove(old)

    def _remove(self, folder: Path) -> None:
        """Rename the folder before removing it, so that a partly removed one never counts as a checkpoint."""
        trash = folder.with_name(f"{folder.name}.old.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        fsync_dir(self.root)
        shutil.rmtree(trash)


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
    """Return the model, optimizer and scheduler state, on the CPU."""
    return _load(folder / "state.pt")


def load_rng(folder: Path, rank: int) -> dict[str, Any] | None:
    """Return the random states of a rank, or None with a warning if fewer ranks wrote the checkpoint.

    Args:
        folder: The checkpoint folder.
        rank: The rank of this process.
    """
    path = folder / f"rng_{rank:05d}.pt"
    if not path.is_file():
        warn(f"{folder} has no random state for rank {rank}; it is seeded again.")
        return None
    return _load(path)


def _load(path: Path) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
