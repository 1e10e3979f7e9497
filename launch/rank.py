"""`python -m launch.rank [--part INDEX COUNT] module:function ARGS...`: one rank, or one task of an array.

Its exit code is what the function returns.

A `Nano3Error` is told without a traceback and ends with its own code; any other exception with its traceback and 1.
Until the entry installs its own handlers, SIGTERM and SIGUSR2 end the rank with 75: nothing is lost yet, start it
again.
"""

import importlib
import signal
import sys
from collections.abc import Callable
from types import FrameType

from launch.job import AGAIN
from nano3.utils.console import print_problems
from nano3.utils.errors import Nano3Error, UserError


def resolve(entry: str) -> Callable[..., int | None]:
    """The function that `entry` ("module:function") names."""
    module, _, function = entry.partition(":")
    if not function:
        raise UserError(f"{entry!r} is not an entry. Write it as package.module:function.")
    return getattr(importlib.import_module(module), function)


def call(entry: str, args: tuple[str | int, ...]) -> int:
    """Call the entry here and give its exit code. Exceptions pass."""
    return resolve(entry)(*args) or 0


def _stop_early(signum: int, frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the second of a pair must not break the way out of the first
    print(
        f"launch: {signal.Signals(signum).name} before anything was done: to be started again",
        file=sys.stderr,
        flush=True,
    )
    raise SystemExit(AGAIN)


def run_rank(entry: str, args: tuple[str | int, ...]) -> int:
    """Call the entry as a process does: signals, errors, exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _stop_early)
    try:
        return call(entry, args)
    except Nano3Error as error:
        print_problems(error.problems)
        return error.exit_code
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def main() -> int:
    """The command line."""
    words: list[str] = sys.argv[1:]
    part: tuple[int, ...] = ()
    if words[0] == "--part":
        part, words = (int(words[1]), int(words[2])), words[3:]
    return run_rank(words[0], (*words[1:], *part))


if __name__ == "__main__":
    sys.exit(main())
