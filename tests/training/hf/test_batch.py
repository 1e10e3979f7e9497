"""Batch arithmetic against a table and against its defining property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.training.hf.batch import plan_batches
from nano3.utils.errors import UserError


@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [((32, 1, 8), 4), ((32, 4, 8), 1), ((4, 2, 1), 2), ((4, 2, 2), 1), ((3072, 1, 256), 12)],
    ids=["accumulate 4", "one micro step", "quickstart", "quickstart on two ranks", "nano"],
)
def test_accumulation(sizes: tuple[int, int, int], accumulation: int) -> None:
    assert plan_batches(*sizes).accumulation == accumulation


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((32, 1, 7), ["=28 or 35", "1 or 2 or 4 or 8 data-parallel rank(s)"]),
        ((10, 4, 1), ["=8 or 12", "micro_batch_size=1 or 2 or 5"]),
        ((2, 2, 2), ["=4;", "micro_batch_size=1", "1 data-parallel rank(s)"]),
        ((0, 1, 1), ["train.global_batch_size=0 must be at least 1"]),
        ((0, -1, 0), ["global_batch_size=0", "micro_batch_size=-1", "data-parallel size=0"]),
    ],
    ids=["ranks", "micro batch", "too small", "zero", "all wrong"],
)
def test_indivisible_sizes_say_what_fits(sizes: tuple[int, int, int], message: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        plan_batches(*sizes)
    assert all(text in str(caught.value) for text in message), str(caught.value)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_every_sample_is_read_once_whatever_the_ranks(steps: int, micro: int, ranks: int, iteration: int) -> None:
    """Over ranks and micro steps the samples of an iteration are the next global_batch_size of the order, in order."""
    size = steps * micro * ranks
    plan = plan_batches(size, micro, ranks)
    read = [i for j in range(plan.accumulation) for r in range(ranks) for i in plan.samples(iteration, j, r)]
    assert read == list(range(iteration * size, (iteration + 1) * size))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 50))
def test_no_two_ranks_read_the_same_sample(steps: int, micro: int, ranks: int, iteration: int) -> None:
    """Nor does a rank read one twice; every micro step has its size."""
    plan = plan_batches(steps * micro * ranks, micro, ranks)
    parts = [plan.samples(iteration, j, r) for j in range(plan.accumulation) for r in range(ranks)]
    assert {len(part) for part in parts} == {micro}
    assert len({i for part in parts for i in part}) == plan.global_batch_size
    assert max(part.stop for part in parts) == plan.samples(iteration + 1, 0, 0).start
