"""Plans: every document is in exactly one unit, split and shard, and shards are equal."""

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from data_helpers import options, source, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config import PrepOptions
from nano3.data.planning.plan import DatasetPlan, allocate_shards, lay_out, load_plan
from nano3.data.planning.planner import make_plan, make_request

UnitSizes = Callable[[int], contextlib.AbstractContextManager[None]]


def dataset(estimates: list[int], formats: list[str] | None = None, **keys: Any) -> DatasetPlan:
    """A dataset without files."""
    n = len(estimates)
    names = [f"{i:06d}" for i in range(n)]
    return DatasetPlan(
        "d", 1.0, "p", "text", "/r", None, names, estimates, names, formats or ["jsonl"] * n, estimates, **keys
    )


files = st.lists(st.tuples(st.integers(1, 5000), st.sampled_from(["jsonl", "parquet", "gz"])), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(files=files, shards=st.integers(1, 40), unit=st.integers(1, 4000), valid=st.sampled_from([0.0, 0.01, 0.3]))
def test_units_partition_the_dataset(
    files: list[tuple[int, str]], shards: int, unit: int, valid: float, unit_sizes: UnitSizes
) -> None:
    d = dataset([n for n, _ in files], [f for _, f in files])
    with unit_sizes(unit):
        lay_out([d], PrepOptions(num_shards=shards, valid_fraction=valid, test_fraction=0.0))
    assert d.unit_bounds[0] == 0
    assert d.unit_bounds[-1] == d.extent
    assert (np.diff(d.unit_bounds) >= 0).all()
    for split, count in enumerate(d.shards):
        assert count == 0 or (d.shard_bounds[split][0], d.shard_bounds[split][-1]) == (0, d.extent)
    starts: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(files))}
    units_of_start: dict[tuple[int, int], int] = {}
    for u in range(d.units):
        for file, part in d.file_ranges(u):
            starts[file].append((part.start, part.stop))
            units_of_start[file, part.start] = u
    for i, (estimate, kind) in enumerate(files):
        spans = [s for s in starts[i] if s[0] < s[1]]
        assert spans[0][0] == 0
        assert spans[-1][1] == estimate
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        if kind == "gz":
            assert len(spans) == 1
    for split in range(3):
        for s in range(d.shards[split]):
            low, high = d.shard_bounds[split][s : s + 2]
            first, last = d.units_of_shard(split, s)
            for i, (estimate, kind) in enumerate(files):
                base = int(d.file_offsets[i])
                for span in starts[i]:
                    # a line ends where it starts; a row group or stream may extend to the end of its file
                    reach = base + (span[1] if kind == "jsonl" else estimate)
                    if base + span[0] < high and reach > low and span[0] < span[1] and low < high:
                        assert first <= units_of_start[i, span[0]] <= last


@pytest.fixture(scope="module")
def unit_sizes() -> UnitSizes:
    """Set the size of units, so that small plans have many."""
    from nano3.data.planning import plan

    @contextlib.contextmanager
    def sizes(unit: int) -> Iterator[None]:
        before = plan.MIN_UNIT, plan.MAX_UNIT
        plan.MIN_UNIT = plan.MAX_UNIT = unit
        yield
        plan.MIN_UNIT, plan.MAX_UNIT = before

    return sizes


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.lists(st.floats(1, 1e6), min_size=3, max_size=3), min_size=1, max_size=6),
    shards=st.integers(1, 300),
)
def test_shards_are_allocated_where_they_are_largest(sizes: list[list[float]], shards: int) -> None:
    counts = allocate_shards(sizes, shards)
    flat = [(s, c) for row, ns in zip(sizes, counts, strict=True) for s, c in zip(row, ns, strict=True)]
    assert all(c >= 1 for _, c in flat)
    assert sum(c for _, c in flat) == max(shards, len(flat))
    largest = max(s / c for s, c in flat)
    assert all(
        s / (c - 1) >= largest - 1e-6 for s, c in flat if c > 1
    )  # one shard fewer would not make shards smaller than the largest


@pytest.mark.parametrize(
    ("estimates", "shards", "wanted"),
    [([100_000, 1000, 1000], 4, 4), ([10], 128, 128), ([5] * 100, 4, 4), ([1, 1, 1], 2, 2)],
    ids=["one_big", "tiny", "many", "fewer_shards_than_files"],
)
def test_shards_have_equal_extents(estimates: list[int], shards: int, wanted: int) -> None:
    d = dataset(estimates)
    lay_out([d], PrepOptions(num_shards=shards, valid_fraction=0.0, test_fraction=0.0))
    extents = np.diff(d.shard_bounds[0])
    assert len(extents) == wanted
    assert extents.max() - extents.min() <= 1


def test_100_000_files_and_10_000_shards_are_fast() -> None:
    start = time.process_time()
    d = dataset(list(np.random.default_rng(0).integers(1, 100_000, 100_000).tolist()))
    lay_out([d], PrepOptions(num_shards=10_000))
    for u in range(d.units):
        d.file_ranges(u)
    for split in range(3):
        for s in range(d.shards[split]):
            d.units_of_shard(split, s)
    assert sum(d.shards) == 10_000
    assert time.process_time() - start < 20  # quadratic code would take hours


def test_saved_plan_is_loaded_back(tmp_path: Path, byte_bpe: Path) -> None:
    folder = write(tmp_path / "one" / "a.jsonl", texts(5)).parent
    plan = make_plan(make_request([source(folder)], options(tmp_path / "out", byte_bpe), "b"))
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert msgspec.structs.replace(plan, hash="x") != plan
