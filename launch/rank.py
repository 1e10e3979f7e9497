"""Run one rank, or one task of an array: `python -m launch.rank [--array-task INDEX COUNT] module:function ARGS...`.

The process exits with the code that the function returns. A `Nano3Error` is printed without a traceback and exits with
its own code; any other exception is printed with its traceback and exits with 1. Until the entry installs its own
handlers, SIGTERM and SIGUSR2 end the rank with 75: nothing has been done yet, so the job can simply be restarted.
"""

import importlib
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import cast

from nano3.utils.console import flush_output, prepare_output, print_problems, write
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, RESTART_EXIT_CODE, Nano3Error, UserError


def resolve_entry(entry: str) -> Callable[..., int | None]:
    """Import and return the function named by `entry`.

    Args:
        entry: "package.module:function".

    Raises:
        UserError: `entry` has no colon.
    """
    module, _, function = entry.partition(":")
    if not function:
        raise UserError(f"{entry!r} does not name a function. Write it as package.module:function.")
    return cast("Callable[..., int | None]", getattr(importlib.import_module(module), function))


def call_entry(entry: str, args: tuple[str | int, ...]) -> int:
    """Call an entry in this process and return its exit code (0 for None); its exceptions propagate."""
    return resolve_entry(entry)(*args) or 0


def _exit_before_start(signum: int, frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt this exit
    name = signal.Signals(signum).name
    write(f"launch: {name} before the entry started; exiting to be restarted\n", stderr=True)
    raise SystemExit(RESTART_EXIT_CODE)


def run_rank(entry: str, args: tuple[str | int, ...]) -> int:
    """Call an entry as a process of its own does, and return the exit code of the process.

    Installs the early signal handlers and turns SystemExit, KeyboardInterrupt and `Nano3Error` into exit codes.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _exit_before_start)
    try:
        try:
            with translate_disk_errors("standard output"):
                return call_entry(entry, args)
        finally:  # the entry has ended, in success or failure: a stop request must not change its code
            for number in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
    except Nano3Error as error:
        print_problems(error.problems)
        return error.exit_code
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        write(f"{stop.code}\n", stderr=True)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE


def main() -> int:
    """Parse the command line and run the rank."""
    prepare_output()
    words: list[str] = sys.argv[1:]
    array_task: tuple[int, ...] = ()
    if words[0] == "--array-task":
        array_task, words = (int(words[1]), int(words[2])), words[3:]
    code = run_rank(words[0], (*words[1:], *array_task))
    flush_output()
    return code


if __name__ == "__main__":
    sys.exit(main())
