"""cluster.dependency: what a job waits for, as a Slurm expression in which runs may be given by their names."""

import re
from pathlib import Path

from launch import job_records
from nano3.utils.errors import UserError

# Types of sbatch(1), --dependency; the first is that of a name alone. Names of runs are allowed after the first three.
_TYPES = ("afterok", "afterany", "after", "afternotok", "aftercorr", "afterburstbuffer", "expand", "singleton")
_WITH_NAMES = _TYPES[:3]
_JOB_ID = re.compile(r"\d+(_(\d+|\*))?(\+\d+)?")


def resolve(expression: str, run_dir: Path) -> str:
    """Return the expression for sbatch, "" if nothing is left to wait for.

    Args:
        expression: cluster.dependency: "afterok:123,afterany:124", or names or folders of runs, "first" or
            "afterany:first".
        run_dir: Folder of the run that waits. Names are looked for beside it and beside its sweep.

    Raises:
        UserError: A run does not exist, has no Slurm job, or cannot succeed any more.
        Failure: Slurm does not answer.
    """
    items, problems = [], []
    for item in re.split("[,?]", expression):
        try:
            items.append(_resolve_item(item, run_dir))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    if "?" in expression:  # any of them is enough
        return "?".join(items) if all(items) else ""
    return ",".join(filter(None, items))


def _resolve_item(item: str, run_dir: Path) -> str:
    kind, colon, rest = item.partition(":")
    if kind not in _TYPES:
        kind, targets = _TYPES[0], [item]
    elif not colon:
        return item
    else:
        targets = rest.split(":")
    ids: list[str] = []
    for target in targets:
        ids += [target] if _JOB_ID.fullmatch(target) else _jobs_of_run(kind, target, run_dir)
    return f"{kind}:{':'.join(ids)}" if ids else ""


def _jobs_of_run(kind: str, name: str, run_dir: Path) -> list[str]:
    """Return the jobs of a run, or of the points of a sweep, that must still end or start."""
    if kind not in _WITH_NAMES:
        raise UserError(f"cluster.dependency: {kind} needs job ids. Names of runs go with {', '.join(_WITH_NAMES)}.")
    folders = (Path(name), run_dir.parent / name, run_dir.parent.parent / name)
    folder = next((path for path in folders if name and path.is_dir()), None)
    if folder is None:
        raise UserError(
            f"cluster.dependency: there is no run {name!r}. Give the name or folder of a run, or a Slurm expression "
            "with job ids: afterok:123."
        )
    runs = [path for path in (folder, *sorted(folder.iterdir())) if (path / job_records.FILE).is_file()]
    waiting = {run: job_records.read_records(run)[-1] for run in runs if not (run / "finished.json").exists()}
    if not runs and not (folder / "finished.json").exists():
        raise UserError(f"cluster.dependency: {folder} has no Slurm job to wait for, and has not finished.")
    states = job_records.job_states(waiting)
    ids = [record.id for run, record in waiting.items() if not states[run].ended]
    failed = [run for run in waiting if states[run].ended and states[run].code]
    if kind == _TYPES[0] and failed:
        raise UserError(
            f"cluster.dependency: {run}: job {waiting[run].id} ended as {states[run].state} with exit code "
            f"{states[run].code}. Run it again first, or wait for its end only: afterany:{name}."
            for run in failed
        )
    if len(ids) > 1:  # points of a sweep: their whole arrays
        return list(dict.fromkeys(job_id.partition("_")[0] for job_id in ids))
    return ids
