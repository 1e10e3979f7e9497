"""Run the points of a sweep: on Slurm one array for each set of equal resources, here one process after another.

A finished point is not run again, so the same command runs only the missing points. A failed point does not stop the
others. The exit code is that of the first failed point in order; without one, 75 if a point stopped or was not started.
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
from launch.follow import Watch, describe_state, follow_attached, last_metrics, loss_text, say, tail_lines
from launch.job import Job
from launch.local import run_process, show_job
from launch.lock import hold_run_lock
from launch.submit import Batch, SubmittedJob, submit_batch
from nano3.utils.console import cell_text, console, printable, table, write
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, RESTART_EXIT_CODE, UserError

_COLUMNS = ("point", "job", "state", "loss", "exit")


@dataclass
class SweepRow:
    """One point in the table of a sweep."""

    job: Job
    id: str = "-"
    state: str = "waiting"
    code: int | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the text of each column."""
        code = "" if self.code is None else str(self.code)
        loss = loss_text(last_metrics(self.job.run_dir))
        return (self.job.label or self.job.name, self.id, self.state, loss, code)


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
            table("sweep", _COLUMNS, [row.cells() for row in self.rows], right=("loss", "exit"))

    def update(self) -> None:
        """Show the changes since the last call."""
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
        for row in self.rows:
            label = row.job.label or row.job.name
            if self._shown.get(label) != row.state:
                self._shown[label] = row.state
                say(f"{label}: {row.state}" + (f", exit code {row.code}" if row.code else ""))

    def _table(self) -> Table:
        view = Table(title="sweep", title_justify="left", header_style="bold")
        for name in _COLUMNS:
            view.add_column(name, justify="right" if name in ("loss", "exit") else "left", overflow="fold")
        for row in self.rows:
            view.add_row(*(Text(cell_text(cell)) for cell in row.cells()))  # no markup: nodes are named rack[a1-a4]
        return view


def _rows(jobs: list[Job]) -> list[SweepRow]:
    return [SweepRow(job, state="finished before", code=0) if job.finished else SweepRow(job) for job in jobs]


@dataclass(frozen=True)
class SweepEnd:
    """The exit code of a sweep, and that of each job; None for a job that was not started or is not followed."""

    code: int
    codes: list[int | None]
    # This command was asked to stop.
    interrupted: bool = False


def _report(rows: list[SweepRow], log: Callable[[SweepRow], Path]) -> int:
    """Print how the points ended and return the exit code of the sweep."""
    failed = [row for row in rows if row.code not in (None, 0, RESTART_EXIT_CODE)]
    for row in failed:
        say(f"{row.job.label}: exit code {row.code}; end of {log(row)}:")
        for line in tail_lines(log(row), 5):
            say(f"    {line}")
    codes = [row.code for row in rows]
    unfinished = {"failed": len(failed), "stopped": codes.count(RESTART_EXIT_CODE), "not started": codes.count(None)}
    words = "".join(f", {count} {how}" for how, count in unfinished.items() if count)
    say(f"{codes.count(0)} of {len(rows)} points finished{words}")
    if failed:
        return failed[0].code or 1
    return RESTART_EXIT_CODE if codes.count(0) < len(rows) else 0


def show_local(jobs: list[Job]) -> int:
    """Print what a local sweep would run, for a dry run."""
    for job in jobs:
        write(f"# ---- point {printable(f'{job.label}: {job.run_dir}')}{' (finished before)' * job.finished}\n")
        show_job(job)
    return 0


def run_local(jobs: list[Job]) -> SweepEnd:
    """Run one point after another, each in a process that writes to RUN_DIR/logs/rank_0.log."""
    rows = _rows(jobs)
    stop_requested = False
    with SweepTable(rows) as sweep_table:
        for row in rows:
            if row.code == 0:
                continue
            row.state = "running"
            sweep_table.update()
            stop_requested = _run_point(row)
            sweep_table.update()
            if stop_requested:
                break
    return _end(_report(rows, _local_log), rows, stop_requested)


