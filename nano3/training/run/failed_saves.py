"""What a failed save leads to: a report and another attempt at the next interval, or the end of the run."""

from nano3.utils.console import is_rank_zero, warn
from nano3.utils.errors import Failure


class SaveError(Failure):
    """A checkpoint could not be written; raised on every rank. Earlier checkpoints are untouched."""


class FailedSaves:
    """Counts failed saves in a row. Every rank has one, and they agree."""

    def __init__(self, most: int) -> None:
        """Start with none.

        Args:
            most: The number in a row that ends the run (checkpoint.max_failed_saves).
        """
        self.most, self.count = most, 0

    def add(self, error: SaveError, final: bool) -> None:
        """Report a failed save, or raise it.

        Args:
            error: The failure.
            final: Whether no further save follows in this start.

        Raises:
            SaveError: The save was final, or the last of `most` in a row.
        """
        self.count += 1
        if final or self.count >= self.most:
            again = "" if final else f" {self.count} saves in a row have failed (checkpoint.max_failed_saves)."
            raise SaveError([f"{problem}{again} Then run the same command again." for problem in error.problems])
        if is_rank_zero():
            warn(
                f"SAVE FAILED ({self.count} of {self.most} in a row end the run): {error} Training continues; the next "
                "checkpoint is taken at the next interval."
            )

    def reset(self) -> None:
        """Count from zero after a save that succeeded."""
        self.count = 0
