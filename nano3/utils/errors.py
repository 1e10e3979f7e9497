"""The two ways in which nano3 ends badly, and how both are told.

A `UserError` is something the person at the keyboard can mend by typing something else; a `Failure` is everything else
that nano3 foresees (a damaged file, a full disk, a lost worker). Neither shows a traceback; what is unforeseen does.
"""

import difflib
from collections.abc import Iterable, Sequence

# Exit code of a run that saved and stopped before its end: start it again. EX_TEMPFAIL of sysexits.h.
RESTART_EXIT_CODE = 75
# Exit code after Ctrl-C, as shells have it.
INTERRUPTED_EXIT_CODE = 130


class Nano3Error(Exception):
    """Base of both. `problems` holds one sentence group per problem, so that all of them are told at once."""

    exit_code = 1

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["Nano3Error"], tuple[list[str]]]:
        """Keep `problems` when the error crosses a process boundary."""
        return type(self), (self.problems,)


class UserError(Nano3Error):
    """What was typed or pointed at is wrong. Exit code 2. Say what, where, what is allowed, what to type instead."""

    exit_code = 2


class Failure(Nano3Error):
    """The work could not be done. Exit code 1. Name the file, the row and the fix."""

    exit_code = 1


def nearest(word: str, allowed: Sequence[str]) -> str | None:
    """The member of `allowed` that `word` was probably meant to be, or None."""
    found = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """' Did you mean X?' when something is near, else the list of what is allowed."""
    near = nearest(word, allowed)
    return f" Did you mean {near!r}?" if near else f" Allowed: {', '.join(sorted(allowed))}."