def _end(code: int, rows: list[SweepRow], interrupted: bool = False) -> SweepEnd:
    return SweepEnd(code, [row.code for row in rows], interrupted)


def _run_point(row: SweepRow) -> bool:
    """Run one point and return whether this command was asked to stop meanwhile."""
    try:
        with hold_run_lock(row.job.run_dir) as lock:
            job_records.check_not_active([row.job.run_dir])
            row.job.prepare()
            end = run_process(row.job, _local_log(row), lock)
    except UserError as error:
        row.code, row.state = error.exit_code, "refused"
        say(f"{row.job.label}: {error}")
        return False
    row.code, row.state = end.code, {0: "finished", RESTART_EXIT_CODE: "stopped"}.get(end.code, "failed")
    return end.stop_requested


def _local_log(row: SweepRow) -> Path:
    return row.job.run_dir / "logs" / "rank_0.log"


def base_folder(jobs: list[Job]) -> Path:
    """Return the folder that holds the run folders of all points."""
    return Path(os.path.commonpath([job.run_dir.absolute().parent for job in jobs]))


def make_batches(jobs: list[Job]) -> list[Batch]:
    """Return the unfinished jobs, in one batch for each set of equal resources."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.finished:
            groups.setdefault(repr((astuple(job.cluster), job.container, job.after)), []).append(job)
    return [Batch(group, group[0].name, base_folder(jobs) / "slurm") for group in groups.values()]


def run_slurm(jobs: list[Job]) -> SweepEnd:
    """Submit the unfinished points and, if attached, follow them to their end; the exit code is 0 if detached."""
    rows = _rows(jobs)
    job_records.check_not_active(job.run_dir for job in jobs if not job.finished)
    submitted: list[SubmittedJob] = []
    try:
        for batch in make_batches(jobs):
            submitted += submit_batch(batch)
    except BaseException:
        if submitted:
            slurm.cancel(job.id for job in submitted)
            say(f"cancelled {', '.join(job.id for job in submitted)}: a sweep is submitted as a whole or not at all")
        raise
    by_run_dir = {job.run_dir: job for job in submitted}
    for row in rows:
        if row.job.run_dir in by_run_dir:
            row.id, row.state = by_run_dir[row.job.run_dir].id, "submitted"
    quoted = shlex.quote(str(base_folder(jobs)))
    hint = f"Show it with `nano3 jobs {quoted}`, end it with `nano3 cancel {quoted}`."
    ids = " ".join(job.id for job in submitted)
    message = f"submitted {len(submitted)} of {len(jobs)} points: {ids}".rstrip(": ")
    if jobs[0].cluster.mode == "detached":
        say(message)
        say(hint)
        return _end(0, rows)
    code = follow_attached(message, lambda: _watch(rows, by_run_dir), sorted(array_ids(submitted)), hint)
    return _end(code, rows, code == INTERRUPTED_EXIT_CODE)


def array_ids(jobs: list[SubmittedJob]) -> set[str]:
    """Return the ids of the whole arrays, and of single jobs."""
    return {job.id.partition("_")[0] for job in jobs}


def _watch(rows: list[SweepRow], submitted: dict[Path, SubmittedJob]) -> int:
    open_rows = [row for row in rows if row.job.run_dir in submitted]
    poll_s = rows[0].job.cluster.poll_s
    watch = Watch([row.id for row in open_rows], poll_s)
    with SweepTable(rows) as sweep_table:
        while open_rows and not watch.ended:
            if watch.poll():
                for row in open_rows:
                    state = watch.states[row.id]
                    row.state = describe_state(state)
                    if state.ended and row.code is None:
                        row.code = state.code
                    if not state.ended:
                        row.code = None  # requeued
                sweep_table.update()
            time.sleep(min(0.25, poll_s))
    for row in open_rows:
        job_records.record_end(row.job.run_dir, row.id, watch.states[row.id])
    return _report(rows, lambda row: submitted[row.job.run_dir].log())
