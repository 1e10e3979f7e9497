"""Plans over random stages, budgets, restarts and changes of the mixture: each document exactly as often as planned."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_shards import write_dataset

from nano3.config import PretrainConfig
from nano3.config.mixture import parse_mixture
from nano3.training.dataset import Shard, TrainingData
from nano3.training.hf.batch import BatchPlan
from nano3.training.order.budgets import (
    make_plan,
    megatron_order_problems,
    mixture_problems,
    mixture_warnings,
    share_evenly,
)
from nano3.training.order.plan import OrderPlan
from nano3.training.order.plan_text import mixture_rows
from nano3.training.order.stream import DatasetStream, StreamShard
from nano3.utils.errors import UserError

NAMES = ("docs", "code", "math", "web")
WEIGHTS = {"docs": 0.5, "code": 0.3, "math": 0.2}


def make_data(tokens: dict[str, int], weights: dict[str, float] | None = None) -> TrainingData:
    """Data with one train shard per dataset, which is not on the disk."""
    weights = weights or dict.fromkeys(tokens, 1.0)
    shards = [
        Shard("train", name, Path(f"/d/train/data_{number:05d}"), weights[name], size, sequences=max(size // 10, 1))
        for number, (name, size) in enumerate(tokens.items())
    ]
    fingerprints = {name: f"{name}{size}" for name, size in tokens.items()}
    return TrainingData(Path("/d"), tuple(shards), Path("/t"), 10, 0, "f", dataset_fingerprints=fingerprints)


def make_config(mixture: list[Any], iterations: int = 100, batch: int = 8, seq_length: int = 10) -> PretrainConfig:
    config = PretrainConfig()
    config.train.sample_order, config.train.mixture = "nano3", mixture
    config.train.train_iters, config.train.global_batch_size, config.train.seq_length = iterations, batch, seq_length
    return config


def read_order(plan: OrderPlan, first: int = 0, end: int | None = None) -> list[tuple[str, int]]:
    """Dataset and position of each sample of the iterations first + 1 to end."""
    size, end = plan.global_batch_size, plan.stages[-1].end if end is None else end
    return [plan.locate(sample) for sample in range(first * size, end * size)]


def resumed(plan: OrderPlan) -> OrderPlan:
    """The plan as it comes back from a checkpoint."""
    return OrderPlan.from_json(json.loads(json.dumps(plan.to_json())))


@st.composite
def mixtures(draw: st.DrawFn, iterations: int) -> list[dict[str, Any]]:
    """One to four stages of weights, and of one budget that fits."""
    ends = sorted(draw(st.sets(st.integers(1, iterations - 1), max_size=3)))
    stages = []
    for until in [*ends, None]:
        names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
        blend: dict[str, Any] = {name: draw(st.floats(0.01, 10)) for name in names}
        if len(names) > 1 and draw(st.booleans()):
            blend[names[0]] = {"tokens": draw(st.integers(10, 80))}  # at most one iteration
        stages.append({"blend": blend} | ({"until": until} if until else {}))
    return stages


TOKENS = {"docs": 411, "code": 997, "math": 50, "web": 12_345}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_restarts_and_changes_lose_and_repeat_nothing(draw: st.DataObject) -> None:
    """A run that is killed and resumed at random iterations, from time to time with another mixture."""
    iterations, data = 60, make_data(TOKENS)
    config = make_config(draw.draw(mixtures(iterations)), iterations)
    plan, read, at, planned = make_plan(config, data), list[tuple[str, int]](), 0, list[tuple[int, OrderPlan]]()
    while at < iterations:
        if draw.draw(st.booleans()):
            config = make_config(draw.draw(mixtures(iterations)), iterations)
        try:
            plan = make_plan(config, data, resumed(plan), at) if at else make_plan(config, data)
        except UserError as error:
            assert "already read" in str(error) or "need" in str(error)  # a budget of a stage that is nearly over
            config = make_config([], iterations)
            plan = make_plan(config, data, resumed(plan), at) if at else make_plan(config, data)
        saved = draw.draw(st.integers(at + 1, iterations))
        lost = draw.draw(st.integers(saved, iterations))  # these iterations are read and their checkpoint is lost
        assert read_order(plan, at, lost)[: (saved - at) * 8] == read_order(plan, at, saved)
        read += read_order(plan, at, saved)
        planned.append((saved, plan))
        at = saved
    assert read == read_order(plan)  # the last record describes the whole run
    by_dataset: dict[str, list[int]] = {}
    for name, position in read:
        by_dataset.setdefault(name, []).append(position)
    for positions in by_dataset.values():
        assert sorted(positions) == list(range(len(positions)))
    assert {n: c for n, c in plan.consumed(iterations).items() if c} == {n: len(p) for n, p in by_dataset.items()}
    for iteration in range(iterations + 1):
        assert Counter(name for name, _ in read[: iteration * 8]) == Counter(plan.consumed(iteration))
    for sample, (name, position) in enumerate(read):
        assert plan.sample_of(name, position) == sample


@settings(deadline=None, max_examples=30)
@given(mixtures(40), st.sampled_from([(1, 1), (2, 1), (3, 2), (7, 1), (7, 3)]))
def test_ranks_and_micro_batches_read_the_same(mixture: list[Any], ranks_and_micro: tuple[int, int]) -> None:
    """All ranks together read each iteration's samples, once each, for any number of them."""
    ranks, micro = ranks_and_micro
    plan = make_plan(make_config(mixture, 40, batch=42), make_data(TOKENS))
    batches = BatchPlan(42, micro, ranks)
    for iteration in (0, 1, 20, 39):
        parts = [batches.samples(iteration, j, r) for r in range(ranks) for j in range(batches.accumulation)]
        read = sorted(plan.locate(sample) for part in parts for sample in part)
        assert read == sorted(read_order(plan, iteration, iteration + 1))


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_documents_are_read_as_often_as_planned(draw: st.DataObject) -> None:
    """Down to the tokens: over two stages each is read floor(epochs) times, or once more, and none is left out."""
    with TemporaryDirectory() as folder:
        lengths = draw.draw(st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=20), min_size=1, max_size=3))
        shards = write_dataset(Path(folder), lengths)
        tokens = sum(map(sum, lengths))
        data = make_data({"docs": tokens, "web": 5000})
        epochs = draw.draw(st.sampled_from([0.5, 1, 2, 2.5]))
        mixture = [{"until": "50%", "blend": {"docs": {"epochs": epochs}, "web": 1}}, {"blend": {"docs": 1, "web": 3}}]
        plan = make_plan(make_config(mixture, 2000, batch=4, seq_length=8), data)
        stream = DatasetStream("docs", shards, 8, plan.seed)
        half = plan.consumed(1000)["docs"]
        assert half == round(epochs * tokens / 8)
        assert abs(plan.epochs("docs", half) - epochs) <= 0.5 * 8 / tokens + 1e-9
        times = Counter[int](dict.fromkeys(range(tokens), 0))
        for position in range(half):
            times.update(stream.read(position)[:-1].tolist())
        whole = half * 8 // tokens
        assert set(times.values()) <= {whole, whole + 1}


