"""Where a run of backend=megatron starts, and which folders beside its checkpoints are nano3's to remove.

Three kinds of iteration folders lie in the folder that a run saves to: marked ones (checkpoint.json, complete), those
whose save nano3 began and did not finish (the ledger names them), and foreign ones, written by plain Megatron-Bridge or
by anybody else. nano3 removes only the second kind.
"""

from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from nano3.training.run.checkpoints import (
    MARKER,
    complete_checkpoints,
    iteration_folders,
    iteration_of,
    latest_checkpoint,
)
from nano3.training.run.notes import read_note
from nano3.utils.console import say, warn
from nano3.utils.errors import UserError
from nano3.utils.files import write_json

# In the checkpoint folder: the iterations whose save nano3 began, written before the save.
LEDGER = "begun.json"
# Megatron-Bridge's own note of the newest complete iteration.
TRACKER = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True)
class Start:
    """Where a run goes on: `folder` None is a fresh start; `own` tells whether the checkpoint is this run's.

    `new_phase`: only the weights of `folder` are taken; iterations, schedule and data order begin at 0. `drop_old`:
    whether old checkpoints may be removed as checkpoint.keep_last says.
    """

    iteration: int
    folder: Path | None
    own: bool
    new_phase: bool = False
    drop_old: bool = True

    def sentence(self, weights: str | None) -> str:
        """The first line of the log; `weights` is where megatron.checkpoint.pretrained_checkpoint points."""
        if self.folder is None:
            return f"fresh start from the weights of {weights}" if weights else "fresh start"
        if self.new_phase:
            return f"new phase: iteration 0 with the weights of {self.folder}"
        return f"resuming from iteration {self.iteration} of {self.folder}"


def find_start(save: Path, load: str | None, keep_iteration: bool = False) -> Start:
    """The newest complete checkpoint of this run; without one, that of `load`; without either a fresh start.

    `load` may be a run's checkpoint folder, the folder of one iteration, or a Megatron-Bridge checkpoint that nano3
    did not write. Raises `UserError` when `load` is another folder than `save` and holds no checkpoint, or when `save`
    holds somebody else's checkpoints that this run would get in the way of.
    """
    if own := _own_start(save):
        return own
    if load is None or Path(load).absolute() == save:
        return Start(0, None, own=True)
    source = _source(Path(load).absolute())
    if not keep_iteration:
        return Start(0, source, own=False, new_phase=True)
    try:
        return Start(iteration_of(source), source, own=False)
    except ValueError:
        raise UserError(
            f"checkpoint.keep_iteration=true: the name of {source} tells no iteration (iter_0000100 would)."
        ) from None


def _own_start(save: Path) -> Start | None:
    """The newest checkpoint in `save`: nano3's, or a whole one that Megatron-Bridge wrote there without nano3."""
    marked, others = latest_checkpoint(save), foreign(save)
    whole = [p for p in others if _is_whole(p)]
    if marked is not None:
        if whole and iteration_of(whole[-1]) > iteration_of(marked):
            raise UserError(
                f"checkpoint.save={save}: {whole[-1].name} is newer than {marked.name} and was not written by nano3, "
                f"so it is not clear which one is meant. Move one of them away, or choose another checkpoint.save "
                f"(and checkpoint.load={whole[-1]} to start from that one)."
            )
        return Start(iteration_of(marked), marked, own=True)
    if whole:
        return Start(iteration_of(whole[-1]), whole[-1], own=True)
    if others:
        raise UserError(
            f"checkpoint.save={save} holds {others[-1].name}, which nano3 did not write and which is no complete "
            "checkpoint. Choose another checkpoint.save, or move it away."
        )
    return None


def _source(load: Path) -> Path:
    """The folder of one iteration that `load` means."""
    if (load / MARKER).is_file() or (load / "run_config.yaml").is_file():
        return load
    if found := latest_checkpoint(load):
        return found
    whole = [p for p in iteration_folders(load) if _is_whole(p)]
    if not whole:
        raise UserError(
            f"checkpoint.load={load}: there is no complete checkpoint in it. Leave the key out to start afresh."
        )
    return whole[-1]


def _is_whole(folder: Path) -> bool:
    """Whether Megatron-Bridge finished this checkpoint: metadata is written last, then the tracker names it."""
    if not ((folder / ".metadata").is_file() and (folder / "run_config.yaml").is_file()):
        return False
    tracker = folder.parent / TRACKER
    try:
        return not tracker.is_file() or int(tracker.read_text()) >= iteration_of(folder)
    except ValueError:
        return False


def begun(save: Path) -> set[int]:
    """Iterations whose save nano3 began in this folder."""
    path = save / LEDGER
    if not path.is_file():
        return set()
    return set(
        read_note(path, "iterations", "a checkpoint that a kill left half saved then stays where it is")["iterations"]
    )


def note_begun(save: Path, iteration: int) -> None:
    """Write down that nano3 is about to save `iteration`; on rank 0, before the save."""
    there = {iteration_of(p) for p in iteration_folders(save)}
    write_json(save / LEDGER, {"iterations": sorted((begun(save) & there) | {iteration})})


def foreign(save: Path) -> list[Path]:
    """Iteration folders in `save` that nano3 knows nothing of, oldest first."""
    own = begun(save)
    return [p for p in iteration_folders(save) if not (p / MARKER).is_file() and iteration_of(p) not in own]


def remove_unfinished(save: Path) -> None:
    """Remove what a save left that nano3 began and that was killed: it would count as one of the kept checkpoints."""
    marked, own = complete_checkpoints(save), begun(save)
    newest = iteration_of(marked[-1]) if marked else -1
    for folder in iteration_folders(save):
        iteration = iteration_of(folder)
        if iteration in own and iteration > newest and not (folder / MARKER).is_file():
            say(f"removing {folder}, which an interrupted save left unfinished")
            rmtree(folder)


def may_drop_old(save: Path) -> bool:
    """Whether Megatron-Bridge may remove old checkpoints in `save`; tells when it may not.

    It takes everything below `save` that is named iter_* for one of this run's, also in the folders of other runs.
    """
    own = set(iteration_folders(save)) - set(foreign(save))
    others = sorted(p for p in save.rglob("iter_*") if p not in own)
    if others:
        names = ", ".join(str(p.relative_to(save)) for p in others[:4]) + (", …" if len(others) > 4 else "")
        warn(
            f"{save} holds checkpoints that nano3 did not write for this run ({names}): nothing is removed there, and "
            "checkpoint.keep_last has no effect."
        )
    return not others
