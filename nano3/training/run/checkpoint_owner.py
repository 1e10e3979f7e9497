"""Which run owns a checkpoint folder.

`checkpoint.save` may be any folder, and two runs must not save in the same one: the second would resume from the
checkpoints of the first. A file in it, run.json, names the run folder. A checkpoint folder inside a run folder belongs
to that run, also after a move.
"""

import os
from pathlib import Path

import msgspec

from nano3.utils.errors import UserError
from nano3.utils.files import unwritable_reason
from nano3.utils.records import read_record, write_record

OWNER_FILE = "run.json"


class _OwnerFile(msgspec.Struct):
    run_dir: str


def owner_of(save: Path) -> Path | None:
    """Return the run folder that the checkpoints in `save` belong to, or None if it is not recorded.

    Raises:
        DamagedRecordError: The record is damaged.
    """
    fix = "Remove it: the next run that saves there becomes its owner."
    try:
        return Path(read_record(save / OWNER_FILE, _OwnerFile, fix).run_dir)
    except FileNotFoundError:
        return None


def owner_problem(save: Path, run_dir: Path) -> str | None:
    """Return why the run in `run_dir` may not save in `save`, or None."""
    owner = owner_of(save)
    if owner is None or save.is_relative_to(run_dir) or os.path.realpath(owner) == os.path.realpath(run_dir):
        return None
    return (
        f"checkpoint.save={save} holds the checkpoints of another run, {owner}. Choose another checkpoint.save, or "
        f"leave it out; to start from that run's weights: checkpoint.load={save}. If this run was moved from "
        f"{owner}, remove {save / OWNER_FILE}."
    )


def claim_dir(save: Path, run_dir: Path) -> None:
    """Record that the checkpoints in `save` belong to the run in `run_dir`. Call it on rank 0, before any save.

    Args:
        save: The checkpoint folder.
        run_dir: The run folder.

    Raises:
        UserError: The folder belongs to another run, or cannot be written.
    """
    if problem := owner_problem(save, run_dir):
        raise UserError(problem)
    if why := unwritable_reason(save):
        raise UserError(f"checkpoint.save={save}: cannot be written: {why}. Choose another checkpoint.save.")
    if owner_of(save) != run_dir:
        write_record(save / OWNER_FILE, {"run_dir": str(run_dir)})
