"""Points of a sweep: one array for each set of equal resources on Slurm, one process after another here.

A point whose done marker exists is not run again, so the same command goes on with what is missing. A point that fails
does not stop the others; the exit code is that of the first point, in order, that failed, or 75 when none failed but
one stopped or was not started.
"""

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch import job_records, slurm
from launch.follow import Watch, attached, describe_state, say, tail
from launch.job import AGAIN, Job
from launch.local import run_process, show
from launch.lock import hold_run_lock
from launch.metrics import last_metrics, loss_text
from launch.submit import Batch, Submitted, submit_batch
from nano3.utils.console import console, table
from nano3.utils.errors import UserError

_COLUMNS = ("point", "job", "state", "loss", "exit")


@dataclass
class Row:
    """One line of the table."""

    job: Job
    id: str = "-"
    state: str = "waiting"
    code: int | None = None

    def cells(self) -> tuple[str, ...]:
        """Text of each column."""
        code = "" if self.code is None else str(self.code)
        loss = loss_text(last_metrics(self.job.run_dir))
        return (self.job.label or self.job.name, self.id, self.state, loss, code)


class View:
    """The table: redrawn on a terminal; else a line for each change and the whole table at the end."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self._out = console(stderr=True)
        self._live = Live(console=self._out, auto_refresh=False) if self._out.is_terminal else None
        self._told: dict[str, str] = {}

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        self.update()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        else:
            table("sweep", _COLUMNS, [row.cells() for row in self.rows], right=("loss", "exit"))

    def update(self) -> None:
        """Show what has changed."""
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
        for row in self.rows:
            label = row.job.label or row.job.name
            if self._told.get(label) != row.state:
                self._told[label] = row.state
                say(f"{label}: {row.state}" + (f", exit code {row.code}" if row.code else ""))

    def _table(self) -> Table:
        view = Table(title="sweep", title_justify="left", header_style="bold")
        for name in _COLUMNS:
            view.add_column(name, justify="right" if name in ("loss", "exit") else "left", overflow="fold")
        for row in self.rows:
            view.add_row(*map(Text, row.cells()))  # without markup: nodes are called rack[a1-a4]
        return view


def _rows(jobs: list[Job]) -> list[Row]:
    return [Row(job, state="finished before", code=0) if job.finished else Row(job) for job in jobs]


def _outcome(rows: list[Row], log: Callable[[Row], Path]) -> int:
    """Tell how the points ended. The exit code is that of the first that failed; without one, 75 when a point stopped
    or was not started: the same command goes on with those.
    """
    failed = [row for row in rows if row.code not in (None, 0, AGAIN)]
    for row in failed:
        say(f"{row.job.label}: exit code {row.code}; end of {log(row)}:")
        for line in tail(log(row), 5):
            say(f"    {line}")
    codes = [row.code for row in rows]
    left = {"failed": len(failed), "stopped": codes.count(AGAIN), "not started": codes.count(None)}
    words = "".join(f", {count} {how}" for how, count in left.items() if count)
    say(f"{codes.count(0)} of {len(rows)} points finished{words}")
    if failed:
        return failed[0].code or 1
    return AGAIN if codes.count(0) < len(rows) else 0


def show_local(jobs: list[Job]) -> int:
    """A dry run of a local sweep."""
    for job in jobs:
        console().print(
            f"# ---- point {job.label}: {job.run_dir}{' (finished before)' if job.finished else ''}", markup=False
        )
        show(job)
    return 0


def run_local(jobs: list[Job]) -> int:
    """One point after another, each a process that writes to RUN_DIR/logs/rank_0.log."""
    rows = _rows(jobs)
    with View(rows) as view:
        for row in rows:
            if row.code == 0:
                continue
            row.state = "running"
            view.update()
            told_to_stop = _run_point(row)
            view.update()
            if told_to_stop:
                break
    return _outcome(rows, _local_log)


def _run_point(row: Row) -> bool:
    """Run one point; True when this command was asked to stop meanwhile."""
    try:
        with hold_run_lock(row.job.run_dir) as lock:
            job_records.check_not_active([row.job.run_dir])
            row.job.prepare()
            end = run_process(row.job, _local_log(row), lock)
    except UserError as error:
        row.code, row.state = error.exit_code, "refused"
        say(f"{row.job.label}: {error}")
        return False
    row.code, row.state = end.code, {0: "finished", AGAIN: "stopped"}.get(end.code, "failed")
    return end.told_to_stop


def _local_log(row: Row) -> Path:
    return row.job.run_dir / "logs" / "rank_0.log"


def base_folder(jobs: list[Job]) -> Path:
    """The folder that holds every point's run folder."""
    return Path(os.path.commonpath([job.run_dir.absolute().parent for job in jobs]))


def batches(jobs: list[Job]) -> list[Batch]:
    """Jobs that wait to be run, in one batch for each set of equal resources."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.finished:
            groups.setdefault(repr((astuple(job.cluster), job.container, job.after)), []).append(job)
    return [Batch(group, group[0].name, base_folder(jobs) / "slurm") for group in groups.values()]


def run_slurm(jobs: list[Job]) -> int:
    """Submit the points that have not finished; attached, watch them to their end."""
    rows = _rows(jobs)
    job_records.check_not_active(job.run_dir for job in jobs if not job.finished)
    taken: list[Submitted] = []
    try:
        for batch in batches(jobs):
            taken += submit_batch(batch)
    except BaseException:
        if taken:
            slurm.cancel(one.id for one in taken)
            say(f"cancelled {', '.join(one.id for one in taken)}: the sweep is submitted whole or not at all")
        raise
    ids = {one.run_dir: one for one in taken}
    for row in rows:
        if row.job.run_dir in ids:
            row.id, row.state = ids[row.job.run_dir].id, "submitted"
    base = base_folder(jobs)
    place = shlex.quote(str(base))
    how = f"Look at it with `nano3 jobs {place}`, end it with `nano3 cancel {place}`."
    told = f"submitted {len(taken)} of {len(jobs)} points: {' '.join(one.id for one in taken)}".rstrip(": ")
    if jobs[0].cluster.mode == "detached":
        say(told)
        say(how)
        return 0
    return attached(told, lambda: _watch(rows, ids), sorted(ids_of(taken)), how)


def ids_of(taken: list[Submitted]) -> set[str]:
    """Ids of whole arrays, or of single jobs."""
    return {one.id.partition("_")[0] for one in taken}


def _watch(rows: list[Row], taken: dict[Path, Submitted]) -> int:
    open_rows = [row for row in rows if row.job.run_dir in taken]
    poll_s = rows[0].job.cluster.poll_s
    watch = Watch([row.id for row in open_rows], poll_s)
    with View(rows) as view:
        while open_rows and not watch.ended:
            if watch.look():
                for row in open_rows:
                    state = watch.states[row.id]
                    row.state = describe_state(state)
                    if state.ended and row.code is None:
                        row.code = state.code
                    if not state.ended:
                        row.code = None  # requeued after all
                view.update()
            time.sleep(min(0.25, poll_s))
    for row in open_rows:
        job_records.record_end(row.job.run_dir, row.id, watch.states[row.id])
    return _outcome(rows, lambda row: taken[row.job.run_dir].log())
