"""Console output: rich tables on a terminal, plain lines in a pipe or a job log, and only on rank 0."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported on first use: worker processes import this module and print nothing
    from rich.console import Console

PLAIN_WIDTH = 160


def is_rank_zero() -> bool:
    """Return whether this process is the one that may print and write shared files."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def console(stderr: bool = False) -> "Console":
    """Return a console on stdout (results) or stderr (progress, errors). It is silent on all ranks but 0."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(
        file=stream, width=width, quiet=not is_rank_zero(), highlight=False, soft_wrap=not stream.isatty(), emoji=False
    )


@contextlib.contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Continue silently if the reader of the output, such as `head`, has closed it."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich exits the program on a broken pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print one line to stdout, without markup."""
    console().print(text, markup=False)


def warn(text: str) -> None:
    """Print one line to stderr that begins with "warning: "."""
    out = console(stderr=True)
    out.print("warning: ", style="yellow", end="")
    out.print(text, markup=False)


def print_problems(problems: Iterable[str]) -> None:
    """Print each problem to stderr, on every rank, with one message for all datasets that share a problem."""
    for problem in group_by_dataset(problems):
        print(f"error: {problem}", file=sys.stderr)


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
            merged.append(f"{len(group)} datasets ({', '.join(n for n, _ in group)}); the first: {text}")
        else:
            merged.append(f"dataset '{name}': {text}" if name else text)
    return merged


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print a table: with rich on a terminal, as aligned plain text otherwise.

    Args:
        title: Printed above the table.
        columns: Names of the columns.
        rows: One cell per column; cells are converted to text.
        right: Names of the columns to align to the right.
    """
    cells = [[str(c) for c in row] for row in rows]
    out = console()
    if out.is_terminal:
        from rich.table import Table
        from rich.text import Text

        # Text, because rich would read a str such as the path data[train]/a.jsonl as markup.
        view = Table(title=Text(title, "table.title"), title_justify="left", header_style="bold")
        for name in columns:
            view.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
        for row in cells:
            view.add_row(*map(Text, row))
        out.print(view)
        return
    widths = [max(len(r[i]) for r in [list(columns), *cells]) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if n in right else c.ljust(w) for c, w, n in zip(row, widths, columns, strict=True)]
        return "  ".join(padded).rstrip()

    out.print("\n".join([title, line(list(columns)), *(line(r) for r in cells)]), markup=False)
