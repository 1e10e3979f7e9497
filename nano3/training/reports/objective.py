"""The number that a sweeper optimizes: one metric of a finished run."""

import math
from collections.abc import Callable
from pathlib import Path

from nano3.utils.errors import Failure, did_you_mean

# How to choose one value among those of a run.
TAKES: dict[str, Callable[[list[float]], float]] = {"last": lambda values: values[-1], "min": min, "max": max}


def objective_problems(take: str) -> list[str]:
    """Return why objective_take is unknown, or an empty list."""
    if take in TAKES:
        return []
    return [f"objective_take={take}: no such choice.{did_you_mean(take, list(TAKES))}"]


def read_objective(run_dir: Path, metric: str, take: str) -> float:
    """Return one value of a metric from RUN/metrics.jsonl.

    Args:
        run_dir: The run folder.
        metric: Name of the metric, for example valid_loss.
        take: last, min or max.

    Raises:
        Failure: The run has no such metric, or the value is not a finite number.
    """
    from nano3.training.run.metrics import read_metrics  # pretrain checks objective_take at every start

    lines = read_metrics(run_dir)
    values = [line[metric] for line in lines if isinstance(line.get(metric), int | float)]
    if not values:
        names = sorted({key for line in lines for key in line if key != "iteration"})
        raise Failure(
            f"objective={metric}: metrics.jsonl of {run_dir} has no such metric.{did_you_mean(metric, names)}"
        )
    value = float(TAKES[take](values))
    if not math.isfinite(value):
        raise Failure(f"objective={metric} is {value} in {run_dir}, not a finite number.")
    return value
