"""The log of one rank: RUN/logs/rank_N.log holds everything that the rank prints.

nano3's own lines also go to stdout and stderr, where a person reads them. What libraries print goes to the log alone:
Megatron's configuration, index builders, warnings. File descriptors are redirected, so output of C++ code and of child
processes is in the log as well. Starts are appended to the log, each under a line with its time.

While the disk is full, the log loses lines and then goes on; a `print` of a library does not end the run.
"""

import contextlib
import ctypes
import os
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from nano3.utils.console import Gap, console_streams, discard_buffered, printable_text, write_lost
from nano3.utils.disk_errors import DISK_FAULTS
from nano3.utils.errors import Failure, Nano3Error

# Lines of the log that an error shows, and how many bytes they are looked for in.
TAIL_LINES, _TAIL_BYTES = 15, 1 << 15
# How many of these lines belong to an error before them.
_ERROR_LINES = 4
# The line of a traceback that names the error; with torchrun, after the rank.
_ERROR_LINE = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception): ")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def log_path(run_dir: Path, rank: int) -> Path:
    """Return the log of a rank."""
    return Path(run_dir) / "logs" / f"rank_{rank}.log"


class LogFile:
    """The log for nano3's own lines. If the disk is full, that is said once, and the run continues without them."""

    def __init__(self, path: Path, console: IO[str]) -> None:
        self._path, self._console, self._failed = path, console, False
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> None:
        """Write a text, which is in the file after `flush`."""
        with self._warn_once():
            self._file.write(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._warn_once():
            self._file.flush()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        with self._warn_once():
            self._file.close()

    @contextlib.contextmanager
    def _warn_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._failed:
                return
            self._failed = True
            with contextlib.suppress(OSError):
                self._console.write(f"warning: {self._path} lacks lines of this rank: {error.strerror or error}\n")


class ConsoleStream:
    """A text stream that writes to the console and, without colors, to the log."""

    def __init__(self, shown: IO[str], log: LogFile) -> None:
        self._shown, self._log = shown, log

    def __getattr__(self, name: str) -> object:
        return getattr(self._shown, name)

    def write(self, text: str) -> int:
        """Write to the log and then to the console."""
        self._log.write(_COLOR.sub("", text))
        return self._shown.write(text)

    def flush(self) -> None:
        """Flush both."""
        self._log.flush()
        self._shown.flush()


@contextlib.contextmanager
def rank_log(run_dir: Path, rank: int) -> Iterator[None]:
    """Send what this process prints during the block to the log; nano3's own lines also go where they went before.

    A `Failure` or an unforeseen error that leaves the block is preceded by the last lines of the log on stderr.

    Args:
        run_dir: The run folder.
        rank: The rank of this process.
    """
    path = log_path(run_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    own = os.path.samestat(os.fstat(1), os.fstat(log))  # the launcher sent stdout there already
    began = os.fstat(log).st_size
    with contextlib.suppress(OSError):  # a full disk: what needs the space will say so
        os.write(log, f"==== rank {rank}, {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}\n".encode())
    _flush()
    with contextlib.ExitStack() as undo:
        shown = [undo.enter_context(_kept_stream(number)) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(log, number)
        os.close(log)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            if _writes_to(stream, number):
                undo.enter_context(_surviving_prints(stream))
        logged = undo.enter_context(contextlib.closing(LogFile(path, shown[1])))
        streams: list[Any] = [*shown] if own else [ConsoleStream(stream, logged) for stream in shown]
        undo.enter_context(console_streams(streams[0], streams[1]))
        try:
            yield
        except Exception as error:
            _flush()
            foreseen = isinstance(error, Nano3Error)
            if not foreseen:
                logged.write("".join(traceback.format_exception(error)))
                logged.flush()
            if not own and (isinstance(error, Failure) or not foreseen):
                try:
                    shown[1].write(printable_text(_tail(path, rank, began)))
                except OSError as lost:  # a closed pipe must not hide the error
                    write_lost(lost, shown[1])
            raise


@contextlib.contextmanager
def _kept_stream(number: int) -> Iterator[IO[str]]:
    """Yield a stream to where a file descriptor leads now, and restore the descriptor at the end."""
    kept = os.dup(number)
    stream = sys.stdout if number == 1 else sys.stderr
    try:
        if _writes_to(stream, number):
            encoding, errors = stream.encoding, stream.errors
            with open(kept, "w", buffering=1, encoding=encoding, errors=errors, closefd=False) as copy:
                try:
                    yield copy
                finally:
                    try:
                        copy.flush()
                    except OSError:  # must not replace the outcome of the block
                        discard_buffered(copy)
        else:
            yield stream
    finally:
        _flush()
        os.dup2(kept, number)
        os.close(kept)


def _writes_to(stream: IO[str], number: int) -> bool:
    """Return whether a stream writes to a file descriptor."""
    try:
        return stream.fileno() == number
    except (OSError, ValueError):  # replaced by an object that is no file, as in tests
        return False


@contextlib.contextmanager
def _surviving_prints(stream: IO[str]) -> Iterator[None]:
    """Let prints to a stream lose text during the block where the disk fails, instead of raising OSError.

    The methods are replaced, not the stream: handlers of `logging` hold it, and W&B replaces its methods, too.
    """
    write, flush = stream.write, stream.flush
    gap: Gap | None = None

    def lose(error: OSError) -> None:
        nonlocal gap
        if error.errno not in DISK_FAULTS:
            raise error
        gap = gap or Gap(error)
        discard_buffered(stream, flush)

    def surviving_write(text: str) -> int:
        nonlocal gap
        try:
            if gap:
                write(str(gap))
                flush()
                gap = None
            return write(text)
        except OSError as error:
            lose(error)
            return len(text)

    def surviving_flush() -> None:
        try:
            flush()
        except OSError as error:
            lose(error)

    replaced = (("write", write, surviving_write), ("flush", flush, surviving_flush))
    for name, _, method in replaced:
        setattr(stream, name, method)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed
            surviving_flush()  # before the descriptor leads to the console again
        for name, before, method in replaced:
            if getattr(stream, name) is method:  # else W&B has replaced it since, and calls it
                setattr(stream, name, before)


def _flush() -> None:
    """Write what Python and C hold in buffers for stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _tail(path: Path, rank: int, began: int) -> str:
    """Return the last lines of this start's part of a log, under a line that names the rank.

    If the last error that a process wrote, such as the one that writes checkpoints, is before them, it comes first.
    """
    with path.open("rb") as f:
        f.seek(max(began, path.stat().st_size - _TAIL_BYTES))
        lines = f.read().decode(errors="replace").splitlines()
    shown = lines[-TAIL_LINES:]
    errors = [i for i, line in enumerate(lines) if _ERROR_LINE.match(line)]
    if errors and errors[-1] < len(lines) - TAIL_LINES:
        shown = [*lines[errors[-1] :][:_ERROR_LINES], "...", *shown[_ERROR_LINES + 1 :]]
    return "".join([f"rank {rank} failed; the last lines of {path}:\n", *(f"  | {line}\n" for line in shown)])
