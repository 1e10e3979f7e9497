"""evals.jsonl: repeated evaluations, resumes, damage."""

import json
from pathlib import Path

import pytest

from nano3.training.run.evals import FILE, add_eval, read_evals, truncate_evals
from nano3.training.run.metrics import Metrics
from nano3.utils.errors import Failure


def test_the_newest_values_of_each_iteration(tmp_path: Path) -> None:
    assert read_evals(tmp_path) == []
    add_eval(tmp_path, {"iteration": 8, "time": 1.0, "eval/a/acc": 0.5})
    add_eval(tmp_path, {"iteration": 4, "time": 2.0, "eval/a/acc": 0.25})
    add_eval(tmp_path, {"iteration": 8, "time": 3.0, "eval/b/acc": 0.75})
    add_eval(tmp_path, {"iteration": 4, "time": 4.0, "eval/a/acc": 0.26})
    assert read_evals(tmp_path) == [
        {"iteration": 4, "time": 4.0, "eval/a/acc": 0.26},
        {"iteration": 8, "time": 3.0, "eval/a/acc": 0.5, "eval/b/acc": 0.75},
    ]


@pytest.mark.parametrize(("iteration", "kept"), [(0, []), (4, [4]), (8, [4, 8])])
def test_a_start_drops_what_it_repeats(tmp_path: Path, iteration: int, kept: list[int]) -> None:
    for one in (4, 8):
        add_eval(tmp_path, {"iteration": one, "eval/a/acc": 0.5})
    Metrics(tmp_path, rank=0, start_iteration=iteration).close()
    assert [line["iteration"] for line in read_evals(tmp_path)] == kept


def test_other_ranks_drop_nothing(tmp_path: Path) -> None:
    add_eval(tmp_path, {"iteration": 8, "eval/a/acc": 0.5})
    Metrics(tmp_path, rank=1, start_iteration=4).close()
    assert len(read_evals(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["{", "[]", '{"time": 1}', '{"iteration": "x"}'])
def test_damage_is_reported_and_stops_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (tmp_path / FILE).write_text(damage + "\n" + json.dumps({"iteration": 8}) + "\n")
    with pytest.raises(Failure, match=r"evals\.jsonl is damaged"):
        read_evals(tmp_path)
    truncate_evals(tmp_path, 4)
    assert "is damaged" in capsys.readouterr().err
    assert (tmp_path / FILE).read_text().startswith(damage)


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"iteration": 8}\n{"iter')
    assert read_evals(tmp_path) == [{"iteration": 8}]
