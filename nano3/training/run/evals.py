"""Results of evaluations in RUN/evals.jsonl: one line for each evaluation of an export, with its iteration.

They have a file of their own, because an evaluation ends at any time, in another job than the one that trains and
writes metrics.jsonl. A resume drops the lines after its iteration, as it does there.
"""

import json
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
