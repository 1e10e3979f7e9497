"""Write one HTML page about runs: how each ended, their curves, and the differences between their configurations.

nano3 report quickstart
nano3 report output/nano3/runs/sweep --output sweep.html
"""

import argparse
import math
import shlex
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nano3.tools._arguments import RUNS, find_run, find_runs_below
from nano3.tools._html_page import html_page, html_table, needs_matplotlib, write_page
from nano3.tools.diff import ABSENT, StartRecord, format_value, missing_start_problem, read_start_record
from nano3.training.run.record import latest_start_dir, read_finish_record
from nano3.utils.console import duration_text, say, table, without_empty_columns
from nano3.utils.errors import UserError
from nano3.utils.files import expand_user

if TYPE_CHECKING:
    from nano3.training.run.skips import SkipRecord

HELP = "write one HTML page about runs: results, curves, differences"
SPEED_LINES = 20  # the speed is the median over this many lines of metrics at the end
# Lines of metrics.jsonl.
Lines = list[dict[str, Any]]


class ReportedRun(NamedTuple):
    """What the page shows of a run."""

    folder: Path
    lines: Lines
    record: StartRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help=f"run folder or its name under {RUNS}, or a folder of runs (a sweep)"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=expand_user,
        help="file to write (default: report.html in the folder RUN, or in the current folder if there are several)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    folders = list(dict.fromkeys(folder for name in args.runs for folder in find_started_runs(name)))
    if problems := [problem for folder in folders if (problem := missing_start_problem(folder))]:
        raise UserError(problems)
    own = find_run(args.runs[0]) if len(args.runs) == 1 else folders[0] if len(folders) == 1 else Path()
    target = Path(args.output or own / "report.html")
    if target.is_dir():
        raise UserError(f"--output {target} is a folder. Name a file: --output {target}/report.html")
    page = make_page(unique_names(folders), "nano3 report " + shlex.join(args.runs))
    write_page(target, page)
    print_time_use(unique_names(folders))
    say(f"report of {len(folders)} run{'s' * (len(folders) > 1)}: {target}")
    return 0


def print_time_use(folders: dict[str, Path]) -> None:
    """Print where the time of each run went; of a single run also its last starts, and their seconds by stage.

    Args:
        folders: Run folders by name.
    """
    from nano3.training.reports import goodput
    from nano3.training.run.metrics import read_metrics

    for name, folder in folders.items():
        use = goodput.time_use(read_metrics(folder))
        if use is None:
            continue
        say(f"{name}\n{goodput.text_bar(use)}")
        if len(folders) > 1:
            continue
        if len(use.starts) > 1:
            right = ["resumed from", "repeated iterations"]
            table("last starts", goodput.START_COLUMNS, goodput.start_rows(use), right=right)
        if rows := goodput.stage_rows(use):
            table("seconds until the first step", goodput.STAGE_COLUMNS, rows, right=goodput.STAGE_COLUMNS[1:])
            for line in goodput.over_budget(use):
                say(line)


def find_started_runs(name: str) -> list[Path]:
    """Return the run with a name, or all started runs in the folder with that name."""
    folder = find_run(name)
    return sorted(run_dir for run_dir in find_runs_below(folder) if latest_start_dir(run_dir)) or [folder]


