"""A self-contained HTML page: its frame, its tables, and how it is written."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from pathlib import Path

import nano3
from nano3.utils.disk_errors import reason
from nano3.utils.errors import UserError
from nano3.utils.files import write_text
from nano3.utils.provenance import install_command

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
p.made { color: #777; margin-top: .2em; } code { background: #f4f4f4; padding: 0 .3em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: .3em .8em; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: pre; }
th:first-child, td:first-child, .left td, .left th { text-align: left; } tr.best td { font-weight: bold; }
.bar { display: flex; height: 1.6em; border-radius: 4px; overflow: hidden; } .bar span { display: block; }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin: .5em 0; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1em; }
.curves svg { width: 100%; height: auto; }
"""


def html_page(title: str, command: str, sections: Sequence[str]) -> str:
    """Return the page.

    Args:
        title: Title and heading, as plain text.
        command: Command shown below the heading.
        sections: HTML of the body.
    """
    made = (
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by nano3 {nano3.__version__}: <code>{escape(command)}</code>"
    )
    return "\n".join([
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p class='made'>{made}</p>",
        *sections,
        "</body></html>\n",
    ])  # fmt: skip


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], best: str | None = None, left: bool = False
) -> str:
    """Return an HTML table.

    Args:
        columns: Column titles.
        rows: Cells as plain text.
        best: First cell of the row to mark, if any.
        left: Whether to align all columns to the left.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ""
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f"<tr class='best'>{cells}</tr>" if best is not None and row[0] == best else f"<tr>{cells}</tr>"
    style = " class='left'" if left else ""
    return f"<div class='wide'><table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def write_page(target: Path, page: str) -> None:
    """Write a page to the file of `--output`.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        write_text(target, page)
    except OSError as error:
        raise UserError(f"--output {target}: cannot be written: {reason(error)} Name another file.") from error


@contextlib.contextmanager
def needs_matplotlib() -> Iterator[None]:
    """Raise UserError if the block, which draws curves, cannot import matplotlib."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is required for the curves, but not installed: {install_command('train')}"
        ) from None
