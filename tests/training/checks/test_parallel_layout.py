"""Layouts and batch sizes that do not fit, and that each suggested size fits."""

import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.checks.parallel_layout import ParallelLayout, layout_problems, multiples_around, parallel_layout
from nano3.training.hf.batch import BatchPlan, plan_batches
from nano3.utils.errors import UserError

LAYOUT = ParallelLayout(world=16, tensor=2, pipeline=2, context=1, expert=4)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        pytest.param(replace(LAYOUT, world=6), {}, "6 ranks cannot be divided into model replicas of 4", id="world"),
        pytest.param(replace(LAYOUT, expert=16), {}, "does not divide the 8 ranks of a pipeline stage", id="experts"),
        pytest.param(LAYOUT, {"global_batch_size": 10}, "What fits: train.global_batch_size=8 or 16;", id="batch"),
        pytest.param(
            LAYOUT, {"global_batch_size": 3}, "What fits: train.global_batch_size=16.", id="batch-below-one-step"
        ),
        pytest.param(LAYOUT, {"micro_batch_size": 0}, "train.micro_batch_size=0 must be at least 1", id="zero"),
        pytest.param(
            replace(LAYOUT, tensor=1, context=2, expert=1),
            {"seq_length": 258},
            "multiple of 2 x model.context",
            id="context",
        ),
    ],
)
def test_layouts_that_cannot_work(config: PretrainConfig, layout: ParallelLayout, changes: dict, words: str) -> None:
    config.train.global_batch_size, config.train.micro_batch_size = 16, 4
    if layout.context == 1 and "global_batch_size" in changes:
        config.train.micro_batch_size = 2 if changes["global_batch_size"] == 10 else 4
    for key, value in changes.items():
        setattr(config.train, key, value)
    assert any(words in p for p in layout_problems(config, layout)), layout_problems(config, layout)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.integers(1, 6), st.integers(1, 4))
def test_a_layout_without_problems_divides_evenly(
    tensor: int, pipeline: int, data: int, micro: int, steps: int
) -> None:
    config = PretrainConfig()
    layout = ParallelLayout(tensor * pipeline * data, tensor, pipeline, 1, 1)
    config.train.micro_batch_size, config.train.global_batch_size = micro, micro * data * steps
    assert layout.data == data
    assert layout_problems(config, layout) == []


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 16))
def test_each_suggested_batch_size_has_no_problem(size: int, micro: int, ranks: int) -> None:
    config = PretrainConfig()
    config.train.global_batch_size, config.train.micro_batch_size = size, micro
    layout = ParallelLayout(ranks, 1, 1, 1, 1)
    problems = layout_problems(config, layout)
    assert bool(problems) == (size % (micro * ranks) > 0)
    for suggested in (
        re.findall(r"\d+", problems[0].partition("What fits: train.global_batch_size=")[2].partition(";")[0])
        if problems
        else ()
    ):
        config.train.global_batch_size = int(suggested)
        assert layout_problems(config, layout) == []


@pytest.mark.parametrize(
    ("kind", "variable", "world"),
    [("local", None, 3), ("local", "4", 4), ("slurm", "4", 10)],
    ids=["this machine", "under torchrun", "asked of Slurm"],
)
def test_the_world_size(monkeypatch: pytest.MonkeyPatch, kind: str, variable: str | None, world: int) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if variable:
        monkeypatch.setenv("WORLD_SIZE", variable)
    config = PretrainConfig(model=ModelConfig(tensor_model_parallel_size=2))
    config.cluster.kind, config.cluster.nproc_per_node = kind, 3
    config.cluster.nodes, config.cluster.ntasks_per_node = 2, 5
    assert (parallel_layout(config, None).world, parallel_layout(config, None).tensor) == (world, 2)
    config.backend = "transformers"
    assert parallel_layout(config, None).tensor == 1, "another check reports the parallel size"


sizes = st.integers(1, 48)


def suggestions(message: str) -> dict[str, list[int]]:
    """Return the numbers that a message suggests for each of the three sizes."""
    fits = message.partition("What fits: ")[2]
    found = {}
    for name, pattern in (
        ("batch", r"train\.global_batch_size=([\d or]+)"),
        ("micro", r"train\.micro_batch_size=([\d or]+)"),
        ("ranks", r"([\d or]+) data-parallel rank\(s\)"),
    ):
        match = re.search(pattern, fits)
        found[name] = [int(number) for number in re.findall(r"\d+", match[1])] if match else []
    return found


@given(sizes, sizes, sizes)
@example(2, 2, 2)
@example(1, 48, 48)
def test_each_suggested_number_fits(batch: int, micro: int, ranks: int) -> None:
    """Each suggestion replaces one size and leaves the others."""
    try:
        assert plan_batches(batch, micro, ranks).accumulation * micro * ranks == batch
    except UserError as error:
        found = suggestions(str(error))
        assert found["batch"], "the batch size can always be changed"
        tried = [(n, micro, ranks) for n in found["batch"]] + [(batch, n, ranks) for n in found["micro"]]
        for one in tried + [(batch, micro, n) for n in found["ranks"]]:
            assert isinstance(plan_batches(*one), BatchPlan)
        assert (found["micro"] == []) == (batch % ranks > 0)
        assert (found["ranks"] == []) == (batch % micro > 0)


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_the_suggested_multiples_are_the_nearest(n: int, step: int) -> None:
    found = [int(number) for number in multiples_around(n, step).split(" or ")]
    assert all(number % step == 0 and number > 0 for number in found)
    assert min(abs(number - n) for number in found) <= step / 2 or found == [step]
    assert all(abs(number - n) <= step for number in found)