def unique_names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by their shortest names that differ: the same number of last path components for all."""
    absolute = [folder.absolute() for folder in folders]
    for count in range(1, max(len(path.parts) for path in absolute)):
        names = ["/".join(path.parts[-count:]) for path in absolute]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders, strict=True))


def make_page(folders: dict[str, Path], command: str) -> str:
    """Return the page as self-contained HTML.

    Args:
        folders: Run folders by name.
        command: Command shown at the top of the page.

    Raises:
        UserError: matplotlib is not installed.
        Failure: A file of a run is damaged.
    """
    from nano3.training.run.evals import read_evals
    from nano3.training.run.metrics import read_metrics
    from nano3.training.run.skips import read_skips

    lines = {name: read_metrics(folder) for name, folder in folders.items()}
    runs = {name: ReportedRun(folder, lines[name], read_start_record(folder)) for name, folder in folders.items()}
    evals = {name: read_evals(folder) for name, folder in folders.items()}
    skips = {name: read_skips(folder) for name, folder in folders.items()}
    title = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    sections = [
        "<h2>Results</h2>",
        results_table(runs),
        datasets_table(lines),
        evals_section(evals),
        mixture_section(folders),
        time_section(lines),
        "<h2>Curves</h2>",
        draw_curves(lines, skips),
        *guard_section(runs, skips),
        "<h2>Differences</h2>" if len(runs) > 1 else "<h2>Configuration</h2>",
        record_tables({name: run.record for name, run in runs.items()}),
    ]
    return html_page(title, command, sections)


def results_table(runs: dict[str, ReportedRun]) -> str:
    """Return a table with one row per run.

    The run with the lowest last validation loss is marked if the losses can be compared: they were measured on the
    same data, after training had started.
    """
    losses: dict[str, float] = {}
    for name, run in runs.items():
        last = [line["valid_loss"] for line in run.lines if "valid_loss" in line and line["iteration"]][-1:]
        if last and math.isfinite(last[0]):
            losses[name] = last[0]
    data = {runs[name].record.data.get("fingerprint") for name in losses}
    best = min(losses, key=lambda name: losses[name]) if len(losses) > 1 and len(data) == 1 else None
    columns = ["run", "state", "tokens", "training loss", "validation loss", "bits per byte", "tokens/s", "MFU"]
    columns += ["goodput", "hours", "data", "code"]
    cells = [[name, *result_cells(run)] for name, run in runs.items()]
    return html_table(*without_empty_columns(columns, cells), best=best)


def result_cells(run: ReportedRun) -> list[str]:
    """Return a run's state, tokens, losses, speed, hours, data and code."""
    from nano3.training.reports.goodput import time_use
    from nano3.training.reports.summary import final_loss

    configuration, data, code, _ = run.record
    train = [line for line in run.lines if "loss" in line]
    valid = [line for line in run.lines if "valid_loss" in line]
    commit = f"{(code.get('commit') or '-')[:9]}{'+' * bool(code.get('uncommitted'))}"
    origin = [str(data.get("reference", "-")), commit]
    if not train:
        return ["not started", *[""] * 8, *origin]
    total = configuration.get("train.train_iters")
    logged = train[-1]["iteration"]
    finish = read_finish_record(run.folder)  # later than the last line if log_interval does not divide it
    ended = finish["iteration"] if finish else None
    finished = ended is not None and ended >= (total or 0)
    elapsed = [line["elapsed_s"] for line in run.lines if "elapsed_s" in line]
    use = time_use(run.lines)
    hours = use.total / 3600 if use else elapsed[-1] / 3600 if elapsed else None
    bits = valid[-1].get("valid_bits_per_byte") if valid else None
    return [
        "finished" if finished else f"at {max(logged, ended or 0):,} of {total:,}",
        f"{train[-1]['consumed_tokens']:,}",
        f"{final_loss(train):.4f}",
        format_valid_loss(valid[-1], logged) if valid else "",
        "" if bits is None else f"{bits:.4f}",
        recent_median(train, "tokens_per_s", "{:,.0f}"),
        recent_median(train, "mfu", "{:.1%}"),
        f"{use.goodput:.1%}" if use else "",
        "" if hours is None else f"{hours:.2f}",
        *origin,
    ]


def datasets_table(lines: dict[str, Lines]) -> str:
    """Return a table of the last validation of each run by dataset, or "" without datasets."""
    rows = []
    for name, own in lines.items():
        last = next((line for line in reversed(own) if "valid_loss" in line), {})
        for key, loss in last.items():
            if key.startswith("valid_loss/"):
                dataset = key.removeprefix("valid_loss/")
                bits = last.get(f"valid_bits_per_byte/{dataset}")
                rows.append([name, dataset, f"{loss:.4f}", "" if bits is None else f"{bits:.4f}"])
    cells = html_table(*without_empty_columns(["run", "dataset", "validation loss", "bits per byte"], rows))
    return f"<h2>Datasets</h2>\n{cells}" if rows else ""


def evals_section(evals: dict[str, Lines]) -> str:
    """Return a table of the last results of `nano3 eval` for each run, and a picture of each metric over iterations.

    Args:
        evals: The results of each run.
    """
    from nano3.training.evaluation import result_rows
    from nano3.training.reports.curves import Curve, draw_curve
    from nano3.training.run.evals import PREFIX, STDERR

    rows = [[name, *row] for name, own in evals.items() for row in result_rows(own)]
    if not rows:
        return ""
    keys = dict.fromkeys(key for own in evals.values() for line in own for key in line if key.startswith(PREFIX))
    curves = [Curve(key, key.removeprefix(PREFIX)) for key in keys if not key.endswith(STDERR)]
    drawn = "".join(draw_curve(curve, evals) or "" for curve in curves)
    columns = ["run", "task", "metric", "value", "standard error", "iteration"]
    return (
        f"<h2>Evaluations</h2>\n{html_table(*without_empty_columns(columns, rows))}\n<div class='curves'>{drawn}</div>"
    )


def time_section(lines: dict[str, Lines]) -> str:
    """Return where the time of each run went, with the last starts of a run that was restarted, and their stages."""
    from nano3.training.reports import goodput

    parts = []
    for name, own in lines.items():
        if use := goodput.time_use(own):
            total = duration_text(use.total)
            parts.append(f"<p>{escape(name)}: goodput {use.goodput:.1%} of {total}</p>{goodput.html_bar(use)}")
            if len(use.starts) > 1:
                parts.append(html_table(goodput.START_COLUMNS, goodput.start_rows(use)))
            if rows := goodput.stage_rows(use):
                parts.append("<p>Seconds until the first step of each start</p>")
                parts.append(html_table(list(goodput.STAGE_COLUMNS), rows))
                parts += [f"<p>{escape(line)}</p>" for line in goodput.over_budget(use)]
    return "\n".join(["<h2>Where the time went</h2>", *parts]) if parts else ""


