"""RUN/began.json: the checkpoint of another run that a run began with, if any.

The configuration names the folder in which that was looked for, and later starts may find, or name, another one there.
"""

from dataclasses import dataclass
from pathlib import Path

from nano3.config import PretrainConfig
from nano3.training.run.checkpoints import iteration_of
from nano3.training.run.record import read_state_file
from nano3.utils.console import warn
from nano3.utils.files import write_json

PARENT_FILE = "began.json"


@dataclass(frozen=True)
class ParentCheckpoint:
    """`checkpoint`: the folder of one iteration. `new_phase`: only its weights were taken; iterations began at 1."""

    checkpoint: Path
    new_phase: bool

    @property
    def iteration(self) -> int:
        """What was done before this run's first iteration."""
        return 0 if self.new_phase else iteration_of(self.checkpoint)


def record_parent(run_dir: Path, checkpoint: Path | None, new_phase: bool) -> None:
    """Write down what a run begins with; on rank 0, at a start that does not go on from a checkpoint of its own."""
    write_json(run_dir / PARENT_FILE, {"checkpoint": checkpoint and str(checkpoint), "new_phase": new_phase})


def read_parent(run_dir: Path) -> ParentCheckpoint | None:
    """What a run began with; None for nothing, and for a run that did not write it down. Raises `Failure`."""
    path = Path(run_dir) / PARENT_FILE
    if not path.is_file():
        return None
    found = read_state_file(path, "checkpoint", "it is then not known what the run began with")
    return ParentCheckpoint(Path(found["checkpoint"]), bool(found.get("new_phase"))) if found["checkpoint"] else None


def warn_unused_load(run_dir: Path, config: PretrainConfig, own: Path) -> None:
    """Warn when checkpoint.load of a resume is another one than the run began with: its own checkpoint is newer."""
    load, save = config.checkpoint.load, own.parent
    if load is None or Path(load).absolute() == save or not (run_dir / PARENT_FILE).is_file():
        return
    began, given = read_parent(run_dir), Path(load).absolute()
    if began and given in (began.checkpoint, began.checkpoint.parent):
        return
    if given.parent == save:
        instead = f"To go back there, move what is newer out of {save}"
    else:
        instead = f"The run began with {began.checkpoint if began else 'no checkpoint'}; another run.name begins anew"
    warn(f"checkpoint.load={load} is not used: this run goes on from {own}. {instead}.")
