"""Whose checkpoints a folder holds. `checkpoint.save` may be any folder, and two runs must not save into the same one:
the second would take the first one's checkpoints for its own.

A note in it, run.json, names the run folder. What lies in a run's own folder is its own, wherever that was moved to.
"""

import os
from pathlib import Path

from nano3.training.run.record import read_state_file
from nano3.utils.errors import UserError
from nano3.utils.files import unwritable_reason, write_json

OWNER_FILE = "run.json"


def owner_of(save: Path) -> Path | None:
    """The run folder whose checkpoints lie in `save`; None when nobody has said so."""
    note = save / OWNER_FILE
    if not note.is_file():
        return None
    return Path(
        read_state_file(note, "run_dir", "the next start that saves there writes it again, in its own name")["run_dir"]
    )


def owner_problem(save: Path, run_dir: Path) -> str | None:
    """Why the run in `run_dir` may not save in `save`, or None."""
    owner = owner_of(save)
    if owner is None or save.is_relative_to(run_dir) or os.path.realpath(owner) == os.path.realpath(run_dir):
        return None
    return (
        f"checkpoint.save={save} holds the checkpoints of another run, {owner}. Choose another checkpoint.save, or "
        f"leave it out; to start from that run's weights: checkpoint.load={save}. If {owner} is an old place of this "
        f"run, remove {save / OWNER_FILE}."
    )


def claim_dir(save: Path, run_dir: Path) -> None:
    """Note that the checkpoints in `save` are those of the run in `run_dir`; on rank 0, before anything is saved.

    Raises `UserError` when they are another run's, or when nothing can be written there.
    """
    if problem := owner_problem(save, run_dir):
        raise UserError(problem)
    if why := unwritable_reason(save):
        raise UserError(f"checkpoint.save={save}: cannot be written: {why}. Choose another checkpoint.save.")
    if owner_of(save) != run_dir:
        write_json(save / OWNER_FILE, {"run_dir": str(run_dir)})
