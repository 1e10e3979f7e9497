"""Test which units and shards of a damaged build count as finished."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from data_helpers import options, paper_dataset, paper_plan, plan_build, source, texts, write

from nano3.data.build.build_state import BuildState
from nano3.data.build.merge import merge_shard
from nano3.data.build.receipts import (
    shard_receipt_path,
    unit_receipt_path,
)
from nano3.data.build.unit_encoder import Worker
from nano3.data.planning.plan import load_plan
from nano3.data.tokenization.encoders import reference_encoder
from nano3.data.tokenization.engines import load_engines


@pytest.fixture
def made(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> BuildState:
    """Return a build with all units finished and one shard merged, by the reference engine; small units."""
    from nano3.data.planning import plan as plans

    monkeypatch.setattr(plans, "MIN_UNIT", 20_000)
    monkeypatch.setattr(plans, "MAX_UNIT", 20_000)
    path = write(tmp_path / "a.jsonl", texts(500))
    keys = {"num_shards": 4, "valid_fraction": 0.1, "test_fraction": 0.1}
    plan_path = plan_build([source(path)], options(tmp_path / "out", byte_bpe, **keys), "test")
    plan = load_plan(plan_path)
    encoder = reference_encoder(load_engines(plan.tokenizer.file, False, fast=False).reference)
    worker = Worker(plan, plan_path.parent, encoder, None)
    for number in range(plan.units):
        worker.encode_unit(number)
    inputs = BuildState(plan, plan_path.parent).shard_fragments((0, 0, 0))
    merge_shard(plan, plan_path.parent, (0, 0, 0), *inputs)
    state = BuildState(plan, plan_path.parent)
    assert plan.units >= 4
    assert list(state.shards) == [(0, 0, 0)]
    assert state.open_units() == []
    return state


def fragment_file(state: BuildState, suffix: str) -> Path:
    """Return a file of a fragment that is not merged yet."""
    return min((state.build / "units").glob(f"*.valid.*{suffix}"))


def spoil(path: Path) -> None:
    """Change a byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


UNIT_DAMAGE: dict[str, Callable[[BuildState], object]] = {
    "changed_tokens": lambda s: spoil(fragment_file(s, ".bin")),
    "changed_lengths": lambda s: spoil(fragment_file(s, ".len")),
    "no_lengths": lambda s: fragment_file(s, ".len").unlink(),
    "truncated_lengths": lambda s: os.truncate(fragment_file(s, ".len"), 4),
    "no_receipt": lambda s: unit_receipt_path(s.build, int(fragment_file(s, ".bin").name[:6])).unlink(),
    "zeroed_receipt": lambda s: unit_receipt_path(s.build, int(fragment_file(s, ".bin").name[:6])).write_bytes(
        bytes(300)
    ),
}


@pytest.mark.parametrize("damage", UNIT_DAMAGE.values(), ids=UNIT_DAMAGE.keys())
def test_only_a_damaged_unit_is_rebuilt(made: BuildState, damage: Callable[[BuildState], object]) -> None:
    number = int(fragment_file(made, ".bin").name[:6])
    damage(made)
    again = BuildState(made.plan, made.build)
    assert again.open_units() == [number]
    assert again.shards == made.shards, "a merged shard does not need its fragments"


SHARD_DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "bin_cut": lambda prefix, receipt: os.truncate(prefix.with_suffix(".bin"), 10),
    "bin_gone": lambda prefix, receipt: prefix.with_suffix(".bin").unlink(),
    "bin_flipped": lambda prefix, receipt: spoil(prefix.with_suffix(".bin")),
    "idx_flipped": lambda prefix, receipt: spoil(prefix.with_suffix(".idx")),
    "receipt_flipped": lambda prefix, receipt: spoil(receipt),
    "idx_gone": lambda prefix, receipt: prefix.with_suffix(".idx").unlink(),
    "receipt_gone": lambda prefix, receipt: receipt.unlink(),
    "receipt_cut": lambda prefix, receipt: os.truncate(receipt, 30),
    "receipt_of_a_unit": lambda prefix, receipt: receipt.write_bytes(
        unit_receipt_path(prefix.parents[1], 0).read_bytes()
    ),
    "receipt_not_utf8": lambda prefix, receipt: receipt.write_bytes(b'{"split": "\xff"}'),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE.values(), ids=SHARD_DAMAGE.keys())
def test_a_damaged_shard_is_rebuilt_with_its_units(made: BuildState, damage: Callable[[Path, Path], object]) -> None:
    """The fragments are gone, so only the units of the shard are rebuilt."""
    first, last = made.plan.datasets[0].units_of_shard(0, 0)
    damage(made.build / made.plan.shard_name(0, 0, 0), shard_receipt_path(made.build, made.plan, 0, 0, 0))
    again = BuildState(made.plan, made.build)
    assert again.shards == {}
    assert again.open_units()
    assert set(again.open_units()) <= set(range(first, last + 1))
    assert (0, 0, 0) in [shard for shard, _, _ in again.open_shards()]


def test_tasks_do_not_read_the_shards_of_others(made: BuildState) -> None:
    """The process that publishes reads every shard once."""
    spoil((made.build / made.plan.shard_name(0, 0, 0)).with_suffix(".bin"))
    assert BuildState(made.plan, made.build, range(1)).shards == made.shards
    assert BuildState(made.plan, made.build).shards == {}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_array_tasks_share_units_and_merge_no_shard_twice(made: BuildState, count: int) -> None:
    units = made.plan.units
    for number in range(units):
        unit_receipt_path(made.build, number).unlink()
    tasks = [
        BuildState(made.plan, made.build, range(i * units // count, (i + 1) * units // count)) for i in range(count)
    ]
    opened = [number for task in tasks for number in task.open_units()]
    assert opened == [n for n in range(units) if made.plan.datasets[0].file_ranges(n)]
    shards = [shard for task in tasks for shard, _, _ in task.open_shards()]
    assert len(shards) == len(set(shards))
    assert (0, 0, 0) not in shards
    for task in tasks:
        for _, first, last in task.open_shards():
            assert first in task.unit_range
            assert last in task.unit_range


def test_an_empty_shard_is_open_only_for_the_process_with_all_units(tmp_path: Path) -> None:
    """There are more shards than offsets."""
    plan = paper_plan(tmp_path, [paper_dataset([2], shards=(5, 0, 0), cells_per_shard=1)])
    whole, half = BuildState(plan, tmp_path), BuildState(plan, tmp_path, range(plan.units // 2))
    assert sorted(shard[2] for shard, _, _ in whole.open_shards()) == [0, 1, 2, 3, 4]
    lows = {s for s in range(5) if plan.datasets[0].units_of_shard(0, s) == (0, -1)}
    assert len(lows) == 3
    assert not lows & {shard[2] for shard, _, _ in half.open_shards()}


def test_engine_markers_persist(tmp_path: Path) -> None:
    plan = paper_plan(tmp_path, [paper_dataset([2])])
    state = BuildState(plan, tmp_path)
    assert (state.verified, state.mismatched) == (False, False)
    state.mark_verified()
    assert BuildState(plan, tmp_path).verified
    assert (tmp_path / "fastokens-proven").exists(), "the name of an older nano3"
    state.mark_mismatch("other ids for 'é'")
    again = BuildState(plan, tmp_path)
    assert (again.verified, again.mismatched, again.mismatch) == (True, True, "other ids for 'é'")
