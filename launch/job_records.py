"""RUN_DIR/jobs.json: the Slurm jobs of a run, oldest first. Written by launch at submission and at a job's end."""

import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch import slurm
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import read_json, write_json
from nano3.utils.locks import wait_for_lock

FILE = "jobs.json"
# Held while it is rewritten: who follows one job may note its end while another command submits the next.
LOCK = ".jobs.lock"
_FORMAT = 1


@dataclass(frozen=True)
class JobRecord:
    """One submission."""

    # "123", or "123_4" for a point of a sweep.
    id: str
    name: str
    # Local time with its offset, ISO 8601.
    submitted: str
    # Log of rank 0; that of rank 3 ends in _3_log.out.
    log: str
    script: str
    # Jobs that belong to this one and are cancelled with it (the array of a finalizer).
    parts: tuple[str, ...] = ()
    # Set once the job has ended.
    state: str = ""
    exit_code: int | None = None

    @property
    def ids(self) -> list[str]:
        """All Slurm jobs of this entry."""
        return [*self.parts, self.id]


def read_records(run_dir: Path) -> list[JobRecord]:
    """Entries of a run, [] when none was submitted. Raises UserError for a file of another format, Failure for a
    damaged one.
    """
    path = run_dir / FILE
    if not path.exists():
        return []
    try:
        value = read_json(path)
        if (found := value.get("format")) != _FORMAT:
            raise UserError(f"{path} has format {found}; this nano3 reads format {_FORMAT}.")
        return [JobRecord(**{**entry, "parts": tuple(entry["parts"])}) for entry in value["jobs"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Failure(
            f"{path}: damaged ({error}). See with squeue that no job of this run waits or runs, then remove the file."
        ) from error


def add_record(run_dir: Path, entry: JobRecord) -> None:
    """Append an entry."""
    with wait_for_lock(run_dir / LOCK):
        _write(run_dir, [*read_records(run_dir), entry])


def record_end(run_dir: Path, job_id: str, state: slurm.JobState) -> None:
    """Note how a job ended, for the time when Slurm has forgotten it."""
    with wait_for_lock(run_dir / LOCK):
        entries = [
            replace(e, state=state.state, exit_code=state.code) if e.id == job_id else e for e in read_records(run_dir)
        ]
        _write(run_dir, entries)


def _write(run_dir: Path, entries: list[JobRecord]) -> None:
    write_json(run_dir / FILE, {"format": _FORMAT, "jobs": [asdict(entry) for entry in entries]})


def check_not_active(run_dirs: Iterable[Path]) -> None:
    """Raise one UserError for all runs of which a job waits or runs: two jobs must not write one run folder."""
    last = {
        run_dir: entries[-1].id for run_dir in run_dirs if (entries := read_records(run_dir)) and not entries[-1].state
    }
    states = slurm.states(last.values()) if last else {}
    active = {run_dir: job for run_dir, job in last.items() if states[job] != slurm.UNKNOWN and not states[job].ended}
    if active:
        raise UserError(_refusal(run_dir, job, states[job].state) for run_dir, job in active.items())


def _refusal(run_dir: Path, job: str, state: str) -> str:
    place = shlex.quote(str(run_dir))
    return (
        f"{run_dir}: job {job} of this run is {state}. Watch it with `nano3 tail {place}`, end it with "
        f"`nano3 cancel {place}`, or give this run another name (run.name=...)."
    )
