"""The process of a command: its start, its output, and how it exits. All commands share this; it imports no Hydra."""

import logging
import signal
import sys
from pathlib import Path
from typing import NoReturn

from nano3.utils.console import (
    discard,
    flush_output,
    lost_output,
    need_output,
    prepare_output,
    print_problems,
    warn,
    write,
)
from nano3.utils.errors import Nano3Error, UserError


def initialize() -> None:
    """Prepare the process of an entry point: its output, and the handling of Ctrl-C."""
    prepare_output()
    logging.raiseExceptions = False  # no traceback for each line that Hydra cannot log, as in `--info | head`
    enable_keyboard_interrupt()


def check_working_folder() -> None:
    """Raise UserError if the working folder was deleted: relative paths, and Hydra, need it."""
    try:
        Path.cwd()
    except OSError as error:
        raise UserError("The current folder has been deleted. Change to another one (cd FOLDER).") from error


def enable_keyboard_interrupt() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again; nano3/__init__.py disables it while modules are imported."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def print_and_exit(text: str) -> NoReturn:
    """Print a text and exit with code 0."""
    need_output()
    write(f"{text}\n")
    sys.exit(0)


def exit_with_code(code: int) -> NoReturn:
    """Exit with the code of finished work, even if its output was lost."""
    flush_output()
    error = lost_output()
    if error and not isinstance(error, BrokenPipeError):
        warn(f"part of the output could not be written: {error.strerror}")
    sys.exit(code)


def exit_on_broken_pipe() -> NoReturn:
    """Exit with code 1 because the reader of the output, such as `head`, has closed it."""
    discard(sys.stdout)
    sys.exit(1)


def exit_with_error(error: Nano3Error) -> NoReturn:
    """Print every problem to stderr and exit with the error's exit code."""
    print_problems(error.problems)
    try:
        sys.stdout.flush()
    except OSError:  # for example a full disk; Python would fail again at exit
        discard(sys.stdout)
    sys.exit(error.exit_code)
