"""The two kinds of errors that end nano3 without a traceback.

A `UserError` is a mistake that the user can correct on the command line or in a file. A `Failure` is any other foreseen
problem: a damaged file, a full disk, a lost worker. Unforeseen errors keep their traceback.
"""

import difflib
from collections.abc import Collection, Iterable, Sequence

# Exit code of a run that saved a checkpoint and stopped early, to be started again: EX_TEMPFAIL of sysexits.h.
RESTART_EXIT_CODE = 75
# Exit code of a rank that made no progress (nano3.training.run.hang_watch): EX_PROTOCOL of sysexits.h.
HANG_EXIT_CODE = 76
# Exit code of a rank that the launcher must start again at once, where it is: the guard has rolled the run back.
ROLLBACK_EXIT_CODE = 77
# Exit code after Ctrl-C: 128 + SIGINT, as in shells.
INTERRUPTED_EXIT_CODE = 130
MAX_LISTED = 30  # words that a message lists


class Nano3Error(Exception):
    """Base class of both. `problems` holds one message per problem, so that all are reported at once."""

    exit_code = 1

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["Nano3Error"], tuple[list[str]]]:
        """Keep `problems` when the error is pickled."""
        return type(self), (self.problems,)


class UserError(Nano3Error):
    """A mistake of the user; exit code 2.

    The message says what is wrong, where, what is allowed and what to type instead.
    """

    exit_code = 2


class Failure(Nano3Error):  # noqa: N818  a UserError is an error of the user, a Failure is not
    """Work that could not be done; exit code 1. The message names the file, the row and the fix."""

    exit_code = 1


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a process that an exception ends."""
    if isinstance(error, Nano3Error):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED_EXIT_CODE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def is_failure(exit_code: int) -> bool:
    """Return whether an exit code is that of a failure: not of a run that has ended or is to be started again."""
    return exit_code not in (0, RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE)


def common_kind(errors: Iterable[Nano3Error]) -> type[Nano3Error]:
    """Return the class of an error that stands for several: `UserError` if all are, else that of another one."""
    return next((type(error) for error in errors if not isinstance(error, UserError)), UserError)


def combine_errors(errors: Collection[Nano3Error]) -> Nano3Error:
    """Return one error of the common kind, with each problem once."""
    return common_kind(errors)(dict.fromkeys(problem for error in errors for problem in error.problems))


def nearest(word: str, allowed: Sequence[str]) -> str | None:
    """Return the member of `allowed` that is most similar to `word`, or None if none is similar."""
    found = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return found[0] if found else None


def nearest_hint(word: str, allowed: Sequence[str]) -> str:
    """Return " Did you mean 'X'?" if a member of `allowed` is similar to `word`, else ""."""
    near = nearest(word, allowed)
    return f" Did you mean {near!r}?" if near else ""


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """Return `nearest_hint`, or a list of (some) members of `allowed` if none is similar."""
    return nearest_hint(word, allowed) or f" Allowed: {list_some(sorted(allowed))}."


def list_some(names: Iterable[object], most: int = MAX_LISTED) -> str:
    """Return names for a message, "a, b, c and 99 more"; "none" without any.

    Args:
        names: The names.
        most: How many to list.
    """
    found = list(map(str, names))
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return f"{', '.join(found[:most])}{more}" or "none"
