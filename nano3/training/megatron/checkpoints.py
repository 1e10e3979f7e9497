"""Checkpoint folders of backend=megatron: which one a run resumes from, and which ones nano3 may remove.

A run's checkpoint folder can hold three kinds of iteration folders: complete ones with a checkpoint.json, those of an
interrupted save (listed in begun.json), and foreign ones, written by Megatron-Bridge without nano3. nano3 removes only
the second kind.
"""

import re
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from threading import Thread
from typing import Annotated

import msgspec

from nano3.training.run.checkpoints import (
    MARKER,
    CheckpointInfo,
    complete_checkpoints,
    iteration_folders,
    iteration_of,
    latest_checkpoint,
    write_checkpoint_info,
)
from nano3.training.run.resume import CheckpointSearch
from nano3.training.run.sound_checkpoints import describe_files, newest_sound, prune
from nano3.utils.console import say, warn
from nano3.utils.errors import UserError, list_some
from nano3.utils.records import read_record, write_record

# In the checkpoint folder: the iterations that nano3 was about to save, written before each save.
LEDGER = "begun.json"
# Megatron-Bridge's record of the newest complete iteration.
TRACKER = "latest_checkpointed_iteration.txt"
# Damaged checkpoints that nano3 set aside.
_ASIDE = re.compile(r"iter_\d{7,}\.damaged(\.\d+)?")


class _Ledger(msgspec.Struct):
    iterations: list[Annotated[int, msgspec.Meta(ge=0)]]


class MegatronSearch(CheckpointSearch):
    """Finds checkpoints of nano3 and of Megatron-Bridge without nano3; the folder's name holds the iteration."""

    def newest_own(self, save: Path) -> Path | None:
        """Return the newest checkpoint in `save`, whichever of the two wrote it.

        Raises:
            UserError: A foreign checkpoint is newer than nano3's, or the only one there is incomplete.
        """
        marked, others = newest_sound(save, read_files=False), foreign_folders(save)
        complete = [p for p in others if _is_complete(p)]
        if marked is not None:
            if complete and iteration_of(complete[-1]) > iteration_of(marked):
                raise UserError(
                    f"checkpoint.save={save}: {complete[-1].name} is newer than {marked.name} and was not written by "
                    "nano3, so it is unclear which one to resume from. Move one of them away, or choose another "
                    f"checkpoint.save (and checkpoint.load={complete[-1]} to start from that one)."
                )
            return marked
        if complete:
            return complete[-1]
        if others:
            raise UserError(
                f"checkpoint.save={save} holds {others[-1].name}, which nano3 did not write and which is not a "
                "complete checkpoint. Choose another checkpoint.save, or move it away."
            )
        return None

    def newest_in(self, load: Path) -> Path | None:
        """Return the checkpoint that checkpoint.load names: `load` itself, or the newest one in it."""
        if (load / MARKER).is_file() or (load / "run_config.yaml").is_file():
            return load
        complete = [p for p in iteration_folders(load) if _is_complete(p)]
        return latest_checkpoint(load) or (complete[-1] if complete else None)

    def iteration(self, folder: Path) -> int:
        """Return the iteration in the name of a checkpoint folder.

        Raises:
            UserError: The folder is not named like a checkpoint.
        """
        try:
            return iteration_of(folder)
        except ValueError:
            raise UserError(
                f"checkpoint.keep_iteration=true: the name of {folder} has no iteration (iter_0000100 would)."
            ) from None


def _is_complete(folder: Path) -> bool:
    """Return whether Megatron-Bridge finished this checkpoint.

    It writes the metadata last, then names the iteration in its tracker file.
    """
    if not ((folder / ".metadata").is_file() and (folder / "run_config.yaml").is_file()):
        return False
    tracker = folder.parent / TRACKER
    try:
        return not tracker.is_file() or int(tracker.read_text()) >= iteration_of(folder)
    except ValueError:
        return False


def begun_iterations(save: Path) -> set[int]:
    """Return the iterations in `save` whose save nano3 began.

    Raises:
        DamagedRecordError: The record is damaged.
    """
    fix = "Remove it: an incomplete checkpoint of an interrupted save then stays in its folder."
    try:
        return set(read_record(save / LEDGER, _Ledger, fix).iterations)
    except FileNotFoundError:
        return set()


def record_begun(save: Path, iteration: int) -> None:
    """Record that nano3 is about to save `iteration`. Call it on rank 0, before the save."""
    present = {iteration_of(p) for p in iteration_folders(save)}
    write_record(save / LEDGER, {"iterations": sorted((begun_iterations(save) & present) | {iteration})})


def foreign_folders(save: Path) -> list[Path]:
    """Return the iteration folders in `save` that nano3 did not write, oldest first."""
    own = begun_iterations(save)
    return [p for p in iteration_folders(save) if not (p / MARKER).is_file() and iteration_of(p) not in own]


def remove_unfinished(save: Path) -> None:
    """Remove what an interrupted save of nano3 left; it would count as one of the kept checkpoints."""
    marked, own = complete_checkpoints(save), begun_iterations(save)
    newest = iteration_of(marked[-1]) if marked else -1
    for folder in iteration_folders(save):
        iteration = iteration_of(folder)
        if iteration in own and iteration > newest and not (folder / MARKER).is_file():
            say(f"removing {folder}, which an interrupted save left unfinished")
            rmtree(folder)


def may_prune(save: Path) -> bool:
    """Return whether old checkpoints in `save` may be removed; warn if not.

    In a folder with checkpoints of other runs or programs, also below it, nothing is removed: what belongs together
    there is not known.
    """
    own = set(iteration_folders(save)) - set(foreign_folders(save))
    others = sorted(p for p in save.rglob("iter_*") if p not in own and not _ASIDE.fullmatch(p.name))
    if others:
        names = list_some((p.relative_to(save) for p in others), 4)
        warn(
            f"{save} holds checkpoints that nano3 did not write for this run ({names}): nothing is removed there, and "
            "checkpoint.keep_last has no effect."
        )
    return not others


class CheckpointFinisher:
    """Completes a marked checkpoint in a background thread, while the training goes on.

    It reads the files that the writers have left, adds their checksums to checkpoint.json, and then removes old
    checkpoints. Megatron-Bridge's own removal is off: it does not know which checkpoints are sound, and fails on a
    folder such as iter_0000012.damaged.
    """

    def __init__(self, save: Path, keep_last: int) -> None:
        """Prepare for the checkpoints in `save`.

        Args:
            save: The checkpoint folder of the run.
            keep_last: Number of checkpoints to keep; 0 keeps all.
        """
        self.save, self.keep_last = save, keep_last
        self._thread: Thread | None = None

    def start(self, folder: Path, info: CheckpointInfo) -> None:
        """Begin with a checkpoint, after the one before is complete.

        Args:
            folder: The checkpoint folder, marked as complete.
            info: Its checkpoint.json.
        """
        self.wait()
        self._thread = Thread(target=self._finish, args=(folder, info), name="checkpoint checksums")
        self._thread.start()

    def wait(self) -> None:
        """Wait until that checkpoint is complete. Call it before the process ends."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _finish(self, folder: Path, info: CheckpointInfo) -> None:
        try:
            write_checkpoint_info(folder, replace(info, files=describe_files(folder)))
            prune(self.save, self.keep_last, folder, _remove, read_files=False)
        except OSError as error:
            warn(f"{folder}: its checksums could not be recorded, or an old checkpoint not be removed: {error}")


def _remove(folder: Path) -> None:
    (folder / MARKER).unlink()  # first, so that a partly removed folder does not count as a checkpoint
    rmtree(folder)
