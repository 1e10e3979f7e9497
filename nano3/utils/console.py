"""What nano3 prints: rich tables and bars on a terminal, plain lines in a pipe or a job log, and only on rank 0."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # worker processes import this module and print nothing: rich is imported when it is needed
    from rich.console import Console

PLAIN_WIDTH = 160


def is_rank_zero() -> bool:
    """True in the one process of a distributed run that may print and write shared files."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def console(stderr: bool = False) -> "Console":
    """A console on stdout (results) or stderr (progress, errors); it is silent on every rank but 0."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(
        file=stream, width=width, quiet=not is_rank_zero(), highlight=False, soft_wrap=not stream.isatty(), emoji=False
    )


@contextlib.contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Go on in silence when whoever read the output has closed it, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich's console leaves the program for it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """One line of information on stdout, without markup."""
    console().print(text, markup=False)


def warn(text: str) -> None:
    """One line on stderr that must be seen."""
    out = console(stderr=True)
    out.print("warning: ", style="yellow", end="")
    out.print(text, markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print a table: rich on a terminal, aligned plain text otherwise. Columns named in `right` are right-aligned."""
    cells = [[str(c) for c in row] for row in rows]
    out = console()
    if out.is_terminal:
        from rich.table import Table
        from rich.text import Text

        # As Text, since a str is markup: of a path data[train]/a.jsonl only data/a.jsonl would be left.
        view = Table(title=Text(title, "table.title"), title_justify="left", header_style="bold")
        for name in columns:
            view.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
        for row in cells:
            view.add_row(*map(Text, row))
        out.print(view)
        return
    widths = [max(len(r[i]) for r in [list(columns), *cells]) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if n in right else c.ljust(w) for c, w, n in zip(row, widths, columns, strict=True)]
        return "  ".join(parts).rstrip()

    out.print("\n".join([title, line(list(columns)), *(line(r) for r in cells)]), markup=False)