def mixture_section(folders: dict[str, Path]) -> str:
    """Return a table and a picture of the mixture of each run in nano3's own order, or "" without one.

    Args:
        folders: Run folders by name.

    Raises:
        DamagedRecordError: A plan is damaged.
    """
    from nano3.training.order.plan import read_plan
    from nano3.training.order.plan_text import CONSUMED_COLUMNS, consumed_rows, mixture_rows
    from nano3.training.reports.mixture import mixture_svg
    from nano3.training.run.metrics import reached_iteration

    parts = []
    for name, folder in folders.items():
        if plan := read_plan(folder):
            reached = min(reached_iteration(folder), plan.stages[-1].end)
            parts.append(f"<p>{escape(name)}: after iteration {reached:,} of {plan.stages[-1].end:,}</p>")
            parts.append(html_table(CONSUMED_COLUMNS, consumed_rows(plan, reached)))
            parts.append(html_table(["stage", "mixture"], mixture_rows(plan), left=True))
            parts.append(f"<div class='curves'>{mixture_svg(plan, reached)}</div>")
    return "\n".join(["<h2>Mixture</h2>", *parts]) if parts else ""


def format_valid_loss(line: dict[str, Any], iteration: int) -> str:
    """Return a validation loss, with its iteration if that is before `iteration`."""
    at = f" (at {line['iteration']:,})" if line["iteration"] < iteration else ""
    return f"{line['valid_loss']:.4f}{at}"


def recent_median(train: Lines, key: str, form: str) -> str:
    """Return the median of a metric over the last lines, or "" if they do not have it.

    Args:
        train: Lines with training metrics.
        key: Name of the metric.
        form: Format string for the value.
    """
    values = [line[key] for line in train[-SPEED_LINES:] if line.get(key) is not None]
    return form.format(statistics.median_high(values)) if values else ""


def guard_section(runs: dict[str, ReportedRun], skips: "dict[str, SkipRecord]") -> list[str]:
    """Return a heading and tables of what the guards found and what was left out; empty if there is nothing.

    Args:
        runs: The runs by name.
        skips: What each run left out.
    """
    from nano3.training.run.guard import read_events

    events = [
        [name, f"{event['iteration']:,}", event["statistic"], *map(format_number, (event["value"], event["threshold"])),
         event["action"], ", ".join(sorted({row["dataset"] for row in event["documents"]})), event["time"]]
        for name, run in runs.items()
        for event in read_events(run.folder)
    ]  # fmt: skip
    left_out = [[name, str(one)] for name, record in skips.items() for one in record.ranges]
    columns = ["run", "iteration", "statistic", "value", "threshold", "action", "datasets of its batch", "time"]
    tables = [html_table(columns, events)] if events else []
    tables += [html_table(["run", "iterations left out"], left_out, left=True)] if left_out else []
    return ["<h2>Guard</h2>", *tables] if tables else []


def format_number(value: float | str | None) -> str:
    """Return a number with four digits; None as an empty string, and text as it is."""
    return value if isinstance(value, str) else "" if value is None else f"{value:.4g}"


def draw_curves(lines: dict[str, Lines], skips: "dict[str, SkipRecord] | None" = None) -> str:
    """Return a picture of every metric that the runs have.

    Args:
        lines: The metrics of each run.
        skips: What each run left out.

    Raises:
        UserError: matplotlib is not installed.
    """
    from nano3.training.reports.curves import CURVES, draw_curve

    with needs_matplotlib():
        drawn = [picture for curve in CURVES if (picture := draw_curve(curve, lines, skips))]
    return f"<div class='curves'>{''.join(drawn)}</div>" if drawn else "<p>There are no metrics yet.</p>"


def record_tables(records: dict[str, StartRecord]) -> str:
    """Return tables of the keys whose values differ between runs. For a single run they show all keys."""
    tables = []
    for name in StartRecord._fields:
        values = {run: getattr(record, name) for run, record in records.items()}
        rows = [
            [key, *(format_value(key, own.get(key, ABSENT)) for own in values.values())]
            for key in dict.fromkeys(key for own in values.values() for key in own)
            if len(records) == 1 or len({repr(own.get(key, ABSENT)) for own in values.values()}) > 1
        ]
        if rows:
            tables.append(f"<h3>{name}</h3>" + html_table(["", *records], rows, left=True))
    return "\n".join(tables) or "<p>None: configuration, data, code and packages are the same.</p>"
