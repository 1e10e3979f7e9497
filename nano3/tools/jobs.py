"""List runs on this machine and on Slurm, newest first, with their state and progress.

nano3 jobs                              runs under output/nano3/runs
nano3 jobs my_sweep                     the points of one sweep
nano3 jobs --active --watch             what is pending or running, redrawn every 5 seconds

"last line" is the age of the newest output of a running run. "silent" marks one that wrote nothing for far longer than
it usually does: it may hang.
"""

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from launch import job_records, local_job, slurm
from launch.names import natural_order
from launch.progress import loss_text, read_progress, whole_duration
from launch.state_text import describe_state
from launch.sweep_table import screen_table, waiting_cells
from nano3.tools._arguments import RUNS, at_least, find_runs_below
from nano3.tools._local_runs import local_state, newest_start_is_local
from nano3.utils.console import cell_text, console, print_problems, say, table, warn, without_empty_columns
from nano3.utils.errors import Failure, Nano3Error, UserError, common_kind

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

HELP = "list runs with their state and progress, on this machine or on Slurm"
ONLY_SHOWS = True
_COLUMNS = (
    "run", "job", "state", "exit", "iteration", "loss", "elapsed", "left", "last line", "restarts", "started",
)  # fmt: skip
_RIGHT = ("exit", "iteration", "loss", "elapsed", "left", "last line", "restarts")
_WATCH_SECONDS = 5
# Lines of a terminal besides the rows of the table: title, header, rules, caption, cursor.
_FRAME = 7


class ListedRun(NamedTuple):
    """What the table shows of a run."""

    # Whether it is pending or running.
    active: bool
    # The first word of its state, in lower case.
    state: str
    # When it was last submitted or started, in seconds since the epoch.
    time: float
    cells: tuple[str, ...]