def problems(mixture: list[Any], iterations: int = 100) -> list[str]:
    with pytest.raises(UserError) as error:
        make_plan(make_config(mixture, iterations), make_data({"docs": 1000, "code": 3000, "math": 500}, WEIGHTS))
    return error.value.problems


def test_the_default_is_the_blend_of_the_data() -> None:
    plan = make_plan(make_config([]), make_data({"docs": 1000, "code": 3000, "math": 500}, WEIGHTS))
    assert plan.stages[0].samples == {"docs": 400, "code": 240, "math": 160}


def test_budgets_in_epochs_and_tokens_are_exact_and_weights_share_the_rest() -> None:
    blend = {"docs": {"epochs": 2.5}, "code": {"tokens": 1500}, "math": 1, "web": 3}
    data = make_data({"docs": 1000, "code": 3000, "math": 5000, "web": 9000})
    plan = make_plan(make_config([{"blend": blend}]), data)
    assert plan.consumed(100) == {"docs": 250, "code": 150, "math": 100, "web": 300}
    assert [plan.epochs(name, count) for name, count in plan.consumed(100).items()] == [2.5, 0.5, 0.2, 300 / 900]


def blended(budgets: dict[str, dict[str, float]], **tokens: int) -> TrainingData:
    """Data whose blend has budgets."""
    sizes = {"docs": 1000, "code": 3000, "math": 5000, **tokens}
    return replace(make_data(sizes, {**dict.fromkeys(sizes, 1.0), **WEIGHTS}), budgets=budgets)


