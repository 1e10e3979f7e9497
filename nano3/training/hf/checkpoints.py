"""Write and load checkpoints of backend=transformers. A checkpoint is written completely or not at all.

    checkpoints/iter_0000100/
      state.pt         model, optimizer, scheduler (torch.save)
      rng_00000.pt     random number generators of each rank
      hf/              only in the last one of a run: the model for transformers' from_pretrained, with its tokenizer
      checkpoint.json  written last: counters, identity of the run, versions, size and checksum of every file

A save fills `iter_0000100.tmp` and renames it. torch is imported only where states are written or read.
"""

import io
import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from nano3.data.dataset.checksum import Checksum
from nano3.training.run.checkpoints import CheckpointInfo, folder_name, write_checkpoint_info
from nano3.training.run.failed_saves import SaveError
from nano3.training.run.sound_checkpoints import describe_files, prune
from nano3.utils.console import warn
from nano3.utils.errors import Failure
from nano3.utils.files import fsync_dir

# Names of a checkpoint that is being written or removed; other folders are not nano3's.
_OWN_TEMP = re.compile(r"iter_\d{7,}(\.old)?\.tmp")


class CheckpointWriter:
    """Writes checkpoints in `root`. Every rank calls `save`; `any_rank` exchanges a flag and waits for all ranks."""

    def __init__(self, root: Path, keep_last: int, rank: int, any_rank: Callable[[bool], bool]) -> None:
        self.root, self.keep_last, self.rank, self.any_rank = root, keep_last, rank, any_rank

    def clean(self) -> None:
        """Remove incomplete folders of an interrupted save or removal. Only rank 0 acts."""
        if self.rank == 0 and self.root.is_dir():
            for path in self.root.glob("iter_*.tmp"):
                if _OWN_TEMP.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)

    def save(self, info: CheckpointInfo, state: Any, rng: Any, extra: Callable[[Path], None] | None = None) -> Path:
        """Write one checkpoint, remove those beyond `keep_last`, and return its folder.

        Args:
            info: The contents of checkpoint.json, without `files`.
            state: Model, optimizer and scheduler state; written by rank 0.
            rng: Random states of this rank.
            extra: Adds files to the folder; called on rank 0.

        Raises:
            SaveError: A rank could not write its part; raised on all ranks.
        """
        final = self.root / folder_name(info.iteration)
        temp = final.with_name(final.name + ".tmp")
        sums: dict[str, str] = {}  # of what was to be written, so that a write that changes it is found
        steps: tuple[Callable[[], None], ...] = (
            lambda: self._make(temp),
            lambda: self._fill(temp, sums, state, rng, extra),
            lambda: self._finish(temp, final, info, sums),
        )
        for step in steps:
            error = _write_error(step)
            if self.any_rank(error is not None):
                break
        else:
            return final
        if self.rank == 0:
            shutil.rmtree(temp, ignore_errors=True)  # it may be what fills the disk
        raise SaveError(
            f"Cannot write checkpoint {final}: {error or 'another rank failed, see its log'}. Earlier checkpoints are "
            f"untouched. Free disk space or repair the disk."
        ) from error

    def _make(self, temp: Path) -> None:
        if self.rank == 0:
            shutil.rmtree(temp, ignore_errors=True)
            temp.mkdir(parents=True)

    def _fill(
        self, temp: Path, sums: dict[str, str], state: Any, rng: Any, extra: Callable[[Path], None] | None
    ) -> None:
        name = f"rng_{self.rank:05d}.pt"
        sums[name] = _write(temp / name, rng)
        if self.rank == 0:
            sums["state.pt"] = _write(temp / "state.pt", state)
            if extra is not None:
                extra(temp)

    def _finish(self, temp: Path, final: Path, info: CheckpointInfo, sums: dict[str, str]) -> None:
        if self.rank != 0:
            return
        files = describe_files(temp, sums)
        for path in [*(temp / name for name in files), *{(temp / name).parent for name in files}]:
            _fsync(path)
        write_checkpoint_info(temp, replace(info, files=files))
        if final.exists():
            self._remove(final)
        temp.rename(final)
        fsync_dir(self.root)
        try:
            prune(self.root, self.keep_last, final, self._remove)
        except OSError as error:
            warn(f"{self.root}: an old checkpoint could not be removed: {error}")

    def _remove(self, folder: Path) -> None:
        """Rename the folder before removing it, so that a partly removed one never counts as a checkpoint."""
        trash = folder.with_name(f"{folder.name}.old.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        fsync_dir(self.root)
        shutil.rmtree(trash)


def _write_error(step: Callable[[], None]) -> Exception | None:
    """Call `step` and return the error of a disk that it raised, if any."""
    try:
        step()
    except OSError as error:
        return error
    except Exception as error:
        if type(error).__name__ == "SafetensorError" and "IoError" in str(error):  # has no errno
            return error
        raise
    return None


def _write(path: Path, value: Any) -> str:
    """Write a state and return the checksum of its bytes, computed in another thread meanwhile."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    # Not getbuffer: Python 3.12.1 crashes when it collects a BytesIO whose view is part of the same cycle, which the
    # traceback of a failed write makes. BytesIO shares this value without a copy.
    content = buffer.getvalue()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(lambda: Checksum(content).hexdigest())
        path.write_bytes(content)
        return digest.result()


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
    """Read a file of torch.save; raise Failure if it is not one."""
    import torch

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Failure(f"{path}: not a file of torch.save ({str(error).partition(chr(10))[0]})") from error
    return state
