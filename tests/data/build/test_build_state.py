"""Receipts and parts: what a build believes of itself after any damage, and what it does not."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_helpers import options, paper_dataset, paper_plan, plan_build, source, texts, write
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.build.build_state import BuildState
from nano3.data.build.direct_writer import DirectWriter
from nano3.data.build.merge import merge_shard
from nano3.data.build.receipts import (
    Fragment,
    ShardReceipt,
    UnitReceipt,
    read_receipt,
    shard_receipt_path,
    unit_receipt_path,
    write_receipt,
)
from nano3.data.build.shard_fragment import open_fragment
from nano3.data.build.unit_encoder import Worker
from nano3.data.planning.plan import load_plan
from nano3.data.tokenization.encoders import reference_encoder
from nano3.data.tokenization.engines import load_engines
from nano3.utils.errors import Failure


@pytest.fixture
def made(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> BuildState:
    """A build with all units done and one shard joined, by the reference; small units."""
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
    merge_shard(plan, plan_path.parent, 0, 0, 0)
    state = BuildState(plan, plan_path.parent)
    assert plan.units >= 4
    assert list(state.shards) == [(0, 0, 0)]
    assert state.open_units() == []
    return state


def a_part(state: BuildState, suffix: str) -> Path:
    """A file of a part that no shard has taken yet."""
    return min((state.build / "units").glob(f"*.valid.*{suffix}"))


def spoil(path: Path) -> None:
    """Another byte in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


UNIT_DAMAGE: dict[str, Callable[[BuildState], object]] = {
    "a_byte_of_tokens": lambda s: spoil(a_part(s, ".bin")),
    "a_byte_of_lengths": lambda s: spoil(a_part(s, ".len")),
    "no_lengths": lambda s: a_part(s, ".len").unlink(),
    "lengths_cut": lambda s: os.truncate(a_part(s, ".len"), 4),
    "no_receipt": lambda s: unit_receipt_path(s.build, int(a_part(s, ".bin").name[:6])).unlink(),
    "a_receipt_of_zeros": lambda s: unit_receipt_path(s.build, int(a_part(s, ".bin").name[:6])).write_bytes(bytes(300)),
}


@pytest.mark.parametrize("damage", UNIT_DAMAGE.values(), ids=UNIT_DAMAGE.keys())
def test_a_damaged_unit_and_no_other_is_done_again(made: BuildState, damage: Callable[[BuildState], object]) -> None:
    number = int(a_part(made, ".bin").name[:6])
    damage(made)
    again = BuildState(made.plan, made.build)
    assert again.open_units() == [number]
    assert again.shards == made.shards, "what is joined does not need the unit's parts"


SHARD_DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "bin_cut": lambda prefix, receipt: os.truncate(prefix.with_suffix(".bin"), 10),
    "bin_gone": lambda prefix, receipt: prefix.with_suffix(".bin").unlink(),
    "idx_gone": lambda prefix, receipt: prefix.with_suffix(".idx").unlink(),
    "receipt_gone": lambda prefix, receipt: receipt.unlink(),
    "receipt_cut": lambda prefix, receipt: os.truncate(receipt, 30),
    "receipt_of_a_unit": lambda prefix, receipt: receipt.write_bytes(
        unit_receipt_path(prefix.parents[1], 0).read_bytes()
    ),
    "receipt_not_utf8": lambda prefix, receipt: receipt.write_bytes(b'{"split": "\xff"}'),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE.values(), ids=SHARD_DAMAGE.keys())
