"""The plan: every document in exactly one unit, split and shard; equal shards; the same whoever makes it."""

import os
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from data_helpers import options, source, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config import PrepOptions
from nano3.data.planning.plan import SPLITS, DatasetPlan, allocate_shards, lay_out, load_plan
from nano3.data.planning.planner import estimate_bytes, make_plan, make_request
from nano3.data.planning.splits import FULL, document_hash, file_seed, fit_bounds, split_of


def dataset(costs: list[int], formats: list[str] | None = None, **keys) -> DatasetPlan:
    """A dataset that exists on paper only."""
    n = len(costs)
    names = [f"{i:06d}" for i in range(n)]
    return DatasetPlan("d", 1.0, "p", "text", "/r", None, names, costs, names, formats or ["jsonl"] * n, costs, **keys)


files = st.lists(st.tuples(st.integers(1, 5000), st.sampled_from(["jsonl", "parquet", "gz"])), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(files=files, shards=st.integers(1, 40), unit=st.integers(1, 4000), valid=st.sampled_from([0.0, 0.01, 0.3]))
def test_units_are_a_partition(files, shards: int, unit: int, valid: float, monkeypatch_unit) -> None:
    d = dataset([c for c, _ in files], [f for _, f in files])
    with monkeypatch_unit(unit):
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
    for i, (cost, kind) in enumerate(files):
        spans = [s for s in starts[i] if s[0] < s[1]]
        assert spans[0][0] == 0
        assert spans[-1][1] == cost
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        if kind == "gz":
            assert len(spans) == 1
    for split in range(3):
        for s in range(d.shards[split]):
            low, high = d.shard_bounds[split][s : s + 2]
            first, last = d.units_of_shard(split, s)
            for i, (cost, kind) in enumerate(files):
                base = int(d.file_offsets[i])
                for span in starts[i]:
                    # a line ends where it starts; a group or stream may reach to the end of its file
                    reach = base + (span[1] if kind == "jsonl" else cost)
                    if base + span[0] < high and reach > low and span[0] < span[1] and low < high:
                        assert first <= units_of_start[i, span[0]] <= last


@pytest.fixture(scope="module")
def monkeypatch_unit():
    """Sets the sizes of units, so that small plans have many."""
    import contextlib

    from nano3.data.planning import plan

    @contextlib.contextmanager
    def sizes(unit: int):
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
def test_shards_go_where_they_are_largest(sizes: list[list[float]], shards: int) -> None:
    counts = allocate_shards(sizes, shards)
    flat = [(s, c) for row, ns in zip(sizes, counts, strict=True) for s, c in zip(row, ns, strict=True)]
    assert all(c >= 1 for _, c in flat)
    assert sum(c for _, c in flat) == max(shards, len(flat))
    largest = max(s / c for s, c in flat)
    assert all(
        s / (c - 1) >= largest - 1e-6 for s, c in flat if c > 1
    )  # taking one away makes no shard smaller than the largest


@pytest.mark.parametrize(
    ("costs", "shards", "wanted"),
    [([100_000, 1000, 1000], 4, 4), ([10], 128, 128), ([5] * 100, 4, 4), ([1, 1, 1], 2, 2)],
    ids=["one_big", "tiny", "many", "fewer_shards_than_files"],
)
def test_shards_are_equal_in_places(costs: list[int], shards: int, wanted: int) -> None:
    d = dataset(costs)
    lay_out([d], PrepOptions(num_shards=shards, valid_fraction=0.0, test_fraction=0.0))
    widths = np.diff(d.shard_bounds[0])
    assert len(widths) == wanted
    assert widths.max() - widths.min() <= 1


def test_a_hundred_thousand_files_and_ten_thousand_shards() -> None:
    start = time.process_time()
    d = dataset(list(np.random.default_rng(0).integers(1, 100_000, 100_000).tolist()))
    lay_out([d], PrepOptions(num_shards=10_000))
    for u in range(d.units):
        d.file_ranges(u)
    for split in range(3):
        for s in range(d.shards[split]):
            d.units_of_shard(split, s)
    assert sum(d.shards) == 10_000
    assert time.process_time() - start < 20  # seconds of work, not hours: quadratic code would not end


@given(size=st.integers(1, 1 << 45), kind=st.sampled_from(["jsonl", "parquet", "gz"]))
def test_a_few_bytes_more_move_no_cut(size: int, kind: str) -> None:
    """Nearly always: places are rounded, by so little that shards stay equal; a place may not lie beyond the file."""
    cost = estimate_bytes(size, kind)
    exact = estimate_bytes(1, kind) * size
    assert exact <= cost <= exact + exact // 2048
    assert estimate_bytes(size + 1, kind) >= cost
    if size > 1 << 20:
        assert sum(estimate_bytes(size + more, kind) == cost for more in (-20, 20)) >= 1


@given(st.lists(st.integers(0, 1 << 62), min_size=1, max_size=50), st.integers(0, FULL - 1))
def test_document_hash_is_splitmix64(keys: list[int], seed: int) -> None:
    def plain(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % FULL
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % FULL
        return x ^ (x >> 31)

    wanted = [plain((seed + (k + 1) * 0x9E3779B97F4A7C15) % FULL) for k in keys]
    assert document_hash(seed, np.array(keys)).tolist() == wanted


def test_splits_have_their_shares() -> None:
    hashes = document_hash(file_seed("d", "a.jsonl"), np.arange(200_000))
    counts = np.bincount(split_of(hashes, (int(0.01 * FULL), int(0.03 * FULL))), minlength=3) / 200_000
    assert counts == pytest.approx([0.97, 0.01, 0.02], rel=0.06)


@pytest.mark.parametrize(
    ("count", "fractions", "wanted"),
    [
        (0, (0.1, 0.1), [0, 0, 0]),
        (1, (0.1, 0.1), [1, 0, 0]),
        (2, (0.1, 0.1), [1, 1, 0]),
        (3, (0.1, 0.1), [1, 1, 1]),
        (3, (0.0, 0.1), [2, 0, 1]),
        (10, (0.4, 0.5), [1, 4, 5]),
        (100, (0.005, 0.005), [98, 1, 1]),
        (1000, (0.1, 0.2), [700, 100, 200]),
    ],
)
def test_small_data_has_every_split(count: int, fractions: tuple[float, float], wanted: list[int]) -> None:
    d = dataset([1])
    hashes = np.sort(document_hash(7, np.arange(count)))
    fit_bounds(d, hashes, fractions)
    assert np.bincount(split_of(hashes, d.bounds), minlength=3).tolist() == wanted
    missing = [SPLITS[i + 1] for i, f in enumerate(fractions) if f and not wanted[i + 1]]
    assert [name for name in missing if any(name in note for note in d.warnings)] == missing


def request(folder: Path, tokenizer: Path, **keys):
    return make_request(
        [source(folder, weight=keys.pop("weight", 1.0))], options(folder.parent / "out", tokenizer, **keys), "b"
    )


def test_hash_knows_the_content_and_nothing_else(tmp_path: Path, byte_bpe: Path) -> None:
    one = write(tmp_path / "one" / "x" / "a.jsonl", texts(50)).parent.parent
    two = write(tmp_path / "elsewhere" / "x" / "a.jsonl", texts(50)).parent.parent
    os.utime(two / "x" / "a.jsonl", (1, 1))
    base = request(one, byte_bpe).hash
    assert request(two, byte_bpe).hash == base
    for keys in (
        {"weight": 3.0},
        {"workers": 7},
        {"engine": "tokenizers"},
        {"check_every": 5},
        {"force": True},
        {"bad_rows": "skip"},
    ):
        assert request(one, byte_bpe, **keys).hash == base, keys
    changes = {"num_shards": 9, "add_eos": False, "sample": 3, "min_doc_chars": 2, "valid_fraction": 0.2}
    changes |= {"max_doc_tokens": 7, "split_special_tokens": True, "dtype": "int32", "add_bos": True}
    for keys in ({name: value} for name, value in changes.items()):
        assert request(one, byte_bpe, **keys).hash != base, keys
    data = bytearray((two / "x" / "a.jsonl").read_bytes())
    data[20] ^= 1
    (two / "x" / "a.jsonl").write_bytes(data)
    assert request(two, byte_bpe).hash != base


def test_hash_knows_the_tokenizer(tmp_path: Path, byte_bpe: Path, unigram: Path) -> None:
    folder = write(tmp_path / "one" / "a.jsonl", texts(5)).parent
    assert request(folder, byte_bpe).hash != request(folder, unigram).hash


def test_a_plan_survives_its_file(tmp_path: Path, byte_bpe: Path) -> None:
    folder = write(tmp_path / "one" / "a.jsonl", texts(5)).parent
    plan = make_plan(request(folder, byte_bpe))
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert msgspec.structs.replace(plan, hash="x") != plan


WRONG = {
    "shards": ({"num_shards": 0}, "num_shards=0"),
    "workers": ({"workers": 0}, "workers=0"),
    "sample": ({"sample": -1}, "sample=-1"),
    "engine": ({"engine": "fastest"}, "engine=fastest"),
    "engine_near": ({"engine": "tokenizer"}, "Did you mean 'tokenizers'"),
    "bad_rows": ({"bad_rows": "ignore"}, "fail, skip"),
    "fractions": ({"valid_fraction": 0.6, "test_fraction": 0.4}, "less than 1"),
    "negative_fraction": ({"valid_fraction": -0.1}, "at least 0"),
    "nan_fraction": ({"valid_fraction": float("nan")}, "at least 0"),
    "check_every": ({"check_every": -1}, "check_every=-1"),
    "dtype": ({"dtype": "int64"}, "dtype=int64"),
}


@pytest.mark.parametrize(("keys", "what"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_told(keys: dict, what: str, tmp_path: Path, byte_bpe: Path) -> None:
    from nano3.utils.errors import UserError

    folder = write(tmp_path / "one" / "a.jsonl", texts(5)).parent
    with pytest.raises(UserError, match=what):
        request(folder, byte_bpe, **keys)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    from nano3.utils.errors import UserError

    sources = [source(tmp_path / "no1", "a"), source(tmp_path / "no2", "b")]
    with pytest.raises(UserError) as caught:
        make_request(sources, options(tmp_path / "out", tmp_path / "no_tokenizer"), "b")
    assert len(caught.value.problems) == 3
    sources = [source("x", "a", weight=-1), source("x", "a"), source("x", "bad/name")]
    with pytest.raises(UserError) as caught:
        make_request(sources, options(tmp_path / "out", tmp_path / "t", num_shards=0), "b")
    assert len(caught.value.problems) == 7, "four of options and names, the tokenizer, two paths"
