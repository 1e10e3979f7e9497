"""One page about one run or several: how each ended, their curves, and what differs between their configurations.

nano3 report quickstart
nano3 report output/nano3/runs/sweep --output sweep.html
"""

import argparse
import math
import shlex
import statistics
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import nano3
from nano3.tools._folders import RUNS, run_folder, run_folders
from nano3.tools.diff import facts, not_a_run, shown
from nano3.training.run.record import latest_start_dir, read_finish_record
from nano3.utils.console import say
from nano3.utils.errors import UserError
from nano3.utils.files import write_text

HELP = "one HTML page about runs: results, curves, what differs"
END = 20  # lines of the log whose median is the speed told
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
p.made { color: #777; margin-top: .2em; } code { background: #f4f4f4; padding: 0 .3em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: .3em .8em; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .left td, .left th { text-align: left; } tr.best td { font-weight: bold; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1em; }
.curves svg { width: 100%; height: auto; }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help=f"run folder or its name under {RUNS}, or a folder of runs (a sweep)"
    )
    parser.add_argument("--output", metavar="FILE", help="where to write (RUN/report.html; ./report.html of several)")


def run(args: argparse.Namespace) -> int:
    folders = list(dict.fromkeys(folder for name in args.runs for folder in found(name)))
    problems = [problem for folder in folders if (problem := not_a_run(folder))]
    if problems:
        raise UserError(problems)
    target = Path(args.output or (folders[0] / "report.html" if len(folders) == 1 else "report.html"))
    if target.is_dir():
        raise UserError(f"--output {target}: is a folder; name a file, as in --output {target}/report.html")
    page = make_page(names_of(folders), "nano3 report " + shlex.join(args.runs))
    try:
        write_text(target, page)
    except OSError as error:
        raise UserError(f"--output {target}: cannot be written: {error.strerror}. Name another file.") from error
    say(f"report of {len(folders)} run{'s' * (len(folders) > 1)}: {target}")
    return 0


def found(name: str) -> list[Path]:
    """The run that a name means, or the runs in the folder that it means."""
    folder = run_folder(name)
    return sorted(inside for inside in run_folders(folder) if latest_start_dir(inside)) or [folder]


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Short names that tell the runs apart."""
    absolute = [folder.absolute() for folder in folders]
    for parts in range(1, max(len(path.parts) for path in absolute)):
        names = ["/".join(path.parts[-parts:]) for path in absolute]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders, strict=True))


def make_page(runs: dict[str, Path], command: str) -> str:
    """The page; it needs nothing beside it. Raises `Failure` for a damaged run, `UserError` without matplotlib."""
    from nano3.training.run.metrics import read_metrics

    lines = {name: read_metrics(folder) for name, folder in runs.items()}
    known = {name: facts(folder) for name, folder in runs.items()}
    title = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    made = (
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by nano3 {nano3.__version__}: <code>{escape(command)}</code>"
    )
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p class='made'>{made}</p>",
        "<h2>Results</h2>",
        results(runs, lines, known),
        "<h2>Curves</h2>",
        curves(lines),
        "<h2>What differs</h2>" if len(runs) > 1 else "<h2>Configuration</h2>",
        differences(known),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def results(runs: dict[str, Path], lines: dict[str, list[dict[str, Any]]], known: dict[str, Any]) -> str:
    """One line a run; the one with the lowest last validation loss is marked where losses can be compared: of the same
    data, and measured after training has begun."""
    last = {name: [line for line in lines[name] if "valid_loss" in line and line["iteration"]][-1:] for name in runs}
    ended = {n: found[0]["valid_loss"] for n, found in last.items() if found and math.isfinite(found[0]["valid_loss"])}
    data = {known[name][1].get("fingerprint") for name in ended}
    best = min(ended, key=lambda name: ended[name]) if len(ended) > 1 and len(data) == 1 else None
    columns = ["run", "state", "tokens", "training loss", "validation loss", "tokens/s", "MFU", "hours", "data", "code"]
    rows = [[name, *result(folder, lines[name], known[name])] for name, folder in runs.items()]
    return html_table(columns, rows, best=best)


def result(folder: Path, lines: list[dict[str, Any]], known: tuple[dict[str, Any], ...]) -> list[str]:
    """State, tokens, losses, speed, hours, data and code of a run."""
    from nano3.training.reports.summary import final_loss

    config, data, code, _ = known
    train = [line for line in lines if "loss" in line]
    valid = [line for line in lines if "valid_loss" in line]
    commit = f"{(code.get('commit') or '-')[:9]}{'+' * bool(code.get('uncommitted'))}"
    tail = [str(data.get("reference", "-")), commit]
    if not train:
        return ["not begun", *[""] * 6, *tail]
    whole = config.get("train.train_iters")
    done = train[-1]["iteration"]
    finish = read_finish_record(folder)  # later than the last line when log_interval does not divide it
    ended = finish["iteration"] if finish else None
    state = "finished" if ended is not None and ended >= (whole or 0) else f"at {max(done, ended or 0):,} of {whole:,}"
    elapsed = [line["elapsed_s"] for line in lines if "elapsed_s" in line]
    return [
        state,
        f"{train[-1]['consumed_tokens']:,}",
        f"{final_loss(train):.4f}",
        measured(valid[-1], done) if valid else "",
        usual(train, "tokens_per_s", "{:,.0f}"),
        usual(train, "mfu", "{:.1%}"),
        f"{elapsed[-1] / 3600:.2f}" if elapsed else "",
        *tail,
    ]


def measured(line: dict[str, Any], done: int) -> str:
    """A validation loss, with its iteration when the run has gone on since."""
    at = f" (at {line['iteration']:,})" if line["iteration"] < done else ""
    return f"{line['valid_loss']:.4f}{at}"


def usual(train: list[dict[str, Any]], key: str, form: str) -> str:
    """The median of a metric's last lines."""
    values = [line[key] for line in train[-END:] if line.get(key) is not None]
    return form.format(statistics.median_high(values)) if values else ""


def curves(lines: dict[str, list[dict[str, Any]]]) -> str:
    """Every metric that the runs have, as a picture."""
    from nano3.training.reports.curves import CURVES, draw_curve

    try:
        drawn = [picture for curve in CURVES if (picture := draw_curve(curve, lines))]
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed, and it draws the curves: pip install 'nano3[train]'") from None
    return f"<div class='curves'>{''.join(drawn)}</div>" if drawn else "<p>There are no metrics yet.</p>"


def differences(known: dict[str, Any]) -> str:
    """Keys whose values are not the same in all runs; of a single run everything."""
    parts = []
    for number, what in enumerate(("configuration", "data", "code", "packages")):
        values = {name: every[number] for name, every in known.items()}
        keys = dict.fromkeys(key for one in values.values() for key in one)
        told = [key for key in keys if len(known) == 1 or len({repr(one.get(key, "-")) for one in values.values()}) > 1]
        rows = [[key, *(shown(key, one.get(key, "-")) for one in values.values())] for key in told]
        if rows:
            parts.append(f"<h3>{what}</h3>" + html_table(["", *known], rows, left=True))
    return "\n".join(parts) or "<p>Nothing: configuration, data, code and packages are the same.</p>"


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], best: str | None = None, left: bool = False
) -> str:
    """A table; the row that begins with `best` is marked."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ""
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f"<tr class='best'>{cells}</tr>" if best is not None and row[0] == best else f"<tr>{cells}</tr>"
    style = " class='left'" if left else ""
    return f"<div class='wide'><table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