def test_a_damaged_shard_is_done_again_from_its_units(made: BuildState, damage: Callable[[Path, Path], object]) -> None:
    """Its parts are gone, so they are made again too: those units, and no other."""
    first, last = made.plan.datasets[0].units_of_shard(0, 0)
    damage(made.build / made.plan.shard_name(0, 0, 0), shard_receipt_path(made.build, made.plan, 0, 0, 0))
    again = BuildState(made.plan, made.build)
    assert again.shards == {}
    assert again.open_units()
    assert set(again.open_units()) <= set(range(first, last + 1))
    assert (0, 0, 0) in [shard for shard, _, _ in again.open_shards()]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_tasks_of_an_array_together_do_every_unit_and_join_no_shard_twice(made: BuildState, parts: int) -> None:
    units = made.plan.units
    for number in range(units):
        unit_receipt_path(made.build, number).unlink()
    tasks = [
        BuildState(made.plan, made.build, range(i * units // parts, (i + 1) * units // parts)) for i in range(parts)
    ]
    opened = [number for task in tasks for number in task.open_units()]
    assert opened == [n for n in range(units) if made.reads_files(n)]
    shards = [shard for task in tasks for shard, _, _ in task.open_shards()]
    assert len(shards) == len(set(shards))
    assert (0, 0, 0) not in shards
    for task in tasks:
        for _, first, last in task.open_shards():
            assert first in task.unit_range
            assert last in task.unit_range


def test_an_empty_shard_waits_for_nobody_and_is_left_to_the_whole(tmp_path: Path) -> None:
    """There are more shards than places."""
    plan = paper_plan(tmp_path, [paper_dataset([2], shards=(5, 0, 0), cells_per_shard=1)])
    whole, half = BuildState(plan, tmp_path), BuildState(plan, tmp_path, range(plan.units // 2))
    assert sorted(shard[2] for shard, _, _ in whole.open_shards()) == [0, 1, 2, 3, 4]
    lows = {s for s in range(5) if plan.datasets[0].units_of_shard(0, s) == (0, -1)}
    assert len(lows) == 3
    assert not lows & {shard[2] for shard, _, _ in half.open_shards()}


def test_a_proof_and_what_disproves_it_are_remembered(tmp_path: Path) -> None:
    plan = paper_plan(tmp_path, [paper_dataset([2])])
    state = BuildState(plan, tmp_path)
    assert (state.verified, state.mismatched) == (False, False)
    state.mark_verified()
    assert BuildState(plan, tmp_path).verified
    state.mark_mismatch("other ids for 'é'")
    again = BuildState(plan, tmp_path)
    assert (again.verified, again.mismatched, again.mismatch) == (True, True, "other ids for 'é'")


# Receipts

numbers = st.integers(0, (1 << 63) - 1)
where = st.tuples(numbers, numbers)
names = st.text(max_size=9)
a_part_receipt = st.builds(Fragment, numbers, numbers, names, *[numbers] * 4, names, names, where, where)
receipts = st.one_of(
    st.builds(
        UnitReceipt, numbers, names, numbers, numbers, st.dictionaries(names, numbers, max_size=3), *[numbers] * 4,
        st.lists(a_part_receipt, max_size=3),
    ),
    st.builds(
        ShardReceipt, numbers, numbers, numbers, st.none() | names, *[numbers] * 4, names, names, names,
        st.none() | where, st.none() | where,
    ),
)  # fmt: skip


@given(receipt=receipts, cut=st.integers(1, 400))
def test_a_receipt_comes_back_and_a_cut_one_counts_as_none(
    tmp_path_factory: pytest.TempPathFactory, receipt: UnitReceipt | ShardReceipt, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "receipt.json"
    write_receipt(path, receipt)
    assert read_receipt(path, type(receipt)) == receipt
    data = path.read_bytes()
    path.write_bytes(data[: -min(cut, len(data))])
    assert read_receipt(path, type(receipt)) is None
    path.unlink()
    assert read_receipt(path, type(receipt)) is None


def test_a_receipt_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in" / "000000.json" / "in the way").mkdir(parents=True)
    with pytest.raises(Failure, match=r"000000\.json: cannot be written: Is a directory"):
        write_receipt(tmp_path / "in" / "000000.json", UnitReceipt(0, "e", 0, 0, {}, 0, 0, 0, 0, []))
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["000000.json"]


# Parts


def test_a_part_counts_what_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    writer = open_fragment(tmp_path, 12, 1, 3)
    writer.add(np.arange(5, dtype=np.uint16), np.array([2, 0, 3], np.int32), (0, 7), (1, 2))
    writer.add_tokens(np.arange(4, dtype=np.uint16))
    writer.add_tokens(np.array([], np.uint16))
    writer.end_documents(np.array([4], np.int32), (1, 9), (1, 9))
    part = writer.commit()
    assert (part.name, part.documents, part.sequences, part.tokens, part.bytes) == ("000012.valid.00003", 4, 3, 9, 18)
    assert (part.first, part.last) == ((0, 7), (1, 9))
    assert np.fromfile(tmp_path / "units" / f"{part.name}.len", np.int32).tolist() == [2, 0, 3, 4]


def test_no_handle_and_no_file_is_left_when_only_one_of_two_files_opens(tmp_path: Path) -> None:
    """A process may have only so many files open."""
    (tmp_path / "units").mkdir()
    with (tmp_path / "probe").open("w") as probe:
        free = probe.fileno()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(Failure, match=r"\.len: cannot be written: Too many open files"):
            open_fragment(tmp_path, 0, 0, 0)
        with (tmp_path / "probe").open() as probe:
            assert probe.fileno() == free, "the first file was closed"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list((tmp_path / "units").iterdir()) == []


@pytest.mark.parametrize("suffix", [".bin", ".len"])
def test_a_part_whose_files_cannot_get_their_names_is_discarded(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "units" / f"000000.train.00000{suffix}" / "in the way").mkdir(parents=True)
    writer = open_fragment(tmp_path, 0, 0, 0)
    writer.add(np.ones(2, np.uint16), np.array([2], np.int32), (0, 0), (0, 0))
    with pytest.raises(Failure, match=rf"000000\.train\.00000\{suffix}: cannot be written"):
        writer.commit()
    writer.discard()
    assert not list((tmp_path / "units").glob(".*.tmp"))


def test_discarding_after_a_failed_commit_closes_no_other_file(tmp_path: Path) -> None:
    """The number of a closed file is given to the next one that is opened, which may be another thread's."""
    (tmp_path / "a.bin" / "in the way").mkdir(parents=True)
    out = DirectWriter(tmp_path / "a.bin")
    with pytest.raises(Failure, match="cannot be written"):
        out.commit(sync=False)
    with (tmp_path / "other").open("w") as other:
        out.discard()
        other.write("still open")
    assert (tmp_path / "other").read_text() == "still open"
