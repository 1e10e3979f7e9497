"""Console output: rich tables on a terminal, plain lines in a pipe or a job log, and only on rank 0.

Every text that nano3 prints goes through this module. Texts may contain file names, keys and documents that others
wrote, so control characters are shown as escapes (`printable`), and a continuation line of a message is indented: a
file name can neither control the terminal nor fake a line that begins with "error: ".

Work does not depend on its output. If stdout or stderr cannot be written any more (`| head`), the rest of the output
is discarded and the command goes on; `lost_output` says why. While the disk is full, text is lost; when it has space
again, the output goes on after a line that says so. A command that only shows something stops instead (`need_output`).
"""

import codecs
import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, ClassVar

from nano3.utils.disk_errors import FULL
from nano3.utils.errors import list_some
from nano3.utils.redaction import redact_urls

if TYPE_CHECKING:  # rich is imported on first use: worker processes import this module and print nothing
    from rich.console import Console

PLAIN_WIDTH = 160
MAX_MESSAGE = 4000  # characters of one message; what it says first and last is kept
MAX_MESSAGES = 100  # of one error
MAX_CELL = 1000  # characters in a cell of a table
MIN_COLUMN = 16  # characters at which a column of text, such as paths, may be folded
# C0 and C1 control characters, line separators, marks that reverse the direction of text, bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNPRINTABLE_IN_TEXT = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# In a log: control characters but tab, line feed and carriage return; colors (ESC [ ... m) are matched to be kept.
_UNPRINTABLE_IN_LOG = re.compile(rb"\x1b\[[0-9;]*m|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")
_ESCAPE_ERRORS = "nano3_escape"
# Held while a descriptor leads to /dev/null: another thread would keep that. A signal handler may print meanwhile.
_discarding = threading.RLock()


class Gap:
    """A time in which text for a stream was lost."""

    def __init__(self, error: OSError) -> None:
        """Begin with the error of the first text that was lost."""
        self._since, self._why = time.monotonic(), error.strerror or str(error)

    def __str__(self) -> str:
        """Return the line that says in the stream what is missing, such as "[text of 90 s is missing here: ...]"."""
        return f"\n[text of {time.monotonic() - self._since:,.0f} s is missing here: {self._why}]\n"


class _Output:
    """What happened to the output of this process."""

    lost: OSError | None = None
    needed: bool = False
    # Streams whose disk was full at the last write, and since when.
    gaps: ClassVar[dict[Any, "Gap"]] = {}
    # Where nano3 prints instead of sys.stdout and sys.stderr (`console_streams`).
    streams: tuple[Any, Any] | None = None


@contextlib.contextmanager
def console_streams(stdout: Any, stderr: Any) -> Iterator[None]:
    """Let nano3 print to these streams during the block; what others print to sys.stdout and sys.stderr stays there.

    Args:
        stdout: The text stream for results.
        stderr: The text stream for progress and errors.
    """
    before, _Output.streams = _Output.streams, (stdout, stderr)
    try:
        yield
    finally:
        _Output.streams = before


def _stream(stderr: bool = False) -> Any:
    """Return the stream that nano3 prints to."""
    if _Output.streams:
        return _Output.streams[1 if stderr else 0]
    return sys.stderr if stderr else sys.stdout


def prepare_output() -> None:
    """Let stdout and stderr of this process accept any text, even if they are closed (`>&-`) or cannot encode it.

    Call it first in every process that prints.
    """
    codecs.register_error(_ESCAPE_ERRORS, _escape_unencodable)
    sys.excepthook = _print_exception
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115  open until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPE_ERRORS)


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_escape, error.object[error.start : error.end])), error.end


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unforeseen error, whose message may contain any text."""
    write(redact_urls("".join(traceback.format_exception(kind, error, trace))), stderr=True)


def _escape(character: str) -> str:
    """Return a character as an escape, and a byte that is not UTF-8 (in Python a lone surrogate) in hexadecimal."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def printable(text: str) -> str:
    """Return a text on one line, with all control characters, including line ends, as escapes."""
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), text)


def printable_text(text: str) -> str:
    """Return a text with all control characters but tabs and line ends as escapes."""
    return _UNPRINTABLE_IN_TEXT.sub(lambda found: _escape(found[0]), text)


def printable_log(log: bytes) -> bytes:
    """Return bytes of a log with control characters as escapes, except tabs, line ends and colors."""
    if not _UNPRINTABLE_IN_LOG.search(log):
        return log
    return _UNPRINTABLE_IN_LOG.sub(
        lambda found: found[0] if found[0].endswith(b"m") else b"".join(b"\\x%02x" % byte for byte in found[0]), log
    )


def message(text: str) -> str:
    """Return a message for the console: of limited length, with escapes, and indented after its first line."""
    text = redact_urls(text)
    if (omitted := len(text) - MAX_MESSAGE) > 0:
        end = MAX_MESSAGE // 4
        text = f"{text[: MAX_MESSAGE - end]} … {omitted:,} characters omitted … {text[-end:]}"
    first, *rest = printable_text(text).split("\n")
    return "\n".join([first, *(f"  {line}" if line and not line.startswith("  ") else line for line in rest)])


