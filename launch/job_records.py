"""RUN_DIR/jobs.json: the Slurm jobs of a run, oldest first. launch writes it at submission and at a job's end."""

import contextlib
import datetime
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec

from launch import slurm
from launch.job_end import JobMarkers
from nano3.utils.errors import RESTART_EXIT_CODE, UserError
from nano3.utils.locks import wait_for_lock
from nano3.utils.records import damaged, read_record, read_values, write_record

FILE = "jobs.json"
# Held for each change: one command may record a job's end while another submits the next job.
LOCK = ".jobs.lock"
_FORMAT = 1


@dataclass(frozen=True)
class JobRecord:
    """One submission."""

    # "123", or "123_4" for a sweep point.
    id: str
    name: str
    # Local time with its offset, ISO 8601.
    submitted: str
    # Log of rank 0; the log of rank 3 ends in _3_log.out.
    log: str
    script: str
    # Jobs that belong to this one and are canceled with it: the array of a finalizer.
    parts: tuple[str, ...] = ()
    # Set when the job has ended.
    state: str = ""
    exit_code: int | None = None
    started: str = ""
    ended: str = ""
    # How often Slurm requeued it.
    restarts: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError unless `submitted` is a time."""
        datetime.datetime.fromisoformat(self.submitted)

    @property
    def ids(self) -> list[str]:
        """All Slurm jobs of this submission."""
        return [*self.parts, self.id]

    @property
    def end_state(self) -> slurm.JobState | None:
        """The recorded end, None if there is none."""
        if not self.state:
            return None
        end = slurm.JobState(self.state, self.exit_code or 0, restarts=self.restarts)
        return replace(end, start=self.started, end=self.ended)


class _JobsFile(msgspec.Struct):
    format: int
    jobs: list[JobRecord] = []


def read_records(run_dir: Path) -> list[JobRecord]:
    """Return the submissions of a run, oldest first; [] if there was none.

    Raises:
        UserError: The file is damaged, or has another format.
    """
    path = run_dir / FILE
    fix = "Check with squeue that no job of this run is pending or running, then remove the file."
    try:
        content = read_record(path, _JobsFile, fix)
        known = {field.name for field in fields(JobRecord)}
        if unknown := [key for job in read_values(path, fix).get("jobs", []) for key in job if key not in known]:
            raise damaged(path, f"unknown key {unknown[0]!r}", fix)
    except FileNotFoundError:
        return []
    if content.format != _FORMAT:
        raise UserError(f"{path} has format {content.format}; this nano3 reads format {_FORMAT}.")
    if not content.jobs:
        raise damaged(path, "it lists no job", fix)
    return content.jobs


def add_record(run_dir: Path, record: JobRecord) -> None:
    """Append a submission."""
    with wait_for_lock(run_dir / LOCK):
        _write(run_dir, [*read_records(run_dir), record])


def record_end(run_dir: Path, job_id: str, state: slurm.JobState) -> None:
    """Record how a job ended, because Slurm forgets it after a while; not in a run of another user."""
    with contextlib.suppress(PermissionError), wait_for_lock(run_dir / LOCK):
        records = [
            replace(
                r,
                state=state.state,
                exit_code=state.code,
                started=state.start,
                ended=state.end,
                restarts=state.restarts,
            )
            if r.id == job_id
            else r
            for r in read_records(run_dir)
        ]
        _write(run_dir, records)


def end_without_slurm(run_dir: Path, record: JobRecord) -> slurm.JobState:
    """Return the state of a job that Slurm has forgotten, from what the job left in its folders; `UNKNOWN` if nothing.

    Args:
        run_dir: Run folder.
        record: The submission.
    """
    markers = JobMarkers(Path(record.log).parent, record.id)
    if failure := markers.first_failure():
        return slurm.JobState("FAILED", failure.code)
    submitted = datetime.datetime.fromisoformat(record.submitted).timestamp()
    finished = run_dir / "finished.json"
    if finished.exists() and finished.stat().st_mtime >= submitted:
        return slurm.JobState("COMPLETED")
    if markers.saved:
        return slurm.JobState("FAILED", RESTART_EXIT_CODE)
    return slurm.UNKNOWN


def job_states(runs: Mapping[Path, JobRecord]) -> dict[Path, slurm.JobState]:
    """Return the state of one submission of each run: recorded, from Slurm, or from the run folder.

    Raises:
        Failure: Slurm does not answer.
    """
    recorded = {run: end for run, r in runs.items() if (end := r.end_state)}
    asked = slurm.states(record.id for run, record in runs.items() if run not in recorded)
    found = {}
    for run, record in runs.items():
        state = recorded[run] if run in recorded else asked[record.id]
        found[run] = end_without_slurm(run, record) if state == slurm.UNKNOWN else state
    return found


def _write(run_dir: Path, records: list[JobRecord]) -> None:
    write_record(run_dir / FILE, _JobsFile(_FORMAT, records))


def check_not_active(run_dirs: Iterable[Path]) -> None:
    """Check that no run has a pending or running job, because two jobs must not write to one run folder.

    Raises:
        UserError: Some have; the error lists them all.
    """
    newest = {
        run_dir: records[-1].id for run_dir in run_dirs if (records := read_records(run_dir)) and not records[-1].state
    }
    states = slurm.states(newest.values()) if newest else {}
    active = {run_dir: job for run_dir, job in newest.items() if states[job] != slurm.UNKNOWN and not states[job].ended}
    if active:
        raise UserError(_active_message(run_dir, job, states[job].state) for run_dir, job in active.items())


def _active_message(run_dir: Path, job: str, state: str) -> str:
    quoted = shlex.quote(str(run_dir))
    return (
        f"{run_dir}: job {job} of this run is {state}. Watch it with `nano3 tail {quoted}`, end it with "
        f"`nano3 cancel {quoted}`, or give this run another name (run.name=...)."
    )
