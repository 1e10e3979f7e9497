"""The record of iterations that a run leaves out."""

from itertools import pairwise
from pathlib import Path

import pytest
from training_processes import tiny_config

from nano3.training.checks.value_checks import value_problems
from nano3.training.order.plan import DatasetShape, OrderPlan, Stage
from nano3.training.run.skips import (
    DROPPED,
    ORDER_KEYS,
    ROLLED_BACK,
    SkippedRange,
    SkipRecord,
    begin_skips,
    late_skip_warning,
    moved_skips_warning,
    read_skips,
)
from nano3.utils.records import DamagedRecordError

IDENTITY = {"data": "d" * 64, "train.seed": 1, "train.seq_length": 32, "train.global_batch_size": 4, "model.x": 1}


def shown(record: SkipRecord) -> list[str]:
    return [str(one) for one in record.ranges]


def test_both_ends_are_left_out(tmp_path: Path) -> None:
    record = begin_skips(tmp_path, IDENTITY, [[5, 6], [9, 9]], 0)
    assert [i for i in range(1, 12) if record.find(i)] == [5, 6, 9] == record.after(0)
    assert record.after(5) == [6, 9]
    assert [record.leading(i) for i in (3, 4, 5, 8)] == [0, 2, 1, 1]
    assert read_skips(tmp_path) == record


def test_nothing_is_written_without_a_skip(tmp_path: Path) -> None:
    assert begin_skips(tmp_path, IDENTITY, [], 0) == SkipRecord()
    assert list(tmp_path.iterdir()) == []


def test_a_resume_keeps_the_past_and_takes_the_new_list_for_the_rest(tmp_path: Path) -> None:
    begin_skips(tmp_path, IDENTITY, [[5, 8], [20, 20]], 0)
    record = begin_skips(tmp_path, IDENTITY, [[3, 4], [10, 11]], 6)
    assert shown(record) == ["5 to 6 (train.skip_iterations)", "10 to 11 (train.skip_iterations)"]
    warning = late_skip_warning([[3, 4], [10, 11]], record, 6)
    assert warning and "the first of them: 3" in warning
    assert late_skip_warning([[5, 6], [10, 11]], record, 6) is None


def test_the_same_list_stays_the_same_list(tmp_path: Path) -> None:
    first = begin_skips(tmp_path, IDENTITY, [[5, 8]], 0)
    assert begin_skips(tmp_path, IDENTITY, [[5, 8]], 6) == first == begin_skips(tmp_path, IDENTITY, [[5, 8]], 3)


def test_rollbacks_last_and_dropped_steps_after_the_checkpoint_are_decided_again(tmp_path: Path) -> None:
    ranges = (SkippedRange(4, 4, DROPPED), SkippedRange(7, 7, ROLLED_BACK), SkippedRange(9, 9, DROPPED))
    SkipRecord(ranges, 1, {name: IDENTITY[name] for name in ORDER_KEYS}).write(tmp_path)
    record = begin_skips(tmp_path, IDENTITY, [], 5)
    assert shown(record) == ["4 (guard skip)", "7 (guard rollback)"] and record.rollbacks == 1
    assert shown(begin_skips(tmp_path, IDENTITY, [], 0)) == ["7 (guard rollback)"]


@pytest.mark.parametrize("key", ["data", "train.seed", "train.seq_length", "train.global_batch_size"])
def test_another_data_order_forgets_the_record(tmp_path: Path, key: str) -> None:
    SkipRecord((SkippedRange(7, 7, ROLLED_BACK),), 1, {name: IDENTITY[name] for name in ORDER_KEYS}).write(tmp_path)
    assert shown(begin_skips(tmp_path, {**IDENTITY, "model.x": 2}, [], 0)) == ["7 (guard rollback)"]
    record = begin_skips(tmp_path, {**IDENTITY, key: "other"}, [[2, 2]], 0)
    assert (shown(record), record.rollbacks) == (["2 (train.skip_iterations)"], 0)
    assert read_skips(tmp_path) == record


def plan_of(stages: list[tuple[int, dict[str, int]]], fingerprint: str = "f") -> OrderPlan:
    """A plan of 40 iterations of 4 samples; each stage has its last iteration and its samples of two datasets."""
    ends = [0, *(end for end, _ in stages)]
    return OrderPlan(
        1, 32, 4, {name: DatasetShape(9999, 99, fingerprint, "/d") for name in ("docs", "code")},
        tuple(Stage(a, b, b - a, samples) for (a, b), (_, samples) in zip(pairwise(ends), stages, strict=True)),
    )  # fmt: skip