def is_rank_zero() -> bool:
    """Return whether this process is the one that may print and write shared files."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def need_output(needed: bool = True) -> None:
    """Say whether this command does nothing but show something, so that it stops when its output is lost."""
    _Output.needed = needed


def lost_output() -> OSError | None:
    """Return why output of this process was lost, or None."""
    return _Output.lost


def write_lost(error: OSError, stream: IO[str]) -> None:
    """Discard what could not be written to an output stream, and unless its disk is full the rest of the stream.

    Args:
        error: Why it cannot be written.
        stream: stdout or stderr.

    Raises:
        OSError: `error`, if stdout is lost and this command needs it (`need_output`).
    """
    _Output.lost = _Output.lost or error
    if _Output.needed and stream is not _stream(stderr=True):
        raise error
    if error.errno in FULL:
        _Output.gaps.setdefault(stream, Gap(error))
        discard_buffered(stream)
    else:
        discard(stream)


def discard(stream: IO[str]) -> None:
    """Discard what is written to a stream from now on, and what is buffered: Python would try to write it at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # not a file, as in tests
        pass


def discard_buffered(stream: IO[str], flush: Callable[[], object] | None = None) -> None:
    """Discard what is buffered for a stream that could not be written. It can be written again afterwards.

    Args:
        stream: The stream.
        flush: Its method, if another one has replaced it.
    """
    with _discarding:
        try:
            number = stream.fileno()
            kept, inheritable = os.dup(number), os.get_inheritable(number)
        except (OSError, ValueError):  # not a file, as in tests
            return
        discard(stream)
        with contextlib.suppress(OSError):
            (flush or stream.flush)()
        os.dup2(kept, number, inheritable)
        os.close(kept)


def _end_gap(stream: IO[str]) -> None:
    """Say in a stream that text is missing, if its disk was full at the last write and has space again."""
    if stream not in _Output.gaps:
        return
    with _discarding:
        if gap := _Output.gaps.get(stream):  # else another thread has said it
            stream.write(str(gap))
            stream.flush()
            del _Output.gaps[stream]


def flush_output() -> None:
    """Write what is buffered for stdout, before the process exits: Python would fail at exit if that fails."""
    try:
        _stream().flush()
    except OSError as error:
        write_lost(error, _stream())


def write(text: str, stderr: bool = False) -> None:
    """Write a text as it is, apart from control characters: a document, a configuration, a job script.

    Args:
        text: The text, with its line ends.
        stderr: Write to stderr instead of stdout. Unlike a console, it is written on every rank.
    """
    stream = _stream(stderr)
    try:
        _end_gap(stream)
        stream.write(printable_text(text))
        stream.flush()
    except OSError as error:
        write_lost(error, stream)


def write_log(log: bytes) -> None:
    """Write bytes of a log to stdout, apart from control characters."""
    try:
        _end_gap(sys.stdout)
        sys.stdout.flush()
        sys.stdout.buffer.write(printable_log(log))
        sys.stdout.buffer.flush()
    except OSError as error:
        write_lost(error, sys.stdout)


def console(stderr: bool = False) -> "Console":
    """Return a console on stdout (results) or stderr (progress, errors). It is silent on all ranks but 0.

    Texts given to it must be `printable`.
    """
    from rich.console import Console

    stream = _stream(stderr)
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(
        file=_Guarded(stream),  # type: ignore[arg-type]
        width=width,
        quiet=not is_rank_zero(),
        highlight=False,
        soft_wrap=not stream.isatty(),
        emoji=False,
    )


