"""The table of a sweep: totals and the points that matter most, redrawn on a terminal within its height.

Without a terminal it is one line for each change, and the whole table at the end.
"""

import datetime
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch import job_records, slurm
from launch.follow import failure_lines, say
from launch.job_end import JobMarkers
from launch.progress import Progress, last_metrics, loss_text, read_progress, whole_duration
from launch.state_text import describe_state, never_starts, run_s, starts_in_s, waited_s
from launch.submit import SubmittedJob
from nano3.utils.console import cell_text, console, table
from nano3.utils.errors import RESTART_EXIT_CODE

_COLUMNS = ("point", "job", "state", "iteration", "loss", "elapsed", "left", "exit")
_RIGHT = ("iteration", "loss", "elapsed", "left", "exit")
# Lines of the table besides its rows: title, header, two rules, the line about hidden points, the cursor.
_FRAME = 7
# Names of the states of all rows, in the order in which rows are shown and counted.
_KINDS = ("failed", "cannot start", "stopped", "running", "pending", "finished")


@dataclass
class SweepRow:
    """One point of a sweep."""

    label: str
    run_dir: Path
    # The iteration at which it ends, if known.
    total: int | None = None
    state: str = "waiting"
    code: int | None = None
    submitted: SubmittedJob | None = None
    # Seconds since the epoch and iteration when it was first seen running.
    started: float | None = None
    first_iteration: int = 0
    # The state of its job, as Slurm last said.
    job_state: slurm.JobState = slurm.UNKNOWN

    def set_state(self, state: str, start: str = "") -> None:
        """Change the state; `start` is when the job started, as Slurm writes it."""
        self.state = state
        if self.kind == "running" and self.started is None:
            known = datetime.datetime.fromisoformat(start).timestamp() if start else time.time()
            self.started = known
            self.first_iteration = int(last_metrics(self.run_dir).get("iteration", 0))

    def update(self, state: slurm.JobState) -> None:
        """Take over the state of the point's job."""
        self.job_state = state
        self.set_state(describe_state(state), state.start)
        if state.ended and self.code is None:
            self.code = state.code
        if not state.ended:
            self.code = None  # requeued

    @property
    def failed(self) -> bool:
        """Whether the point ended with an error."""
        return self.code not in (None, 0, RESTART_EXIT_CODE)

    @property
    def kind(self) -> str:
        """One of `_KINDS`."""
        if self.failed:
            return "failed"
        if self.code is not None:
            return "finished" if self.code == 0 else "stopped"
        if never_starts(self.job_state):
            return "cannot start"
        return "running" if self.state.lower().startswith(("running", "completing")) else "pending"

    def log(self, rank: int = 0) -> Path:
        """Return the log of one rank."""
        return self.submitted.log(rank) if self.submitted else self.run_dir / "logs" / f"rank_{rank}.log"

    def _failed_rank(self) -> int:
        if self.submitted:
            failure = JobMarkers(self.submitted.folder, self.submitted.id).first_failure()
            return failure.rank if failure else 0
        return next((int(p.stem) for p in self.run_dir.glob("logs/*.exit") if p.read_text() not in ("", "0", "75")), 0)

    def failed_log(self) -> Path:
        """Return the log of the rank that failed first."""
        return self.log(self._failed_rank())

    def reason(self) -> str:
        """Return why the point failed: the rank, the exit code."""
        return f"rank {self._failed_rank()} failed with exit code {self.code}"

    def end_without_slurm(self) -> slurm.JobState:
        """Return how the job ended if Slurm has forgotten it."""
        record = job_records.read_records(self.run_dir)[-1]
        return job_records.end_without_slurm(self.run_dir, record)

    def cells(self) -> tuple[str, ...]:
        """Return the text of each column."""
        progress = read_progress(self.run_dir)
        done, metrics = progress.iteration, progress.metrics
        if self.total and (done or self.kind != "pending"):
            iteration = f"{done}/{self.total}"
        else:
            iteration = str(done or "")
        state = self.state
        if self.failed:
            last = "".join(failure_lines(self.failed_log(), 1))
            state = f"{state}, rank {self._failed_rank()}: {re.sub(r'^error: ', '', last.strip())[:100]}"
        elapsed, left = self._times(progress)
        code = "" if self.code is None else str(self.code)
        job = self.submitted.id if self.submitted else "-"
        return (self.label, job, state, iteration, loss_text(metrics), elapsed, left, code)

    def _times(self, progress: Progress) -> tuple[str, str]:
        """Return since when the point runs or waits, and how much longer it will."""
        if self.code is None and self.kind != "running":
            return waiting_cells(self.job_state)
        if self.kind != "running" or self.started is None:
            ran = run_s(self.job_state)
            return "" if ran is None else whole_duration(ran), ""
        seconds = time.time() - self.started
        left = progress.left_text()
        if not left and self.total and progress.iteration > self.first_iteration:
            rest = max(self.total - progress.iteration, 0)
            left = whole_duration(seconds * rest / (progress.iteration - self.first_iteration))
        return whole_duration(seconds), left


