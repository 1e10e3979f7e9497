"""Permutations and interleaving are computed: the same for one number and for arrays, and both ways."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.training.order.interleave import LARGEST_STAGE, Interleave
from nano3.training.order.permutation import key_of, permute, unpermute

counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 300), min_size=1).filter(
    lambda found: sum(found.values())
)


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_a_permutation_is_one_and_is_undone(size: int, key: int) -> None:
    numbers = np.arange(size, dtype=np.uint64)
    moved = permute(numbers.copy(), size, key)
    assert sorted(moved.tolist()) == list(range(size))
    assert unpermute(moved.copy(), size, key).tolist() == list(range(size))
    for x in {0, size // 3, size - 1}:
        assert permute(x, size, key) == moved[x]
        assert unpermute(int(moved[x]), size, key) == x


@given(st.integers(2**31, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_large_ranges(size: int, key: int, data: st.DataObject) -> None:
    x = data.draw(st.integers(0, size - 1))
    moved = permute(x, size, key)
    assert 0 <= moved < size and unpermute(moved, size, key) == x
    assert permute(np.array([x], np.uint64), size, key).tolist() == [moved]


def test_keys_and_permutations_do_not_change_between_versions() -> None:
    """Runs that are resumed with a later version depend on these numbers."""
    assert key_of(1234, "docs", 0, "samples") == 6738314411465239903
    assert [permute(x, 10, 99) for x in range(10)] == [3, 6, 5, 8, 1, 4, 0, 9, 7, 2]


def test_neighbors_are_moved_apart() -> None:
    """Of 100,000 numbers, the displacement of a random permutation has a mean of a third of the range."""
    size = 100_000
    moved = permute(np.arange(size, dtype=np.uint64), size, 7).astype(np.int64)
    assert abs(np.abs(moved - np.arange(size)).mean() / size - 1 / 3) < 0.01
    assert abs(np.corrcoef(moved[:-1], moved[1:])[0, 1]) < 0.02


@settings(deadline=None)
@given(counts)
def test_each_dataset_gets_its_samples_evenly(found: dict[str, int]) -> None:
    order = Interleave(found)
    seen, bound = dict.fromkeys(found, 0), 1.0 if sum(map(bool, found.values())) <= 3 else 1.7
    every = np.arange(order.total, dtype=np.uint64)
    before = {name: order.count_before(name, every) for name in order.counts}
    for n in range(order.total):
        name, index = order.locate(n)
        assert index == seen[name] == order.before(name, n) == before[name][n]
        assert order.sample_of(name, index) == n
        seen[name] += 1
        assert all(abs(seen[one] - (n + 1) * found[one] / order.total) < bound for one in found)
    assert seen == found


@given(st.lists(st.integers(1, LARGEST_STAGE // 8), min_size=1, max_size=8), st.data())
def test_the_largest_stages_do_not_overflow(sizes: list[int], data: st.DataObject) -> None:
    order = Interleave({str(number): size for number, size in enumerate(sizes)})
    n = data.draw(st.integers(0, order.total - 1))
    name, index = order.locate(n)
    assert order.sample_of(name, index) == n
    assert order.before(name, n) == order.count_before(name, np.array([n], np.uint64))[0] == index