class _Guarded:
    """A stream for rich, which would end the program on a broken pipe."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or discard it if the stream cannot be written."""
        try:
            _end_gap(self._stream)
            return self._stream.write(text)
        except OSError as error:
            write_lost(error, self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or discard its text if it cannot be written."""
        try:
            self._stream.flush()
        except OSError as error:
            write_lost(error, self._stream)


def say(text: str, stderr: bool = False) -> None:
    """Print a message to stdout, or to stderr, without markup. Long lines are not broken: they may be copied."""
    console(stderr).print(message(text), markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a message to stderr that begins with "warning: "."""
    out = console(stderr=True)
    out.print("warning: ", style="yellow", end="")
    out.print(message(text), markup=False, soft_wrap=True)


def print_problems(problems: Iterable[str]) -> None:
    """Print each problem to stderr, on every rank, with one message for all datasets that share a problem."""
    found = group_by_dataset(problems)
    lines = [f"error: {message(problem)}\n" for problem in found[:MAX_MESSAGES]]
    if len(found) > MAX_MESSAGES:
        lines.append(f"error: and {len(found) - MAX_MESSAGES:,} more problems\n")
    write("".join(lines), stderr=True)


def group_by_dataset(problems: Iterable[str]) -> list[str]:
    """Merge problems that differ only in the dataset's name and path; a blend may have dozens of datasets.

    Problems of a dataset begin with "dataset 'NAME': ". All others are returned unchanged.
    """
    groups: dict[str | int, list[tuple[str, str]]] = {}  # text without the path -> (dataset, text)
    for number, problem in enumerate(problems):
        match = re.fullmatch(r"dataset '([^']+)': (.*)", problem, re.DOTALL)
        if not match:
            groups[number] = [("", problem)]
            continue
        name, text = match.groups()
        path = re.search(r"path=(\S+?)[:,]? ", text)
        groups.setdefault(text.replace(path[1], "…") if path else text, []).append((name, text))
    merged = []
    for group in groups.values():
        name, text = group[0]
        if len(group) > 1:
            merged.append(f"{len(group)} datasets ({list_some(n for n, _ in group)}); the first: {text}")
        else:
            merged.append(f"dataset '{name}': {text}" if name else text)
    return merged


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print a table: with rich on a terminal that is wide enough, as aligned plain text otherwise.

    On a terminal on which frames would take more lines than a line for each cell, each cell has a line of its own.

    Args:
        title: Printed above the table.
        columns: Names of the columns.
        rows: One cell per column; cells are converted to text.
        right: Names of the columns to align to the right.
    """
    title, cells = printable(title), [list(map(cell_text, row)) for row in rows]
    names, right = list(map(printable, columns)), list(map(printable, right))
    out = console()
    records = _records(names, cells)
    fitting = _column_widths(names, cells, right, out.width) if out.is_terminal else None
    if fitting and _height(cells, fitting) <= len(records):
        from rich.table import Table
        from rich.text import Text

        # Text, because rich would read a str such as the path data[train]/a.jsonl as markup.
        view = Table(title=Text(title, "table.title"), title_justify="left", header_style="bold")
        for name, width in zip(names, fitting, strict=True):
            view.add_column(Text(name), justify="right" if name in right else "left", overflow="fold", width=width)
        for row in cells:
            view.add_row(*map(Text, row))
        out.print(view)
        return
    widths = [max(len(r[i]) for r in [names, *cells]) for i in range(len(names))]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if n in right else c.ljust(w) for c, w, n in zip(row, widths, names, strict=True)]
        return "  ".join(padded).rstrip()

    lines = [line(names), *map(line, cells)]
    if out.is_terminal and (fitting or max(map(len, lines)) > 2 * out.width):
        lines = records
    out.print("\n".join([title, *lines]), markup=False, soft_wrap=True)


def _records(names: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each cell, and an empty one after each row."""
    label = max(map(len, names))
    rows = [[f"{n.ljust(label)}  {c}" for n, c in zip(names, row, strict=True) if c] for row in cells]
    return [line for row in rows for line in [*row, ""]]


def _height(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> int:
    """Return about how many lines rows take in columns of these widths."""
    return sum(max(len(cell) // width for cell, width in zip(row, widths, strict=True)) + 1 for row in cells)


def _column_widths(
    names: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str], width: int
) -> list[int] | None:
    """Return the widths in which a table fits a terminal with unbroken numbers, None if there are none.

    Args:
        names: Names of the columns.
        cells: The rows.
        right: Names of the columns of numbers.
        width: Width of the terminal, of which each column takes 3 characters besides its text.
    """
    from rich.cells import cell_len

    columns = list(zip(names, *cells, strict=True))
    # At least 1: a column may have neither a name nor a cell with text.
    widths = [max(1, *map(cell_len, column)) for column in columns]
    words = [max([1, *(cell_len(word) for text in column for word in text.split())]) for column in columns]
    least = [word if name in right else min(word, MIN_COLUMN) for name, word in zip(names, words, strict=True)]
    free = width - 3 * len(names) - 1
    if sum(least) > free:
        return None
    while sum(widths) > free:
        widest = max((i for i in range(len(names)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def cell_text(value: object) -> str:
    """Return a value as text for a cell of a table: on one line and of limited length."""
    text = redact_urls(str(value))
    if (omitted := len(text) - MAX_CELL) > 0:
        text = f"{text[:MAX_CELL]} … {omitted:,} characters omitted"
    return printable(text)


def duration_text(seconds: float) -> str:
    """Return a duration as "4.3 s", "45 s", "12 min", "3 h 05 min" or "2 d 04 h"."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24:02} h"


def without_empty_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of a table in which some row has something, and their cells.

    Args:
        columns: Column titles.
        rows: Cells, one sequence for each row.
    """
    used = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    return [columns[number] for number in used], [[row[number] for number in used] for row in rows]


_BYTES = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


def short_number(number: float) -> str:
    """Return a number as three digits and a unit, as in 1.24 B, 31.6 B, 25.2 M."""
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:  # 999,999 is 1 M, not 1e+03 k
            return f"{number / limit:.3g} {unit}"
    return f"{number:.3g}"


def size_text(size: float) -> str:
    """Return a number of bytes, as in 17.3 MB or 1,234 GB. Units are powers of 1,000, as on disks."""
    unit = next((name for name, limit in _BYTES.items() if size >= 0.9995 * limit), "kB")  # 999,600 is 1.00 MB
    number = size / _BYTES[unit]
    return f"{number:,.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"