EVEN = plan_of([(40, {"docs": 80, "code": 80})])


@pytest.mark.parametrize(
    ("plan", "iteration", "named"),
    [
        (EVEN, 10, ""),
        (plan_of([(10, {"docs": 20, "code": 20}), (40, {"docs": 120, "code": 0})]), 10,
         "12 (train.skip_iterations); 20 to 21 (guard rollback)"),
        (plan_of([(30, {"docs": 60, "code": 60}), (40, {"docs": 40, "code": 0})]), 10, ""),
        (plan_of([(15, {"docs": 30, "code": 30}), (40, {"docs": 100, "code": 0})]), 15, "20 to 21 (guard rollback)"),
        (plan_of([(20, {"docs": 40, "code": 40}), (40, {"docs": 80, "code": 0})]), 20, "21 (guard rollback)"),
        (plan_of([(21, {"docs": 42, "code": 42}), (40, {"docs": 76, "code": 0})]), 21, ""),
        (plan_of([(40, {"docs": 80, "code": 80})], "other data"), 0,
         "12 (train.skip_iterations); 20 to 21 (guard rollback)"),
        (None, 10, ""),
    ],
    ids=["the same", "after 10", "after the skips", "after 15", "in the skip", "after it", "data", "Megatron"],
)  # fmt: skip
def test_recorded_iterations_with_other_samples_are_named(
    tmp_path: Path, plan: OrderPlan | None, iteration: int, named: str
) -> None:
    """30 is new in this start, so its iteration is one of the new plan."""
    chosen = begin_skips(tmp_path, IDENTITY, [[12, 12]], 0)
    before = chosen.with_range(SkippedRange(20, 21, ROLLED_BACK)).with_range(SkippedRange(25, 25, DROPPED))
    before.write(tmp_path)
    now = begin_skips(tmp_path, IDENTITY, [[12, 12], [30, 30]], iteration)
    text = moved_skips_warning(before, now, (EVEN, plan), iteration)
    assert (f"mixture or data: {named}. They stay left out" in text) if text else not named
    assert moved_skips_warning(SkipRecord(), SkipRecord(), (None, EVEN), 0) is None


def test_what_another_data_order_forgets_is_named(tmp_path: Path) -> None:
    """Iterations that the checkpoint has behind it are not: they cannot be read again."""
    order = {name: IDENTITY[name] for name in ORDER_KEYS}
    before = SkipRecord((SkippedRange(3, 3, ROLLED_BACK), SkippedRange(7, 7, ROLLED_BACK)), 1, order)
    before.write(tmp_path)
    now = begin_skips(tmp_path, IDENTITY | {"data": "other"}, [], 5)
    text = moved_skips_warning(before, now, (None, None), 5)
    assert text and "mixture or data: 7 (guard rollback). They are trained" in text


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "skipped.json").write_text("{")
    with pytest.raises(DamagedRecordError, match=r"skipped\.json: damaged"):
        read_skips(tmp_path)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([[5]], "not a pair"),
        ([[5, 6, 7]], "not a pair"),
        ([[6, 5]], "not a pair"),
        ([[0, 5]], "not a pair"),
        ([[5, 12]], "before the last iteration"),
        ([[1, 1], [5, 11], [5, 6]], ""),
    ],
)
def test_pairs_are_checked(pairs: list[list[int]], words: str) -> None:
    problems = value_problems(tiny_config(**{"train.skip_iterations": pairs}))
    assert all(words in problem for problem in problems) and bool(problems) is bool(words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guard.action": "rolback"}, "Did you mean 'rollback'"),
        ({"guard.window": 2}, "guard.window=2 must be at least 8"),
        ({"guard.threshold": -1.0}, "guard.threshold=-1.0 must be"),
        ({"guard.action": "rollback", "checkpoint.save_interval": 0, "backend": "megatron"}, "needs checkpoints"),
        ({"guard.action": "rollback"}, ""),
    ],
)
def test_the_guards_keys_are_checked(changes: dict[str, object], words: str) -> None:
    backend = changes.pop("backend", "transformers")
    config = tiny_config(**changes)
    config.backend = str(backend)
    problems = value_problems(config)
    assert all(words in problem for problem in problems) and bool(problems) is bool(words)