def test_the_blend_of_the_data_has_budgets_too() -> None:
    data = blended({"docs": {"epochs": 2.5}, "code": {"tokens": 1500.0, "max_epochs": 3}, "web": {}}, web=9000)
    plan = make_plan(make_config([]), data)
    assert plan.stages[0].samples == {"docs": 250, "code": 150, "math": 67, "web": 333}
    text = dict(mixture_rows(plan))
    assert text["  docs"] == "31.2% of the samples, 2,500 tokens, 2.50 epochs for epochs=2.5"
    assert text["  code"].endswith("0.50 epochs for tokens=1500, max_epochs=3")
    own = make_plan(make_config([{"blend": {"docs": 1, "code": 1}}]), data)  # the run's keys come first
    assert own.stages[0].samples == {"docs": 400, "code": 400}
    capped = make_plan(make_config([]), blended({"docs": {"max_epochs": 2}}))
    assert capped.stages[0].samples == {"docs": 200, "code": 360, "math": 240}
    limited = make_plan(make_config([{"until": "50%", "max_epochs": 1}, {}]), blended({"docs": {"max_epochs": 2}}))
    assert [stage.samples["docs"] for stage in limited.stages] == [100, 100]
    again = make_plan(make_config([]), blended({"docs": {"epochs": 3}}), resumed(capped), 50)
    assert again.consumed(100)["docs"] == 300 and len(again.stages) == 2


