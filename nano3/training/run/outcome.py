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

    def is_complete(self, exit_iteration: int | None) -> bool:
        """Return whether every iteration that this command asks for is done.

        Args:
            exit_iteration: train.exit_iteration.
        """
        reached = exit_iteration is not None and self.iteration >= exit_iteration
        return self.status == "finished" or (self.status == "stopped" and reached)

    def exit_code(self, exit_iteration: int | None = None) -> int:
        """Return the exit code of the process.

        0 if every iteration is done, 75 (restart to continue) if the run was stopped before, 77 if it is rolled back.

        Args:
            exit_iteration: train.exit_iteration.
        """
        if self.is_complete(exit_iteration):
            return 0
        return ROLLBACK_EXIT_CODE if self.status == "rolled back" else RESTART_EXIT_CODE
