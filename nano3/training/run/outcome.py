"""How a run ended, as both backends report it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nano3.utils.errors import RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE

# Called on rank 0 with (iteration, checkpoint folder) after a checkpoint is complete.
SaveHook = Callable[[int, Path], None]


def no_hook(iteration: int, folder: Path) -> None:
    """Do nothing; the default `SaveHook`."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    `finished`: train.train_iters is reached. `stopped`: saved after a signal or a limit, named in `reason`.
    `rolled back`: the guard wants the run to start again from its newest checkpoint.
    """

    status: Literal["finished", "stopped", "rolled back"]
    iteration: int
    checkpoint: Path | None
    reason: str = ""

    @property
    def exit_code(self) -> int:
        """0 for a finished run, 75 (restart to continue) for a stopped one, 77 for one that is rolled back."""
        return {"finished": 0, "stopped": RESTART_EXIT_CODE, "rolled back": ROLLBACK_EXIT_CODE}[self.status]
