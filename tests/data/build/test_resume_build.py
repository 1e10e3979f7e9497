"""Test what a new request reuses of an interrupted build."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from data_helpers import paper_dataset, paper_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config import SourceConfig
from nano3.data.build.receipts import UnitReceipt, shard_receipt_path, unit_receipt_path, write_receipt
from nano3.data.build.resume_build import (
    is_published,
    may_hold_documents,
    needs_skipped_rows,
    read_plan,
    resume_plan,
    reuse_partial_build,
    same_layout,
    stale_units,
)
from nano3.data.dataset.output_dir import build_dir
from nano3.data.planning.plan import PLAN_FORMAT, DatasetPlan, Plan
from nano3.data.planning.planner import PrepRequest
from nano3.data.sources.discovery import WHOLE_FILE_LIMIT
from nano3.data.sources.fingerprint_cache import FingerprintCache

LARGE = WHOLE_FILE_LIMIT + 1


def two_datasets() -> list[DatasetPlan]:
    """Units 0 to 3 read the first dataset, one small file each; units 4 to 7 the second, one large file."""
    first = paper_dataset([100] * 4, shards=(2, 2, 0), cells_per_shard=2, times=[1] * 4)
    second = paper_dataset([LARGE], name="e", shards=(2, 1, 1), cells_per_shard=2, times=[1])
    return [first, second]


def request_for(plan: Plan) -> PrepRequest:
    """Return a request that makes this plan."""
    sources = [SourceConfig(name=d.name, path=d.path, weight=d.weight) for d in plan.datasets]
    datasets = deepcopy(plan.datasets)
    return PrepRequest(
        sources, plan.options, plan.blend, plan.tokenizer, plan.dtype, datasets, plan.hash, FingerprintCache()
    )


def changed_options(request: PrepRequest, **keys: object) -> None:
    request.options = replace(request.options, **keys)


# Resuming a plan

RESUMED: dict[str, Callable[[PrepRequest], object]] = {
    "nothing": lambda r: None,
    "a_weight": lambda r: setattr(r.datasets[1], "weight", 3.0),
    "a_budget": lambda r: setattr(r.datasets[1], "budget", {"epochs": 2.0}),
    "the_blends_name": lambda r: setattr(r, "blend", "other"),
    "another_location": lambda r: (setattr(r.datasets[0], "root", "/moved"), setattr(r.datasets[0], "path", "/moved")),
    "a_new_commit": lambda r: setattr(r.datasets[0], "revision", "abc"),
    "more_workers": lambda r: changed_options(r, workers=9),
    "bad_rows_may_be_skipped": lambda r: changed_options(r, bad_rows="skip"),
    "a_small_file_was_touched": lambda r: r.datasets[0].times.__setitem__(0, 2),
    "the_output_has_moved": lambda r: changed_options(r, output_dir="/elsewhere"),
}


@pytest.mark.parametrize("change", RESUMED.values(), ids=RESUMED.keys())
def test_a_plan_is_resumed_with_the_new_settings(tmp_path: Path, change: Callable) -> None:
    saved = paper_plan(tmp_path, two_datasets())
    request = request_for(saved)
    change(request)
    plan = resume_plan(deepcopy(saved), request)
    assert plan is not None
    assert (plan.blend, plan.options, plan.output_dir) == (request.blend, request.options, request.options.output_dir)
    for now, asked, before in zip(plan.datasets, request.datasets, saved.datasets, strict=True):
        assert (now.weight, now.path, now.root, now.revision) == (asked.weight, asked.path, asked.root, asked.revision)
        assert now.budget == asked.budget
        assert (now.layout, now.units) == (before.layout, before.units)


NOT_RESUMED: dict[str, Callable[[PrepRequest], object]] = {
    "other_bytes": lambda r: setattr(r, "hash", "0" * 64),
    "a_large_file_was_touched": lambda r: r.datasets[1].times.__setitem__(0, 2),
    "a_file_was_removed": lambda r: r.datasets[0].keys.__setitem__(3, "renamed"),
    "a_file_has_other_content": lambda r: r.datasets[0].fingerprints.__setitem__(2, "other"),
    "a_file_has_another_format": lambda r: r.datasets[0].formats.__setitem__(2, "gz"),
}


@pytest.mark.parametrize("change", NOT_RESUMED.values(), ids=NOT_RESUMED.keys())
def test_a_plan_is_not_resumed_with_other_files(tmp_path: Path, change: Callable) -> None:
    saved = paper_plan(tmp_path, two_datasets())
    request = request_for(saved)
    change(request)
    assert resume_plan(deepcopy(saved), request) is None


def test_the_plan_of_a_sample_is_resumed_with_fewer_files(tmp_path: Path) -> None:
    """It has only the files from which rows are sampled."""
    saved = paper_plan(tmp_path, two_datasets())
    request = request_for(saved)
    for column in ("keys", "sizes", "fingerprints", "formats", "estimated_bytes", "times"):
        del getattr(saved.datasets[0], column)[1]
    saved.datasets[0].rows = [5, 5, 5]
    plan = resume_plan(saved, request)
    assert plan is not None
    assert plan.datasets[0].keys == ["000000", "000002", "000003"]


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [("skip", "fail", True), ("skip", "skip", False), ("fail", "fail", False), ("fail", "skip", False)],
)
def test_skipped_rows_are_needed_only_if_bad_rows_now_fail(tmp_path: Path, old: str, new: str, wanted: bool) -> None:
    saved = paper_plan(tmp_path, two_datasets(), bad_rows=old)
    request = request_for(saved)
    changed_options(request, bad_rows=new)
    assert needs_skipped_rows(saved, request) is wanted
    assert (resume_plan(saved, request) is None) is wanted


# Layouts

OTHER_LAYOUTS: dict[str, Callable[[Plan], object]] = {
    "name": lambda p: setattr(p.datasets[0], "name", "x"),
    "text_field": lambda p: setattr(p.datasets[0], "text_field", "body"),
    "units": lambda p: setattr(p.datasets[0], "cells_per_unit", 2),
    "shards": lambda p: setattr(p.datasets[0], "shards", (2, 1, 0)),
    "order": lambda p: p.datasets.reverse(),
    "fewer_datasets": lambda p: p.datasets.pop(),
    "dtype": lambda p: setattr(p, "dtype", "int32"),
    "eos": lambda p: setattr(p, "options", replace(p.options, add_eos=False)),
    "limit": lambda p: setattr(p, "options", replace(p.options, max_doc_tokens=7)),
    "fractions": lambda p: setattr(p, "options", replace(p.options, valid_fraction=0.2)),
    "tokenizer": lambda p: setattr(p, "tokenizer", replace(p.tokenizer, sha256="1" * 64)),
    "eod": lambda p: setattr(p, "tokenizer", replace(p.tokenizer, eod_id=0)),
}
SAME_LAYOUTS: dict[str, Callable[[Plan], object]] = {
    "unused_bos": lambda p: setattr(p, "tokenizer", replace(p.tokenizer, bos_id=0)),
    "an_edited_file": lambda p: p.datasets[0].fingerprints.__setitem__(0, "other"),
    "weight": lambda p: setattr(p.datasets[0], "weight", 2.0),
    "workers": lambda p: setattr(p, "options", replace(p.options, workers=7)),
    "bad_rows": lambda p: setattr(p, "options", replace(p.options, bad_rows="skip")),
}


@pytest.mark.parametrize("change", OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS.keys())
def test_units_of_another_layout_are_not_reused(tmp_path: Path, change: Callable) -> None:
    old, new = paper_plan(tmp_path, two_datasets()), paper_plan(tmp_path, two_datasets())
    change(new)
    assert not same_layout(old, new)
    assert not same_layout(new, old)


@pytest.mark.parametrize("change", SAME_LAYOUTS.values(), ids=SAME_LAYOUTS.keys())
def test_settings_without_effect_on_bytes_keep_the_layout(tmp_path: Path, change: Callable) -> None:
    old, new = paper_plan(tmp_path, two_datasets()), paper_plan(tmp_path, two_datasets())
    change(new)
    assert same_layout(old, new)


files = st.lists(st.tuples(st.integers(1, 300), st.sampled_from(["jsonl", "gz"])), min_size=1, max_size=8)


@settings(max_examples=120, deadline=None)
@given(files=files, shards=st.integers(1, 4), cells=st.integers(1, 5), data=st.data())
def test_kept_units_read_no_changed_file(
    tmp_path_factory: pytest.TempPathFactory, files: list, shards: int, cells: int, data: st.DataObject
) -> None:
    """Check units by the files they read, and shards by the units that may fill them."""
    costs, formats = map(list, zip(*files, strict=True))
    keys = {"shards": (shards, 1, 0), "cells_per_shard": cells}
    base = tmp_path_factory.getbasetemp()
    old, new = (paper_plan(base, [paper_dataset([9]), paper_dataset(costs, formats, "e", **keys)]) for _ in range(2))
    changed = data.draw(st.sets(st.integers(0, len(costs) - 1)))
    for file in changed:
        new.datasets[1].fingerprints[file] = "other"
    stale = stale_units(old, new, base)
    offset = new.first_units[1]
    reads = {offset + u: {f for f, _ in new.datasets[1].file_ranges(u)} for u in range(new.datasets[1].units)}
    assert stale == {unit for unit, read in reads.items() if read & changed}
    for shard in new.shards():
        first, last = new.datasets[shard[1]].units_of_shard(shard[0], shard[2])
        sources = {new.first_units[shard[1]] + u for u in range(first, last + 1)}
        if sources & stale:
            assert may_hold_documents(new, shard, stale)
        if shard[1] == 0:
            assert not may_hold_documents(new, shard, stale), "the other dataset has not changed"


MOVED: dict[str, Callable[[DatasetPlan], object]] = {
    "a_file_has_grown": lambda d: setattr(d, "estimated_bytes", [100, 100, 99, 101]),
    "other_bounds_of_splits": lambda d: setattr(d, "bounds", (1, 2)),
    "fewer_rows_of_a_sample": lambda d: setattr(d, "rows", [1, 1, 1, 1]),
}


@pytest.mark.parametrize("change", MOVED.values(), ids=MOVED.keys())
def test_all_units_are_stale_if_their_bounds_moved(tmp_path: Path, change: Callable) -> None:
    old, new = paper_plan(tmp_path, two_datasets()), paper_plan(tmp_path, two_datasets())
    change(new.datasets[0])
    assert same_layout(old, new), "the numbers of units and shards are the same"
    assert stale_units(old, new, tmp_path) == {0, 1, 2, 3}


def test_an_empty_shard_may_have_had_documents_before(tmp_path: Path) -> None:
    """With more shards than offsets, the bounds decide which are empty."""
    plan = paper_plan(tmp_path, [paper_dataset([9]), paper_dataset([2, 2], name="e", shards=(9, 0, 0))])
    empty = [shard for shard in plan.shards() if plan.datasets[shard[1]].units_of_shard(shard[0], shard[2]) == (0, -1)]
    assert len(empty) == 5
    assert all(may_hold_documents(plan, shard, {plan.first_units[1]}) for shard in empty)
    assert not any(may_hold_documents(plan, shard, {0}) for shard in empty)


# Reusing builds


def fill(plan: Plan, build: Path, skipped: dict[int, dict[str, int]] | None = None) -> None:
    """Write a build whose receipts say that everything is finished."""
    for sub in ("units", "shards"):
        (build / sub).mkdir(parents=True)
    plan.save(build / "plan.json")
    for number in range(plan.units):
        rows = (skipped or {}).get(number, {})
        write_receipt(unit_receipt_path(build, number), UnitReceipt(number, "e", 1, 0, rows, 0, 0, 0, 9, []))
    for shard in plan.shards():
        write_receipt(shard_receipt_path(build, plan, *shard), UnitReceipt(0, "e", 1, 0, {}, 0, 0, 0, 9, []))


def kept(plan: Plan, build: Path) -> tuple[set[int], set[tuple[int, int, int]]]:
    """Return the units and shards that have receipts."""
    units = {n for n in range(plan.units) if unit_receipt_path(build, n).exists()}
    return units, {shard for shard in plan.shards() if shard_receipt_path(build, plan, *shard).exists()}


@pytest.fixture
def plans(tmp_path: Path) -> tuple[Plan, Plan]:
    """Return a plan and the plan after an edit of file 1: unit 1 and the shards of units 0 and 1 are stale."""
    old, new = paper_plan(tmp_path, two_datasets()), paper_plan(tmp_path, two_datasets())
    new.hash = "a" * 64
    new.datasets[0].fingerprints[1] = "other"
    (tmp_path / ".prep").mkdir()
    return old, new


WANTED = ({0, 2, 3, 4, 5, 6, 7}, {(0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 1, 1), (1, 1, 0), (2, 1, 0)})


def test_an_interrupted_build_is_reused(
    tmp_path: Path, plans: tuple[Plan, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = plans
    fill(old, build_dir(tmp_path, old.hash))
    build = build_dir(tmp_path, new.hash)
    reuse_partial_build(new, build)
    assert kept(new, build) == WANTED
    assert not build_dir(tmp_path, old.hash).exists()
    assert "7 finished units are kept" in capsys.readouterr().out
    reuse_partial_build(new, build)  # killed before the new plan was written: the folder still holds the old one
    assert kept(new, build) == WANTED


@pytest.mark.parametrize("removed", range(5))
def test_a_kill_between_deletions_does_no_harm(tmp_path: Path, plans: tuple[Plan, Plan], removed: int) -> None:
    """Receipts of shards are deleted before those of units, so no shard outlives its units."""
    old, new = plans
    folder = build_dir(tmp_path, old.hash)
    fill(old, folder)
    gone = [shard_receipt_path(folder, new, *shard) for shard in [(0, 0, 0), (1, 0, 0)]] + [
        unit_receipt_path(folder, 1)
    ]
    for path in gone[:removed]:
        path.unlink()
    build = build_dir(tmp_path, new.hash)
    if removed == len(gone) + 1:
        (build / "units").mkdir(parents=True)  # an own build without a plan is useless
    reuse_partial_build(new, build)
    assert kept(new, build) == WANTED


def test_the_own_build_is_preferred_to_that_of_another_plan(tmp_path: Path, plans: tuple[Plan, Plan]) -> None:
    old, new = plans
    build = build_dir(tmp_path, new.hash)
    fill(old, build_dir(tmp_path, old.hash))
    fill(new, build)
    reuse_partial_build(new, build)
    assert kept(new, build) == (set(range(new.units)), set(new.shards()))
    assert build_dir(tmp_path, old.hash).exists(), "it is deleted when the data is published"


def test_a_build_of_another_layout_is_left_untouched(
    tmp_path: Path, plans: tuple[Plan, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = plans
    fill(old, build_dir(tmp_path, old.hash))
    new.options = replace(new.options, add_eos=False)
    build = build_dir(tmp_path, new.hash)
    reuse_partial_build(new, build)
    assert not build.exists()
    assert kept(old, build_dir(tmp_path, old.hash)) == (set(range(old.units)), set(old.shards()))
    assert "starting over beside it" in capsys.readouterr().out


def test_only_units_with_skipped_bad_rows_are_rebuilt_if_bad_rows_fail(tmp_path: Path) -> None:
    """A short document is filtered, not bad; `bad_rows` is not part of a plan's hash."""
    old = paper_plan(tmp_path, two_datasets(), bad_rows="skip")
    new = paper_plan(tmp_path, two_datasets(), bad_rows="fail")
    build = build_dir(tmp_path, old.hash)
    fill(old, build, {1: {"null": 2}, 2: {"short": 5}, 6: {"short": 1, "not_utf8": 1}})
    unit_receipt_path(build, 7).write_bytes(b"{")
    reuse_partial_build(new, build)
    units, shards = kept(new, build)
    assert {1, 2, 6} - units == {1, 6}
    assert (0, 0, 0) not in shards
    assert (0, 0, 1) in shards


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b"null"])
def test_an_unreadable_plan_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(text)
    assert read_plan(tmp_path) is None


def test_a_plan_of_an_older_nano3_is_none(tmp_path: Path) -> None:
    plan = paper_plan(tmp_path, two_datasets())
    plan.save(tmp_path / "plan.json")
    assert read_plan(tmp_path) == plan
    msgspec.structs.replace(plan, format=PLAN_FORMAT - 1).save(tmp_path / "plan.json")
    assert read_plan(tmp_path) is None
    assert not is_published(plan)
