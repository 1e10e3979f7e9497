"""Read files in a forked process, so that one whose damage crashes pyarrow cannot take the program with it.

pyarrow checks most of what it reads, but a damaged Arrow or parquet file can still end the process with a signal. The
workers are processes of their own. All other code that reads such files uses a `ReaderProcess`, which names the file.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any

from nano3.data.sources.readers import Batch, FileRange, read_documents
from nano3.utils.errors import Failure, Nano3Error

MAY_CRASH = ("parquet", "arrow")


class ReaderProcess:
    """A process that runs functions on files. Use it as a context manager; leaving it ends the process."""

    def __init__(self) -> None:
        self._pid = 0
        self._connection: Connection | None = None

    def __enter__(self) -> "ReaderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run[T](self, function: Callable[..., Iterable[T]], file_range: FileRange, *args: Any) -> Iterator[T]:
        """Yield what `function(file_range, *args)` yields; in this process if the format is text.

        Args:
            function: A function of a module.
            file_range: What to read.
            args: Further arguments.

        Raises:
            Nano3Error: The error of the function, or a Failure that names the file if the process died.
        """
        if file_range.format not in MAY_CRASH:
            yield from function(file_range, *args)
            return
        finished = False
        try:
            connection = self._connection or self._start()
            connection.send((function, file_range, args))
            while True:
                kind, value = connection.recv()
                if kind == "end":
                    finished = True
                    return
                if kind == "error":
                    finished = True
                    raise value
                yield value
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            raise Failure(f"{file_range.path}: {describe_death(self._end())}") from error
        finally:
            if not finished:
                self._end()

    def documents(self, file_range: FileRange) -> Iterator[Batch]:
        """Run `readers.read_documents`."""
        return self.run(read_documents, file_range)

    def call[T](self, function: Callable[..., T], file_range: FileRange, *args: Any) -> T:
        """Return `function(file_range, *args)`; arguments and errors are those of `run`."""
        values: Iterator[T] = self.run(yield_result, file_range, function, *args)
        (result,) = values
        return result

    def _start(self) -> Connection:
        own_end, other_end = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads: the child needs none of them
            self._pid = os.fork()
        if not self._pid:
            try:
                own_end.close()
                if asyn := sys.modules.get("fsspec.asyn"):  # its event loop runs in a thread; old versions wait for it
                    asyn.reset_lock()
                serve(other_end)
            finally:
                os._exit(0)
        other_end.close()
        self._connection = own_end
        return own_end

    def _end(self) -> int:
        """End the process, if there is one. Return its wait status."""
        status = 0
        if self._connection:
            self._connection.close()
            self._connection = None
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if not ended:
                os.kill(self._pid, signal.SIGKILL)
                _, status = os.waitpid(self._pid, 0)
        return status


def yield_result[T](file_range: FileRange, function: Callable[..., T], *args: Any) -> Iterator[T]:
    """Yield `function(file_range, *args)`."""
    yield function(file_range, *args)


def serve(connection: Connection) -> None:
    """Run functions and send what they yield until the other side closes the connection."""
    while True:
        try:
            function, file_range, args = connection.recv()
            try:
                for value in function(file_range, *args):
                    connection.send(("value", value))
                answer: tuple[str, Any] = ("end", None)
            except Nano3Error as error:
                answer = ("error", error)
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception:
                answer = ("error", RuntimeError(f"while reading {file_range.path}:\n{traceback.format_exc()}"))
            connection.send(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            return


def describe_death(status: int) -> str:
    """Return how a process that was reading a file died, and what to do.

    Args:
        status: Its wait status.
    """
    code = os.waitstatus_to_exitcode(status)
    if -code == signal.SIGKILL:
        return "the process that read it was killed; out of memory is the usual cause."
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"reading it ended a process ({how}), so it is damaged. Copy the file again, or remove it from the dataset."


def find_crashing_file(ranges: Iterable[FileRange]) -> Failure | None:
    """Read files again after a process died while reading them; return the error of the one that ends a process."""
    for file_range in ranges:
        if file_range.format in MAY_CRASH:
            with ReaderProcess() as process:
                try:
                    process.call(count_batches, file_range)
                except Failure as error:
                    if isinstance(error.__cause__, EOFError | ConnectionResetError | BrokenPipeError):
                        return error
    return None


def count_batches(file_range: FileRange) -> int:
    """Return the number of batches of a range; 0 if it cannot be read."""
    try:
        return sum(1 for _ in read_documents(file_range))
    except Nano3Error:
        return 0
