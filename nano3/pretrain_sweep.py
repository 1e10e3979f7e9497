"""The points of a sweep over `nano3.pretrain`: checked together, run together, each with the number to optimize."""

import os
import sys
from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig

import launch
from launch.hydra_launcher import Point, PointEnd, problems_of_points
from nano3.pretrain import make_job, train_torchrun_rank
from nano3.training.reports.objective import read_objective
from nano3.utils.console import table
from nano3.utils.errors import RESTART_EXIT_CODE, Nano3Error, UserError


def run_points(points: Sequence[Point], learns: bool) -> list[PointEnd]:
    """Check all points, run them, and return how each ended.

    Args:
        points: The points.
        learns: Whether their sweeper learns from results. A point that cannot start is then a failed point.

    Raises:
        UserError: With the problems of all points, each with the point's label.
    """
    if learns and (problems := learning_problems(points[0].config)):
        raise UserError(problems)
    jobs: dict[str, launch.Job] = {}
    errors: dict[str, Nano3Error] = {}
    rows: dict[str, list[tuple[str, str]]] = {}
    for point in points:
        point.activate()
        try:
            show = partial(rows.__setitem__, point.label)
            jobs[point.label] = make_job(point.config, point.run_dir, point.label, show=show)
        except UserError as error:
            errors[point.label] = error
    if errors and not learns:
        raise UserError(problems_of_points(errors, len(points)))
    show_preflight(rows)
    dry_run = bool(points[0].config.dry_run)
    codes: dict[str, int | None] = {}
    if jobs:
        end = launch.run_sweep(list(jobs.values()), dry_run=dry_run)
        if end.interrupted:
            sys.exit(end.code)
        codes = dict(zip(jobs, end.codes, strict=True))
    return [
        PointEnd(errors[p.label].exit_code, reason=f"point {p.label}: {errors[p.label]}")
        if p.label in errors
        else point_end(p, codes[p.label], learns and not dry_run)
        for p in points
    ]


def show_preflight(points: dict[str, list[tuple[str, str]]]) -> None:
    """Print the rows that all points share once, and a table of those in which they differ.

    Args:
        points: The rows (what, value) of each point, by label.
    """
    texts = {label: _texts(rows) for label, rows in points.items()}
    names = list(dict.fromkeys(name for text in texts.values() for name in text))
    values = {name: {text.get(name, "") for text in texts.values()} for name in names}
    if not points:
        return
    shared = [(name, values[name].pop()) for name in names if len(values[name]) == 1]
    table(f"Preflight of {len(points)} points" if len(points) > 1 else "Preflight", ["what", "value"], shared)
    differing = [name for name in names if len(values[name]) > 1]
    if differing:
        cells = [[label, *(text.get(name, "") for name in differing)] for label, text in texts.items()]
        table("Differences", ["point", *differing], cells)


def _texts(rows: list[tuple[str, str]]) -> dict[str, str]:
    """Return the rows by name; several rows of one name, such as warnings, become one."""
    found: dict[str, str] = {}
    for name, value in rows:
        found[name.strip()] = f"{found[name.strip()]}; {value}" if name.strip() in found else value
    return found


def learning_problems(cfg: DictConfig) -> list[str]:
    """Return why a sweeper cannot get the results of these runs."""
    problems = []
    if cfg.cluster.kind == "slurm" and cfg.cluster.mode == "detached":
        problems.append("cluster.mode=detached: this sweeper waits for the result of each point. Use attached.")
    if cfg.objective.startswith("valid_loss") and not cfg.train.eval_interval:
        problems.append(
            f"objective={cfg.objective} needs a validation loss: set train.eval_interval, or another metric."
        )
    return problems


def point_end(point: Point, code: int | None, learns: bool) -> PointEnd:
    """Return the end of a point that was started, with its objective if its sweeper needs one.

    Args:
        point: The point.
        code: Exit code of its run.
        learns: Whether its sweeper learns from results.
    """
    if code == RESTART_EXIT_CODE:
        return PointEnd(code, reason=f"point {point.label} saved and stopped before its end: {point.run_dir}")
    if code != 0 or not learns:
        return PointEnd(code, reason=f"point {point.label} failed with exit code {code}: {point.run_dir}")
    try:
        return PointEnd(code, read_objective(point.run_dir, point.config.objective, point.config.objective_take))
    except Nano3Error as error:
        return PointEnd(error.exit_code, reason=str(error))


def run_point(point: Point, learns: bool) -> PointEnd:
    """Train one point in this process, for a launcher other than nano3's, and return how it ended.

    In a job of several tasks, each is one rank.

    Args:
        point: The point.
        learns: Whether its sweeper learns from results.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        code = train_torchrun_rank(point.config, point.run_dir, point.label)
    else:
        code = launch.run([make_job(point.config, point.run_dir, point.label)], dry_run=point.config.dry_run)
    return point_end(point, code, learns and not point.config.dry_run)