@pytest.mark.parametrize(
    ("budgets", "mixture", "text"),
    [
        ({"docs": {"epochs": 9}}, [], "the run with the blend of /d: its budgets in epochs and tokens need 113 iter"),
        (
            {"docs": {"epochs": 3, "max_epochs": 2}},
            [],
            "the run with the blend of /d, dataset docs: its budget is 3.00",
        ),
        ({"docs": {"epochs": 1}}, [{"until": 5}, {"blend": {"docs": 1}}], "stage 1 has no blend, and the blend of /d"),
        ({"web": {"epochs": 1}}, [], "the blend of /d: web has a budget and no train split"),
    ],
)
def test_budgets_of_the_data_that_cannot_be_met_are_refused(budgets: Any, mixture: list[Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        make_plan(make_config(mixture), blended(budgets))
    (problem,) = error.value.problems
    assert text in problem


def test_megatrons_order_refuses_budgets_of_the_data() -> None:
    assert megatron_order_problems({}, "the blend") == []
    (problem,) = megatron_order_problems({"docs": {"epochs": 2.5, "max_epochs": 4}}, "the blend")
    assert "asks for docs: epochs=2.5, docs: max_epochs=4, and Megatron's order of samples knows weights" in problem
    assert "Set train.sample_order=nano3" in problem


def test_weights_are_capped_at_max_epochs_and_budgets_are_refused() -> None:
    blend = {"docs": {"weight": 8, "max_epochs": 2}, "code": 1, "math": 1}
    plan = make_plan(make_config([{"blend": blend}]), make_data({"docs": 1000, "code": 9000, "math": 9000}))
    assert plan.stages[0].samples == {"docs": 200, "code": 300, "math": 300}
    (problem,) = problems([{"blend": {"docs": {"epochs": 5, "max_epochs": 4}, "code": 1}}])
    assert "docs: its budget is 5.00 epochs of the run, more than max_epochs=4" in problem
    (problem,) = problems([{"max_epochs": 1, "blend": {"docs": 1, "code": 1, "math": 1}}], 1000)
    assert "max_epochs leaves 943.8 of its 1,000 iterations without samples" in problem


def test_max_epochs_counts_from_the_start_of_the_run() -> None:
    stages = [{"until": 50, "blend": {"docs": {"epochs": 1.5}, "code": 1}}]
    stages += [{"blend": {"docs": {"weight": 5, "max_epochs": 2}, "code": 1}}]
    plan = make_plan(make_config(stages), make_data({"docs": 1000, "code": 9000}))
    assert [stage.samples["docs"] for stage in plan.stages] == [150, 50]


@pytest.mark.parametrize(
    ("mixture", "text"),
    [
        ([{"blend": {"dosc": 1}}], "has no dataset 'dosc' with a train split, only docs, code, math. Did you mean"),
        ([{"blend": {"docs": {"epochs": 3}}}], "its budgets fill 37.5% of its samples. Give one dataset a weight"),
        ([{"blend": {"docs": {"epochs": 9}, "code": 1}}], "need 113 iterations, and it has 100"),
        ([{"blend": {"docs": {"epochs": 1, "tokens": 5}}}], "give one of weight, epochs and tokens"),
        ([{"blend": {"docs": {"epohcs": 1}}}], "no key 'epohcs'. Did you mean"),
        ([{"blend": {"docs": -1}}], "weight must be a number above 0, found -1"),
        ([{"blend": {"docs": 0}}], "found 0. Leave out a dataset that the stage does not read."),
        ([{"until": " "}, {}], "until=' ' is not understood. Write 60%"),
        ([{"until": "1e308%"}, {}], "until=1e308% is iteration 1,000,000,000,000,000,000, and the run has"),
        ([{"until": 10**400}, {}], "is not understood. Write 60%"),
        ([{"blend": {"docs": {"epochs": 1e308}, "code": 1}}], "its budgets in epochs and tokens need"),
        ([{"blend": {"docs": {"tokens": 1}}}], "its budgets fill 0.0% of its samples"),
        (
            [{"blend": {"docs": {"epochs": 8, "max_epochs": 7.9}}}],
            "its budget is 8.00 epochs of the run, more",
        ),
        ([{"blend": {"docs": True}}], "weight must be a number above 0, found True"),
        ([{"until": "60%", "blend": {"docs": 1}}], "is the last one and ends at iteration 60 of 100"),
        ([{"blend": {"docs": 1}}, {"blend": {"code": 1}}], "stage 1: until is missing"),
        ([{"until": 120, "blend": {"docs": 1}}, {}], "until=120 is iteration 120, and the run has iterations 1 to 100"),
        ([{"until": 50}, {"until": "50%"}, {}], "stage 2 ends at iteration 50, not after the stage before it (50)"),
        ([{"until": 0.6}, {}], "until=0.6 is not understood. Write 60%"),
        ([{"util": 3}], "no key 'util'. Did you mean"),
        (["docs"], "expected keys and values such as {until: 60%"),
        ([{"blend": ["docs"]}], "blend must name datasets"),
        ([{"max_epochs": 0.1}], "max_epochs leaves 94.4 of its 100 iterations without samples"),
    ],
)
def test_what_cannot_be_met_is_refused(mixture: list[Any], text: str) -> None:
    assert any(text in problem for problem in problems(mixture)), problems(mixture)


def test_all_problems_are_reported_at_once() -> None:
    found = problems([{"until": 50, "blend": {"docs": {"epochs": 9}, "code": 1}}, {"blend": {"math": {"epochs": 50}}}])
    assert len(found) == 2
    found = problems([{"until": 50, "blend": {"dosc": 1, "code": {"epochs": -1}}}, {"blend": {"mathe": 1}}])
    assert len(found) == 3 and "epochs must be a number above 0" in found[0] and "'mathe'" in found[2]


def test_a_mixture_is_checked_without_data() -> None:
    (problem,) = mixture_problems(make_config([{"util": 3, "blend": {"docs": 1}}]))
    assert "no key 'util'. Did you mean 'until'?" in problem
    assert mixture_problems(make_config([{"blend": {"whatever": 1}}])) == []


def test_a_budget_of_just_max_epochs_is_met_however_it_is_rounded() -> None:
    """2.5 epochs of 1,007 tokens are 314.7 samples of 8."""
    data = make_data({"docs": 1007, "code": 9000})
    plan = make_plan(
        make_config([{"blend": {"docs": {"epochs": 2.5, "max_epochs": 2.5}, "code": 1}}], seq_length=8), data
    )
    assert plan.consumed(100)["docs"] == 314
    third = {"docs": {"epochs": 1 / 3, "max_epochs": 1}, "code": 1}
    stages = [{"until": 30, "blend": third}, {"until": 60, "blend": third}, {"blend": third}]
    assert make_plan(make_config(stages, seq_length=8), data).consumed(100)["docs"] == 125  # of 125.9


def test_rounding_to_whole_iterations_does_not_exceed_max_epochs() -> None:
    data = make_data({"docs": 804})  # 80.4 samples of 10
    assert make_plan(make_config([{"blend": {"docs": {"epochs": 1}}}], 11), data).consumed(11) == {"docs": 88}
    with pytest.raises(UserError, match=r"max_epochs leaves 1\.0 of its 11 iterations without samples"):
        make_plan(make_config([{"blend": {"docs": {"epochs": 1, "max_epochs": 1}}}], 11), data)


def test_a_resume_after_all_budgets_are_read_is_refused() -> None:
    data, blend = make_data({"docs": 800, "code": 800}), {"docs": {"epochs": 1}, "code": {"tokens": 800}}
    plan = make_plan(make_config([{"blend": blend}], 20), data)
    with pytest.raises(UserError, match=r"its budgets fill 0\.0% of its samples"):
        make_plan(make_config([{"blend": blend}], 22), data, plan, 20)


@pytest.mark.parametrize("sizes", [{"docs": 804}, {"docs": 997, "code": 411}, {"docs": 403, "code": 1200}], ids=str)
def test_a_resume_in_a_stage_that_was_scaled_keeps_its_plan(sizes: dict[str, int]) -> None:
    """Budgets without weights are rounded to whole iterations. Here only a later stage changes."""
    data = make_data({**sizes, "web": 5000})
    blend = {name: {"epochs": 2} for name in sizes}
    for more in (0, 1):
        until = 2 * sum(sizes.values()) // 80 + more
        stages = [{"until": until, "blend": blend}, {"blend": {"web": 1}}]
        changed = [stages[0], {"blend": {"web": 1, "docs": 1}}]
        plan = make_plan(make_config(stages, until + 10), data)
        for at in range(1, until):
            after = make_plan(make_config(changed, until + 10), data, plan, at)
            assert {**dict.fromkeys(after.datasets, 0), **plan.consumed(until)} == after.consumed(until)


def test_a_dataset_that_gets_no_sample_is_named() -> None:
    data = make_data({"docs": 1000, "code": 9000, "math": 4})
    mixture = [{"until": "50%", "blend": {"docs": 1, "math": {"epochs": 1}}}, {"blend": {"docs": 1, "code": 1e-9}}]
    found = mixture_warnings(make_plan(make_config(mixture), data))
    assert [warning.partition(":")[0] for warning in found] == ["code is never read", "math is never read"]
    assert mixture_warnings(make_plan(make_config([{"blend": {"docs": 1, "math": {"epochs": 2}}}]), data)) == []


@st.composite
def limited(draw: st.DrawFn) -> dict[str, float]:
    """The entry of a dataset: any kind of budget, with or without a limit."""
    kind = draw(st.sampled_from(["weight", "epochs", "tokens"]))
    value = draw(st.integers(1, 4000)) if kind == "tokens" else draw(st.sampled_from([0.001, 0.5, 1, 2.5]))
    limit = {"max_epochs": draw(st.sampled_from([0.5, 1, 2, 2.5]))} if draw(st.booleans()) else {}
    return {kind: value, **limit}


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_budgets_are_met_within_max_epochs_or_refused(draw: st.DataObject) -> None:
    """Also for datasets of less than a sample, and when the mixture changes in the middle of a stage."""
    sizes = {name: draw.draw(st.sampled_from([3, 9, 10, 411, 997, 12_345])) for name in ("docs", "code", "math")}
    data, entry = make_data(sizes), st.dictionaries(st.sampled_from([*sizes]), limited(), min_size=1)
    plan = None
    for at in (0, draw.draw(st.integers(1, 59))):
        ends = sorted(draw.draw(st.sets(st.integers(1, 59), max_size=2)))
        mixture = [{"until": end, "blend": draw.draw(entry)} for end in ends] + [{"blend": draw.draw(entry)}]
        try:
            plan = make_plan(make_config(mixture, 60, batch=4), data, plan, at)
        except UserError:
            plan = plan or make_plan(make_config([], 60, batch=4), data)
            continue
        begin = 0
        for stage, end in zip(mixture, [*ends, 60], strict=True):
            before, after = plan.consumed(max(begin, at)), plan.consumed(end)
            for name, budget in stage["blend"].items() if end > at else ():
                most = budget.get("max_epochs", math.inf) * sizes[name] / 10
                assert after.get(name, 0) <= most or after.get(name, 0) == before.get(name, 0)
                wanted = budget.get("tokens", budget.get("epochs", math.nan) * sizes[name]) / 10
                if any("weight" in other for other in stage["blend"].values()) and after.get(name, 0) + 1 < most:
                    got = after.get(name, 0) - plan.consumed(begin).get(name, 0)
                    assert math.isnan(wanted) or abs(got - wanted) <= 0.5
            begin = end


@pytest.mark.parametrize(("until", "iteration"), [("60%", 60), (60, 60), ("4.8e3 tokens", 60), ("33.3%", 33)])
def test_stages_end_at_a_share_an_iteration_or_tokens(until: Any, iteration: int) -> None:
    stages = parse_mixture([{"until": until}, {}], 100, 80)
    assert [stage.until for stage in stages] == [iteration, 100]


def test_a_changed_mixture_counts_what_its_stage_has_read() -> None:
    """A budget of a stage is met, whatever was read of it before the change."""
    data = make_data({"docs": 1000, "code": 9000})
    before = make_plan(make_config([{"blend": {"docs": 1, "code": 1}}]), data)
    after = make_plan(make_config([{"blend": {"docs": {"epochs": 3}, "code": 1}}]), data, before, 50)
    assert after.consumed(50) == {"docs": 200, "code": 200} and after.consumed(100) == {"docs": 300, "code": 500}
    with pytest.raises(UserError, match=r"epochs=1.5, but this stage has already read 2.00 epochs \(2,000 tokens\)"):
        make_plan(make_config([{"blend": {"docs": {"epochs": 1.5}, "code": 1}}]), data, before, 50)
    with pytest.raises(UserError, match=r"need 63 iterations, and it has 50 left\."):
        make_plan(make_config([{"blend": {"docs": {"epochs": 7}, "code": 1}}]), data, before, 50)


def test_datasets_join_and_leave_but_do_not_change() -> None:
    before = make_plan(make_config([]), make_data({"docs": 1000, "code": 9000}))
    more = make_data({"docs": 1000, "web": 9000})
    after = make_plan(make_config([]), more, before, 50)
    assert after.consumed(100) == {"docs": 400, "code": 200, "web": 200}
    assert read_order(after, 0, 50) == read_order(before, 0, 50)
    with pytest.raises(UserError, match="the train split of docs is not the one that the run has read"):
        make_plan(make_config([]), make_data({"docs": 1001, "web": 9000}), after, 60)
    # The other order: a longer run of the same data begins a stage, and keeps the past.
    longer = make_plan(make_config([], 200), more, after, 80)
    assert read_order(longer, 0, 80) == read_order(after, 0, 80) and longer.stages[-1].end == 200


def test_the_same_settings_keep_the_plan_as_it_is() -> None:
    data = make_data(TOKENS)
    config = make_config([{"until": "50%", "blend": {"docs": 1}}, {"blend": {"code": 2, "web": 1}}])
    plan = make_plan(config, data)
    for iteration in (1, 49, 50, 51, 99):
        assert make_plan(config, data, resumed(plan), iteration) == plan


@given(st.integers(0, 10**6), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_shares_add_up_and_are_within_one(total: int, weights: list[float]) -> None:
    named = {str(number): weight for number, weight in enumerate(weights)}
    shares = share_evenly(total, named)
    assert sum(shares.values()) == total
    assert all(abs(shares[name] - total * weight / sum(weights)) < 1 + 1e-6 for name, weight in named.items())


def test_a_plan_of_a_billion_samples_is_small_and_found_in_both_directions() -> None:
    data = make_data({name: 10**12 + number for number, name in enumerate(NAMES)})
    mixture = [
        {"until": "60%", "blend": {"docs": 5, "code": 3, "web": 1}},
        {"blend": {"math": {"epochs": 1.5}, "web": 1}},
    ]
    plan = make_plan(make_config(mixture, 10**9 // 1024, batch=1024, seq_length=8192), data)
    size = plan.stages[-1].end * 1024
    for sample in [0, 1, size // 3, size // 2, size - 1]:
        assert plan.sample_of(*plan.locate(sample)) == sample
    assert plan.consumed(plan.stages[-1].end)["math"] == round(1.5 * data.tokens("train") / 4 / 8192)
    assert len(json.dumps(plan.to_json())) < 3000
    assert all(a.end == b.first for a, b in pairwise(plan.stages))


def test_stream_shards_are_those_of_the_data() -> None:
    shard = StreamShard(Path("/d/train/data_00000"), 100, 10)
    stream = DatasetStream("docs", [shard, shard], 8, 1)
    assert (stream.tokens, stream.sequences, stream.samples_of_epoch(1)) == (200, 20, (25, 25))