def waiting_cells(state: slurm.JobState) -> tuple[str, str]:
    """Return how long a job has waited and when Slurm expects it to start, for the columns of elapsed and left time."""
    waited, start = waited_s(state), starts_in_s(state)
    return (
        "" if waited is None else f"waits {whole_duration(waited)}",
        "" if start is None else f"starts in {whole_duration(start)}",
    )


def totals(rows: list[SweepRow]) -> str:
    """Return how many points are in which state, such as "1 failed, 3 running, 12 finished"."""
    counts = Counter(row.kind for row in rows)
    return ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind])


def choose_rows(rows: list[SweepRow], most: int) -> tuple[list[list[SweepRow]], str]:
    """Return what to show on each line, failures first, and a line about the others, "" if there are none.

    Points that wait for the same reason share a line.

    Args:
        rows: All points.
        most: How many lines fit.
    """
    lines: list[list[SweepRow]] = []
    waiting: dict[str, list[SweepRow]] = {}
    for row in sorted(rows, key=lambda row: _KINDS.index(row.kind)):  # stable: each kind in the order of the sweep
        if row.kind == "pending" and row.state in waiting:
            waiting[row.state].append(row)
            continue
        lines.append([row])
        if row.kind == "pending":
            waiting[row.state] = lines[-1]
    most = max(most, 1)
    hidden = [row for line in lines[most:] for row in line]
    return lines[:most], f"and {totals(hidden)}" if hidden else ""


class SweepTable:
    """The table of a sweep: redrawn on a terminal, otherwise one line for each change and the table at the end."""

    def __init__(self, rows: list[SweepRow]) -> None:
        self.rows = rows
        self._out = console(stderr=True)
        self._live = Live(console=self._out, auto_refresh=False) if self._out.is_terminal else None
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "SweepTable":
        if self._live:
            self._live.start()
        self.update()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        else:
            table("sweep", _COLUMNS, [row.cells() for row in self.rows], right=_RIGHT)

    def update(self) -> None:
        """Show the changes since the last call."""
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
        for row in self.rows:
            if self._shown.get(row.label) != row.state:
                self._shown[row.label] = row.state
                code = f", exit code {row.code}" if row.code else ""
                say(f"{row.label}: {row.cells()[2] if row.failed else row.state}{code}")

    def _table(self) -> Table:
        lines, others = choose_rows(self.rows, self._out.height - _FRAME)
        cells = [line[0].cells() if len(line) == 1 else _common_cells(line) for line in lines]
        title = f"sweep of {len(self.rows)} points: {totals(self.rows)}"
        return screen_table(title, _COLUMNS, cells, right=_RIGHT, caption=others, width=self._out.width)


def _common_cells(rows: list[SweepRow]) -> tuple[str, ...]:
    """Return the cells of points that wait for the same reason."""
    return (f"{len(rows)} points", "", rows[0].state, "", "", *waiting_cells(rows[0].job_state), "")


# Columns to leave out first if a terminal is too narrow for names and states of this width.
_LEAST_NEEDED, _MIN_FLEXIBLE = ("started", "exit", "job", "restarts", "elapsed", "last line", "left"), 44
_STATE = "state"


def screen_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str],
    caption: str,
    width: int,
) -> Table:
    """Return a table with one line for each row, to be redrawn on a terminal.

    Names are cut at their beginning, as those of a sweep begin alike, and states at their end. Numbers are not cut;
    columns without any are left out.

    Args:
        title: Printed above the table.
        columns: Names of the columns; one is "state".
        rows: One cell per column.
        right: Names of the columns to align to the right.
        caption: Printed below the table.
        width: Columns of the terminal.
    """
    text = [[cell_text(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in text)]) for i, name in enumerate(columns)]
    shown = [i for i, name in enumerate(columns) if i == 0 or name == _STATE or any(row[i] for row in text)]
    at = columns.index(_STATE)

    def flexible() -> int:  # what is left for names and states; a column has a blank on both sides
        return width - 2 - sum(widths[i] + 2 for i in shown if i not in (0, at)) - 4

    for name in _LEAST_NEEDED:
        if flexible() < min(widths[0] + widths[at], _MIN_FLEXIBLE) and name in columns:
            shown = [i for i in shown if columns[i] != name]
    widths[0] = max(min(widths[0], flexible() - min(widths[at], _MIN_FLEXIBLE // 2)), 8)
    widths[at] = max(flexible() - widths[0], 8)
    view = Table(
        title=Text(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False, expand=True
    )
    if caption:
        view.caption, view.caption_justify = Text(caption), "left"
    for i in shown:
        at_right = columns[i] in right
        view.add_column(columns[i], justify="right" if at_right else "left", no_wrap=True, ratio=int(i == at) or None)
    for row in text:
        cells = [_cut(row[i], widths[i], from_left=i == 0) for i in shown]
        view.add_row(*map(Text, cells))  # no markup: nodes are named rack[a1-a4]
    return view


def _cut(text: str, width: int, from_left: bool) -> str:
    if len(text) <= width:
        return text
    return f"…{text[1 - width :]}" if from_left else f"{text[: width - 1]}…"
