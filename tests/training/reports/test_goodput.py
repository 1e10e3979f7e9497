"""Where the time of a run went, over its starts."""

import re
from pathlib import Path
from typing import Any

import pytest

from nano3.training.reports.goodput import (
    STAGE_COLUMNS,
    STAGES,
    WIDTH,
    html_bar,
    over_budget,
    stage_rows,
    start_rows,
    text_bar,
    time_use,
)
from nano3.training.run.metrics import read_metrics

LINES: list[dict[str, Any]] = [
    {"iteration": 0, "start": 1, "time": 0.0},
    {"iteration": 1, "loss": 1.0, "seconds/start": 20.0},
    {"iteration": 5, "loss": 1.0, "seconds/step": 50.0, "seconds/data": 5.0, "seconds/save": 1.0},
    {"iteration": 5, "start": 2, "time": 0.0, "lost_iterations": 2, "lost_s": 8.0, "interrupted_s": 30.0},
    {"iteration": 10, "loss": 1.0, "seconds/start": 10.0, "seconds/step": 50.0},
    {"iteration": 10, "exit_code": 75, "seconds/save": 1.0},
    {"iteration": 10, "start": 3, "time": 0.0, "lost_iterations": 0, "lost_s": 0.0, "down_s": 24.0},
    {"iteration": 10, "valid_loss": 2.0, "seconds/start": 0.5, "seconds/valid": 0.5},
]


def test_the_parts_add_up() -> None:
    use = time_use(LINES)
    assert use is not None
    used = {"step": 100, "data": 5, "valid": 0.5, "save": 2, "start": 30.5}
    assert use.seconds == used | {"lost": 8, "hang": 0, "interrupted": 30, "down": 24}
    assert (use.total, use.goodput) == (200, 0.5)
    bar, meaning = text_bar(use).splitlines()
    letters = re.fullmatch(r"\[(.*)\] goodput 50.0% of 3 min", bar)
    assert letters and len(letters[1]) == WIDTH and letters[1].count("█") == WIDTH / 2
    assert "d waiting for data 2.5%" in meaning and "L lost work 4.0%" in meaning
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", html_bar(use))]
    assert len(widths) == 8 and sum(widths) == pytest.approx(100)


def test_the_starts() -> None:
    use = time_use(LINES)
    assert use is not None
    assert start_rows(use) == [
        ["1", "0", "", "", "", "", "20 s", ""],
        ["2", "5", "30 s", "killed", "2", "8 s", "10 s", "exit code 75"],
        ["3", "10", "24 s", "ended", "", "", "0.5 s", ""],
    ]
    assert [row[0] for row in start_rows(use, last=2)] == ["2", "3"]


def test_the_stages_of_starts_against_their_budget() -> None:
    """Both backends' names; a start without a finished step has none, and the newest with one is explained."""
    hf = {"checks": 1.0, "imports": 12.0, "data": 4.0, "model_and_checkpoint": 2.5, "first_step": 1.0}
    megatron = {"checks": 2.0, "imports_and_recipe": 31.0, "model_data_and_checkpoint": 9.0, "first_step": 113.0}
    lines: list[dict[str, Any]] = []
    for number, stages in enumerate([hf, megatron, {}], 1):
        lines += [{"iteration": 0, "start": number, "time": 0.0, "seconds/start": 1.0}]
        lines += [{"iteration": 1, "loss": 1.0, **{f"startup/{k}": v for k, v in stages.items()}}]
    use = time_use(lines)
    assert use is not None
    assert STAGE_COLUMNS == ("start", "checks", "imports", "data and model", "first step", "together")
    assert stage_rows(use) == [
        ["1", "1.0", "12.0", "6.5", "1.0", "20.5"],
        ["2", "2.0", "31.0!", "9.0", "113.0!", "155.0"],
        ["budget", "5", "30", "15", "20", "70"],
    ]
    assert over_budget(use) == [
        f"imports took 31 s, budget 30 s: {STAGES[1].help}",
        f"first step took 113 s, budget 20 s: {STAGES[3].help}",
    ]
    assert [row[0] for row in stage_rows(use, last=1)] == ["2", "budget"]


def test_starts_without_a_finished_step_have_no_stages() -> None:
    use = time_use(LINES)
    assert use is not None
    assert stage_rows(use) == over_budget(use) == []


def test_a_hang_and_the_wait_after_it() -> None:
    use = time_use([{"iteration": 0, "start": 2, "time": 0.0, "hang_s": 30.0, "down_s": 10.0}])
    assert use is not None
    assert (use.seconds["hang"], use.seconds["down"]) == (30, 10)
    assert start_rows(use)[0][2:4] == ["40 s", "hung"]


def test_a_real_run(undisturbed: Path) -> None:
    """All parts of a start are there, and add up to its wall-clock time."""
    lines = read_metrics(undisturbed)
    use = time_use(lines)
    assert use is not None
    assert {part for part, seconds in use.seconds.items() if seconds} == {"step", "data", "valid", "save", "start"}
    assert use.total == pytest.approx(lines[-1]["time"] - lines[0]["time"], abs=0.1)
    (start,) = use.starts
    assert set(start.stages) == {stage.name for stage in STAGES}
    assert sum(start.stages.values()) == pytest.approx(start.startup_s, abs=0.5)


def test_runs_of_earlier_versions_have_no_times() -> None:
    assert time_use([{"iteration": 1, "loss": 2.0}]) is None