class Listing(NamedTuple):
    """All runs, newest first, with the errors of those that cannot be read, and what Slurm could not answer."""

    runs: list[ListedRun]
    errors: list[Nano3Error]
    warning: str

    @property
    def problems(self) -> list[str]:
        """The messages of the errors."""
        return [problem for error in self.errors for problem in error.problems]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[RUNS],
        help=f"run folders or their parents, or names under {RUNS} (default: {RUNS})",
    )  # fmt: skip
    parser.add_argument("--active", action="store_true", help="only runs that are pending or running")
    parser.add_argument(
        "--watch", metavar="SECONDS", type=at_least(1), nargs="?", const=_WATCH_SECONDS,
        help=f"show the table again every SECONDS (default: {_WATCH_SECONDS}) until Ctrl-C",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    args.folders = [found if (found := RUNS / f).is_dir() and not f.is_dir() else f for f in args.folders]
    missing = [folder for folder in args.folders if not folder.is_dir()]
    if missing and args.folders != [RUNS]:
        raise UserError([f"There is no folder {folder}, neither here nor under {RUNS}." for folder in missing])
    if args.watch:
        _watch(args)
    listing = _list_runs(args.folders, args.active)
    if listing.warning:
        warn(listing.warning)
    if listing.runs:
        columns, rows = without_empty_columns(_COLUMNS, [run.cells for run in listing.runs])
        table("runs", columns, rows, right=_RIGHT)
    elif not listing.problems:
        say(_nothing_listed(args))
    print_problems(listing.problems)
    return common_kind(listing.errors).exit_code if listing.errors else 0


def _nothing_listed(args: argparse.Namespace) -> str:
    """Return a sentence for an empty list."""
    return f"No {'pending or running ' * args.active}runs under {', '.join(map(str, args.folders))}."


def _watch(args: argparse.Namespace) -> None:
    """Redraw the table until Ctrl-C; without a terminal print it again and again."""
    from rich.live import Live

    out = console()
    live = Live(console=out, auto_refresh=False) if out.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            listing = _list_runs(args.folders, args.active)
            # A run with a damaged record is not listed, but it exists: its error follows.
            empty = "no runs to show" if listing.problems else _nothing_listed(args)
            title = f"{datetime.now():%H:%M:%S}: {_totals(listing.runs) or empty}"
            if live:
                live.update(_screen(title, listing, out), refresh=True)
            else:
                _print_listing(title, listing)
            time.sleep(args.watch)


def _screen(title: str, listing: Listing, out: "Console") -> "RenderableType":
    """Return what a terminal shows of the runs, within its height.

    Args:
        title: The first line.
        listing: The runs.
        out: The terminal.
    """
    from rich.text import Text

    notes = [cell_text(note) for note in (listing.warning, *listing.problems) if note]
    if not listing.runs:
        return Text("\n".join([cell_text(title), *notes]))
    columns, rows = without_empty_columns(_COLUMNS, [run.cells for run in _join_waiting(listing.runs)])
    most = max(out.height - _FRAME - len(notes), 1)
    hidden = [f"and {len(rows) - most} older lines"] if len(rows) > most else []
    caption = "\n".join([*hidden, *notes])
    return screen_table(title, columns, rows[:most], right=_RIGHT, caption=caption, width=out.width)


def _print_listing(title: str, listing: Listing) -> None:
    """Print the runs and what is wrong with others."""
    if listing.runs:
        columns, rows = without_empty_columns(_COLUMNS, [run.cells for run in _join_waiting(listing.runs)])
        table(title, columns, rows, right=_RIGHT)
    else:
        say(title)
    print_problems(filter(None, [listing.warning, *listing.problems]))


def _join_waiting(runs: list[ListedRun]) -> list[ListedRun]:
    """Return the runs with one line for all points of a sweep that wait for the same reason."""
    groups: dict[tuple[object, ...], list[ListedRun]] = {}
    for number, run in enumerate(runs):
        folder, _, state, *_ = run.cells
        waits = run.state == "pending"
        groups.setdefault((Path(folder).parent, state) if waits else (number,), []).append(run)
    lines = []
    for same in groups.values():
        name, _, *rest = same[0].cells
        joined = same[0]._replace(cells=(f"{len(same)} points of {Path(name).parent}", "", *rest))
        lines.append(joined if len(same) > 1 else same[0])
    return lines


def _totals(runs: list[ListedRun]) -> str:
    """Return how many runs are in which state, such as "2 running, 1 failed", "" for no runs."""
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _list_runs(folders: Iterable[Path], only_active: bool) -> Listing:
    """Return the runs at or below some folders. Slurm is asked once, about the jobs without a recorded end.

    Args:
        folders: Run folders or their parents.
        only_active: Leave out runs that are neither pending nor running.
    """
    every = {run_dir for folder in folders if folder.is_dir() for run_dir in find_runs_below(folder)}
    found = sorted(every, key=natural_order)
    records, errors = _read_all_records(found)
    states, warning = _states({run_dir: jobs[-1] for run_dir, jobs in records.items() if jobs})
    runs = []
    for run_dir, jobs in records.items():
        try:
            local = newest_start_is_local(run_dir)
            runs.append(_local_run(run_dir, jobs) if local else _slurm_run(run_dir, jobs, states[run_dir]))
        except Nano3Error as error:
            errors.append(error)
    shown = [run for run in runs if run.active or not only_active]
    # Several are submitted in a second, as the points of a sweep are: those that run come first, then those that wait,
    # then those that failed or stopped.
    order = sorted(
        shown,
        key=lambda run: (-run.time, not run.active, run.state == "pending", run.state in ("completed", "finished")),
    )
    return Listing(order, errors, warning)


def _read_all_records(runs: list[Path]) -> tuple[dict[Path, list[job_records.JobRecord]], list[Nano3Error]]:
    """Return the Slurm jobs of each run, oldest first, and the errors of unreadable records."""
    records: dict[Path, list[job_records.JobRecord]] = {}
    errors: list[Nano3Error] = []
    for run_dir in runs:
        try:
            records[run_dir] = job_records.read_records(run_dir)
        except Nano3Error as error:
            errors.append(error)
    return records, errors


def _states(newest: dict[Path, job_records.JobRecord]) -> tuple[dict[Path, slurm.JobState], str]:
    """Return the state of each run's newest job, and why Slurm could not be asked, if so. Record final ends."""
    try:
        states = job_records.job_states(newest)
    except Failure as error:
        return {run_dir: record.end_state or slurm.UNKNOWN for run_dir, record in newest.items()}, str(error)
    for run_dir, state in states.items():
        if state.ended_for_good and not newest[run_dir].state:
            job_records.record_end(run_dir, newest[run_dir].id, state)
    return states, ""


def _slurm_run(run_dir: Path, jobs: list[job_records.JobRecord], state: slurm.JobState) -> ListedRun:
    """Return a run whose newest start is a Slurm job.

    Args:
        run_dir: Run folder.
        jobs: Its jobs, oldest first.
        state: State of the newest one.
    """
    job = jobs[-1]
    code = str(state.code) if state.ended else ""
    pending, running = state.state == "PENDING", not state.ended and state != slurm.UNKNOWN
    started = "" if pending else state.start or job.started
    restarts = len(jobs) - 1 + sum(earlier.restarts for earlier in jobs[:-1]) + state.restarts
    if pending:
        elapsed, left = waiting_cells(state)
        progress = (*_progress(run_dir)[:2], elapsed, left, "")
    else:
        progress = _progress(run_dir, _seconds(started), _seconds(state.end), running, Path(job.log))
    cells = (_name(run_dir), job.id, describe_state(state), code, *progress, str(restarts or ""), _minute(started))
    return ListedRun(running, state.state.lower(), _seconds(job.submitted) or 0.0, cells)


def _local_run(run_dir: Path, jobs: list[job_records.JobRecord]) -> ListedRun:
    """Return a run whose newest start is on this machine.

    Args:
        run_dir: Run folder.
        jobs: Its Slurm jobs, oldest first.
    """
    state, job = local_state(run_dir), local_job.newest_local_job(run_dir)
    running = state.name == "running"
    started = job.started if job else ""
    ended = (run_dir / local_job.FILE).stat().st_mtime if job and job.exit_code is not None else None
    restarts = len(jobs) or max(sum(1 for _ in run_dir.glob("starts/[0-9]*")) - 1, 0)
    progress = _progress(run_dir, _seconds(started), ended, running, Path(job.log) if job and job.log else None)
    code = "" if state.code is None else str(state.code)
    cells = (_name(run_dir), "", str(state), code, *progress, str(restarts or ""), _minute(started))
    return ListedRun(running, state.name, _seconds(started) or _config_time(run_dir), cells)


def _progress(
    run_dir: Path,
    started: float | None = None,
    ended: float | None = None,
    running: bool = False,
    log: Path | None = None,
) -> tuple[str, str, str, str, str]:
    """Return the cells of iteration, loss, elapsed and left time and the age of the last line.

    Args:
        run_dir: Run folder.
        started: When its newest start began, in seconds since the epoch.
        ended: When that start ended.
        running: Whether it is running.
        log: Its log of rank 0.
    """
    logs = [run_dir / "logs" / "rank_0.log", *([log] if log else [])]
    progress = read_progress(run_dir, logs)
    until = time.time() if running else ended
    elapsed = whole_duration(max(until - started, 0)) if started and until else ""
    left, age = (progress.left_text(), progress.age_text()) if running else ("", "")
    return progress.iteration_text(), loss_text(progress.metrics), elapsed, left, age


def _name(run_dir: Path) -> str:
    """Return a run as other tools accept it: its name under output/nano3/runs, or its path."""
    return str(run_dir.relative_to(RUNS)) if run_dir.is_relative_to(RUNS) and run_dir != RUNS else str(run_dir)


def _seconds(text: str) -> float | None:
    """Return a time in ISO 8601 in seconds since the epoch, None for an empty text."""
    return datetime.fromisoformat(text).timestamp() if text else None


def _minute(text: str) -> str:
    """Return a time in ISO 8601 in local time, to the minute."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}" if text else ""


def _config_time(run_dir: Path) -> float:
    """Return when a run without a record of its start was configured, 0 if unknown."""
    try:
        return (run_dir / "config.yaml").stat().st_mtime
    except OSError:
        return 0.0
