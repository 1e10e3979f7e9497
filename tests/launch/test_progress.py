"""launch.progress: iteration, time left and the age of the last line, from the end of a run's files."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launch.progress import Progress, last_iteration, read_progress


def write_metrics(run_dir: Path, *lines: dict[str, Any]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def trained(iteration: int, at: float) -> dict[str, Any]:
    return {"iteration": iteration, "loss": 2.0, "time": at}


def test_the_time_left_has_validations_and_saves(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train:\n  train_iters: 100\n  exit_iteration: null\n")
    write_metrics(
        tmp_path, {"iteration": 0, "start": 1, "time": 100.0}, trained(10, 200.0), trained(20, 210.0),
        {"iteration": 20, "valid_loss": 3.0, "time": 220.0}, trained(30, 240.0),
    )  # fmt: skip
    progress = read_progress(tmp_path)
    assert progress.iteration_text() == "30/100" and progress.seconds_per_iteration == 2.0
    assert progress.left_text() == "2 min" and progress.longest_pause == 20.0


def test_only_the_newest_start_counts(tmp_path: Path) -> None:
    write_metrics(
        tmp_path, trained(10, 100.0), trained(20, 200.0), {"iteration": 20, "start": 2, "time": 9000.0},
        trained(30, 9100.0),
    )  # fmt: skip
    progress = read_progress(tmp_path)
    assert progress.iteration == 30 and progress.seconds_per_iteration is None and progress.longest_pause is None


@pytest.mark.parametrize(
    "lines",
    [
        [{"iteration": 5, "loss": 1.0}, {"iteration": 9, "loss": 1.0}],
        [{"iteration": 5, "loss": 1.0, "time": "x"}, {"iteration": 9, "loss": 1.0, "time": None}],
        [{"iteration": 5, "loss": 1.0, "time": 3}, {"iteration": 5, "loss": 1.0, "time": 4}],
        [],
    ],
    ids=["no times", "no numbers", "no progress", "empty"],
)
def test_an_unknown_rate_is_not_guessed(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    write_metrics(tmp_path, *lines)
    assert read_progress(tmp_path).seconds_per_iteration is None and read_progress(tmp_path).left_text() == ""


def test_the_age_is_that_of_the_newest_file(tmp_path: Path) -> None:
    assert read_progress(tmp_path).age is None
    log = tmp_path / "log"
    write_metrics(tmp_path, trained(1, 1.0))
    log.touch()
    os.utime(tmp_path / "metrics.jsonl", (0, time.time() - 900))
    assert read_progress(tmp_path, [tmp_path / "none"]).age_text() == "15 min"
    os.utime(log, (0, time.time() - 60))
    assert read_progress(tmp_path, [log]).age_text() == "60 s"


@pytest.mark.parametrize(
    ("age", "pause", "text"),
    [
        (1000.0, 10.0, "17 min, silent"),
        (100.0, 10.0, "2 min"),
        (1000.0, 400.0, "17 min"),
        (1000.0, None, "17 min"),
    ],
    ids=["hangs", "not long", "it often takes long", "no line yet"],
)
def test_a_hung_run_shows(age: float, pause: float | None, text: str) -> None:
    assert Progress({}, age=age, longest_pause=pause).age_text() == text


@pytest.mark.parametrize(
    ("config", "total"),
    [
        ("train:\n  train_iters: 100\n  exit_iteration: 5\n", 5),
        ("train:\n  train_iters: 100\n", 100),
        ("train:\n  train_iters: ???\n", None),
        ("note:\n    train_iters: 7\n", None),
        (None, None),
    ],
)
def test_the_last_iteration(tmp_path: Path, config: str | None, total: int | None) -> None:
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    assert last_iteration(tmp_path) == total
