"""What an indivisible batch size is told to become: every number that is named makes it come out even."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from nano3.training.checks.parallel_layout import multiples_around
from nano3.training.hf.batch import BatchPlan, plan_batches
from nano3.utils.errors import UserError

sizes = st.integers(1, 48)


def advice(told: str) -> dict[str, list[int]]:
    """The numbers that a message names for each of the three sizes."""
    fits = told.partition("What fits: ")[2]
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
def test_each_number_that_is_advised_fits(batch: int, micro: int, ranks: int) -> None:
    """Typed instead of the one it stands for, alone."""
    try:
        assert plan_batches(batch, micro, ranks).accumulation * micro * ranks == batch
    except UserError as error:
        found = advice(str(error))
        assert found["batch"], "the batch size can always be changed"
        tried = [(n, micro, ranks) for n in found["batch"]] + [(batch, n, ranks) for n in found["micro"]]
        for one in tried + [(batch, micro, n) for n in found["ranks"]]:
            assert isinstance(plan_batches(*one), BatchPlan)
        assert (found["micro"] == []) == (batch % ranks > 0)
        assert (found["ranks"] == []) == (batch % micro > 0)


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_the_multiples_that_are_named_are_the_nearest(n: int, step: int) -> None:
    found = [int(number) for number in multiples_around(n, step).split(" or ")]
    assert all(number % step == 0 and number > 0 for number in found)
    assert min(abs(number - n) for number in found) <= step / 2 or found == [step]
    assert all(abs(number - n) <= step for number in found)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 50))
def test_no_two_ranks_read_the_same_sample(steps: int, micro: int, ranks: int, iteration: int) -> None:
    """Nor does a rank read one twice; every micro step has its size."""
    plan = plan_batches(steps * micro * ranks, micro, ranks)
    parts = [plan.samples(iteration, j, r) for j in range(plan.accumulation) for r in range(ranks)]
    assert {len(part) for part in parts} == {micro}
    assert len({i for part in parts for i in part}) == plan.global_batch_size
    assert max(part.stop for part in parts) == plan.samples(iteration + 1, 0, 0).start
