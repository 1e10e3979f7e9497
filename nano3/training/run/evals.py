"""Results of evaluations in RUN/evals.jsonl: one line for each evaluation of an export, with its iteration.

They have a file of their own, because an evaluation ends at any time, in another job than the one that trains and
writes metrics.jsonl. The training takes them over from there (`NewEvals`); those that come after its end are in this
file alone. A resume drops the lines after its iteration, as it does there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nano3.utils.console import warn
from nano3.utils.errors import Failure
from nano3.utils.files import complete_lines, write_json_lines
from nano3.utils.locks import wait_for_lock

FILE = "evals.jsonl"
# Held while lines are added or dropped.
_LOCK = ".evals.lock"
# Values are named eval/TASK/METRIC, as in "eval/arc_easy/acc", and their standard errors eval/TASK/METRIC_stderr.
PREFIX = "eval/"
STDERR = "_stderr"


def read_evals(run_dir: Path) -> list[dict[str, Any]]:
    """Return the results of a run by iteration, one line for each; of a repeated evaluation the newest values.

    Raises:
        Failure: A line is damaged.
    """
    found: dict[int, dict[str, Any]] = {}
    for line in _read(run_dir):
        iteration = line["iteration"]
        found[iteration] = found.get(iteration, {}) | line
    return [found[iteration] for iteration in sorted(found)]


def _read(run_dir: Path) -> list[dict[str, Any]]:
    path = Path(run_dir) / FILE
    try:
        values = [json.loads(line) for line in complete_lines(path) if line]
        if any(not isinstance(line, dict) or not isinstance(line.get("iteration"), int) for line in values):
            raise ValueError("a line has no iteration")
    except ValueError as error:
        raise Failure(
            f"{path} is damaged ({error}). Training does not depend on it: move it away and evaluate the exports again."
        ) from error
    return values


class NewEvals:
    """The results that metrics.jsonl does not have yet."""

    def __init__(self, run_dir: Path, lines: Iterable[dict[str, Any]]) -> None:
        """Note which results there are.

        Args:
            run_dir: The run folder.
            lines: The lines of metrics.jsonl.
        """
        self._run_dir = Path(run_dir)
        self._known: dict[int, dict[str, Any]] = {}
        self._seen: tuple[int, int] | None = None
        for line in lines:
            self._note(line)

    def take(self) -> list[dict[str, Any]]:
        """Return one line for each iteration with new values. A damaged file is a warning, once."""
        try:
            status = (self._run_dir / FILE).stat()
        except FileNotFoundError:
            return []
        if self._seen == (status.st_ino, status.st_mtime_ns):  # the file is replaced as a whole
            return []
        self._seen = (status.st_ino, status.st_mtime_ns)
        try:
            found = [self._note(line) for line in read_evals(self._run_dir)]
        except Failure as error:
            warn(str(error))
            return []
        return [line for line in found if len(line) > 1]

    def _note(self, line: dict[str, Any]) -> dict[str, Any]:
        """Return the iteration and the values of a line that were not known."""
        known = self._known.setdefault(line["iteration"], {})
        new = {k: v for k, v in line.items() if k.startswith(PREFIX) and known.get(k) != v}
        known.update(new)
        return {"iteration": line["iteration"], **new}


def add_eval(run_dir: Path, values: dict[str, Any]) -> None:
    """Add a line.

    Args:
        run_dir: The run folder.
        values: `iteration`, `time`, and the values of each task.
    """
    with wait_for_lock(run_dir / _LOCK):
        lines = _read(run_dir)
        write_json_lines(run_dir / FILE, [*lines, values])


def truncate_evals(run_dir: Path, iteration: int) -> None:
    """Drop the lines after `iteration`, where a start begins; warn if the file is damaged. Call it on rank 0.

    Args:
        run_dir: The run folder.
        iteration: The iteration that the start begins at.
    """
    if not (Path(run_dir) / FILE).is_file():
        return
    with wait_for_lock(run_dir / _LOCK):
        try:
            lines = _read(run_dir)
        except Failure as error:
            warn(str(error))
            return
        kept = [line for line in lines if line["iteration"] <= iteration]
        if len(kept) < len(lines):
            write_json_lines(run_dir / FILE, kept)
