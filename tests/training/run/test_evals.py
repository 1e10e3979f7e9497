"""evals.jsonl: repeated evaluations, resumes, damage."""

import json
from pathlib import Path

import pytest

from nano3.training.run.evals import FILE, add_eval, read_evals, truncate_evals
from nano3.training.run.metrics import Metrics, read_metrics
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


def results(run_dir: Path) -> list[tuple[int, dict]]:
    """The results in metrics.jsonl, by line."""
    named = [
        (line["iteration"], {k: v for k, v in line.items() if k.startswith("eval/")}) for line in read_metrics(run_dir)
    ]
    return [(iteration, values) for iteration, values in named if values]


def test_the_metrics_take_them_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the next line and at the end, each value once, also over a resume."""
    metrics = Metrics(tmp_path, rank=0)
    metrics.log(iteration=5, loss=2.0)
    assert results(tmp_path) == []
    add_eval(tmp_path, {"iteration": 4, "time": 1.0, "eval/a/acc": 0.5, "eval/a/acc_stderr": 0.1})
    metrics.log(iteration=6, loss=2.0)
    metrics.log_valid(6, {"docs": 2.0}, {"docs": 1.0})
    first = (4, {"eval/a/acc": 0.5, "eval/a/acc_stderr": 0.1})
    assert results(tmp_path) == [first]
    assert "evaluation of iteration 4: a/acc 0.5000\n" in capsys.readouterr().out
    add_eval(tmp_path, {"iteration": 4, "time": 2.0, "eval/a/acc": 0.5, "eval/b/acc": 0.75})
    metrics.close()
    assert results(tmp_path) == [first, (4, {"eval/b/acc": 0.75})]
    assert read_metrics(tmp_path)[-1]["iteration"] == 6 and "exit_code" in read_metrics(tmp_path)[-1]

    add_eval(tmp_path, {"iteration": 6, "time": 3.0, "eval/a/acc": 0.25})
    resumed = Metrics(tmp_path, rank=0, start_iteration=5)
    resumed.log(iteration=6, loss=2.0)
    resumed.close()
    assert results(tmp_path) == [first, (4, {"eval/b/acc": 0.75})], "the evaluated checkpoint of 6 was trained again"


def test_a_result_of_before_the_resume_arrives_after_it(tmp_path: Path) -> None:
    Metrics(tmp_path, rank=0).close()
    add_eval(tmp_path, {"iteration": 4, "eval/a/acc": 0.5})
    metrics = Metrics(tmp_path, rank=0, start_iteration=5)
    metrics.log(iteration=6, loss=2.0)
    metrics.close()
    assert results(tmp_path) == [(4, {"eval/a/acc": 0.5})]


def test_a_damaged_file_is_reported_once_and_read_when_it_is_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics(tmp_path, rank=0)
    (tmp_path / FILE).write_text("{\n")
    metrics.log(iteration=1, loss=2.0)
    metrics.log(iteration=2, loss=2.0)
    assert capsys.readouterr().err.count("is damaged") == 1
    (tmp_path / FILE).unlink()
    add_eval(tmp_path, {"iteration": 1, "eval/a/acc": 0.5})
    metrics.close()
    assert results(tmp_path) == [(1, {"eval/a/acc": 0.5})]


def test_the_console_shows_the_first_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, rank=0)
    add_eval(tmp_path, {"iteration": 1, **{f"eval/t{n}/acc": n / 10 for n in range(6)}})
    metrics.close()
    assert capsys.readouterr().out.splitlines()[-1] == (
        "evaluation of iteration 1: t0/acc 0.0000  t1/acc 0.1000  t2/acc 0.2000  t3/acc 0.3000  and 2 more"
    )
