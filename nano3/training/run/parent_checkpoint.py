"""RUN/began.json: the checkpoint of another run that a run started from, if any.

The configuration names only the folder that was searched, and a later start may find another checkpoint there.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from nano3.config import PretrainConfig
from nano3.training.run.checkpoints import iteration_of
from nano3.utils.console import warn
from nano3.utils.records import read_record, write_record

PARENT_FILE = "began.json"


class _ParentFile(msgspec.Struct):
    checkpoint: str | None
    new_phase: bool = False


@dataclass(frozen=True)
class ParentCheckpoint:
    """The checkpoint folder of one iteration, and whether only its weights were taken (`new_phase`)."""

    checkpoint: Path
    new_phase: bool

    @property
    def iteration(self) -> int:
        """Iterations of the schedule that were done before this run's first one."""
        return 0 if self.new_phase else iteration_of(self.checkpoint)


def record_parent(run_dir: Path, checkpoint: Path | None, new_phase: bool) -> None:
    """Record what a run starts from. Call it on rank 0 if the run does not resume from a checkpoint of its own.

    Args:
        run_dir: The run folder.
        checkpoint: The other run's checkpoint; None for a fresh start.
        new_phase: Whether only its weights are taken.
    """
    write_record(run_dir / PARENT_FILE, {"checkpoint": checkpoint and str(checkpoint), "new_phase": new_phase})


def read_parent(run_dir: Path) -> ParentCheckpoint | None:
    """Return what a run started from, or None for a fresh start or a run without began.json.

    Raises:
        DamagedRecordError: The file is damaged.
    """
    try:
        found = read_record(
            Path(run_dir) / PARENT_FILE, _ParentFile, "Remove it: what the run started from is then unknown."
        )
    except FileNotFoundError:
        return None
    return ParentCheckpoint(Path(found.checkpoint), found.new_phase) if found.checkpoint else None


def warn_unused_load(run_dir: Path, config: PretrainConfig, own: Path) -> None:
    """Warn if checkpoint.load is not used because the run has a newer checkpoint of its own.

    Args:
        run_dir: The run folder.
        config: The configuration of the run.
        own: The run's own checkpoint that it resumes from.
    """
    load, save = config.checkpoint.load, own.parent
    if load is None or Path(load).absolute() == save or not (run_dir / PARENT_FILE).is_file():
        return
    parent, given = read_parent(run_dir), Path(load).absolute()
    if parent and given in (parent.checkpoint, parent.checkpoint.parent):
        return
    if given.parent == save:
        instead = f"To go back to it, move the newer checkpoints out of {save}"
    else:
        instead = (
            f"The run started from {parent.checkpoint if parent else 'no checkpoint'}; use another run.name to start "
            "from that one"
        )
    warn(f"checkpoint.load={load} is not used: this run resumes from {own}. {instead}.")
