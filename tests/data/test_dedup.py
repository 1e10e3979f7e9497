"""dedup=exact: all but the first document with a text are dropped, on any number of tasks, after any interruption."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from data_helpers import documents, healthy, jsonl, options, plan_build, reference, run, source, texts, tree, write

from nano3.config import SourceConfig
from nano3.data.build import duplicates
from nano3.data.build import run as build_run
from nano3.data.build.merge import merge_shard
from nano3.data.build.receipts import Fragment, UnitReceipt
from nano3.data.build.run import finalize, prepare, run_task
from nano3.data.dataset.manifest import Manifest, load_manifest
from nano3.data.dataset.source_lookup import find_source_rows, load_build_plan
from nano3.data.planning.plan import SPLITS, load_plan
from nano3.utils.errors import Failure, UserError

KEYS = {"valid_fraction": 0.2, "test_fraction": 0.1, "dedup": "exact", "num_shards": 4}


def overlapping(folder: Path) -> tuple[list[SourceConfig], list[list[str]]]:
    """Write datasets in several formats that have texts in common, and texts twice."""
    every = texts(300)
    rng = random.Random(2)
    rows = [rng.choices(every, k=700), [*every[:60], "", *every[:60]], every[100:200], every[40:300]]
    names = ["a.jsonl", "b.parquet", "c.jsonl.gz", "d.jsonl"]
    sources = [source(write(folder / name, own), name[0]) for name, own in zip(names, rows, strict=True)]
    return sources, rows


def expected(rows: list[list[str]]) -> list[list[str]]:
    """Drop all but the first of equal texts in the simplest way; documents without text stay."""
    seen: set[str] = set()
    kept: list[list[str]] = []
    for own in rows:
        kept.append([])
        for text in own:
            if not text or text not in seen:
                kept[-1].append(text)
                seen.add(text)
    return kept


def check(manifest: Manifest, folder: Path, tokenizer: Path, rows: list[list[str]]) -> None:
    """Compare prepared data with `expected`, in every split in order."""
    for entry, own, kept in zip(manifest.datasets, rows, expected(rows), strict=True):
        dropped = len(own) - len(kept)
        assert entry.skipped.get("duplicate", 0) == dropped == (entry.duplicates or 0) + (entry.shared or 0)
        assert (entry.rows, entry.documents) == (len(own), len(kept))
        ids = reference(tokenizer, kept)
        assert sorted(documents(folder, dataset=entry.name)) == sorted(ids)
        for split in SPLITS:
            found = documents(folder, split, entry.name)
            order = {tuple(row): i for i, row in enumerate(ids) if row}
            numbers = [order[tuple(row)] for row in found if row]
            assert numbers == sorted(numbers), "the first of equal texts is kept, in its order"
    assert healthy(folder)


@pytest.mark.parametrize("at_once", [1 << 24, 50])
def test_all_but_the_first_are_dropped(
    tmp_path: Path, byte_bpe: Path, at_once: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", at_once)
    sources, rows = overlapping(tmp_path)
    manifest = run(sources, tmp_path / "out", byte_bpe, **KEYS)
    check(manifest, tmp_path / "out", byte_bpe, rows)
    assert " duplicate" in capsys.readouterr().out
    assert run(sources, tmp_path / "out", byte_bpe, **KEYS) == manifest, "complete data is left untouched"


def test_only_texts_with_equal_128_bits_are_dropped(tmp_path: Path, byte_bpe: Path) -> None:
    """Some hashes have equal high halves and different low halves."""
    path = write(tmp_path / "a.jsonl", texts(50))
    plan = load_plan(plan_build([source(path)], options(tmp_path / "out", byte_bpe, **KEYS), "test"))
    hashes = np.array([[7, 1], [7, 2], [7, 1], [9, 1], [3, 5], [7, 2], [9, 2]], np.uint64)
    (tmp_path / "units").mkdir()
    written = duplicates.write_unit_hashes(tmp_path, 0, [hashes[:3], hashes[3:]], True)
    fragments = [Fragment(0, 0, "x", 7, 7, 7, 7, "", "", (0, 0), (0, 6))]
    unit = UnitReceipt(0, "", 7, 0, {}, 0, 0, 0, 0, fragments, None, *written)
    dropped = duplicates.open_dropped(plan, tmp_path, [unit])
    assert duplicates.count_duplicates(plan, tmp_path, [unit], dropped) == [(2, 0)]
    dropped.commit()
    assert list((tmp_path / "dropped").read_bytes()[-7:]) == [0, 0, 1, 0, 0, 1, 0]


def test_long_documents_are_dropped(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a", "word " * 1_700_000, "b", "word " * 1_700_000, "c"])
    manifest = run(path, tmp_path / "out", byte_bpe, **KEYS)
    assert (manifest.datasets[0].documents, manifest.datasets[0].skipped) == (4, {"duplicate": 1})
    assert healthy(tmp_path / "out")


@pytest.mark.parametrize("tasks", [3, pytest.param(64, marks=pytest.mark.slow)])
def test_same_bytes_on_one_task_and_many(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    """Also after hashes were lost or damaged."""
    monkeypatch.setattr("nano3.data.planning.plan.MIN_UNIT", 2000)
    sources, rows = overlapping(tmp_path)
    run(sources, tmp_path / "one", byte_bpe, **KEYS)
    plan = plan_build(sources, options(tmp_path / "many", byte_bpe, **KEYS), "test")
    assert load_plan(plan).units > 20
    for task in range(tasks):
        run_task(plan, task, tasks)
    hashes = sorted((plan.parent / "units").glob("*.hash"))
    hashes[0].unlink()
    hashes[5].write_bytes(b"\0" * 40)
    with pytest.raises(Failure, match=r"2 of .* units are not done"):
        finalize(plan)
    for task in range(tasks):
        run_task(plan, task, tasks)
    check(finalize(plan), tmp_path / "many", byte_bpe, rows)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


@pytest.mark.parametrize("merged", [1, 11])
def test_resumed_while_shards_are_merged(
    tmp_path: Path, byte_bpe: Path, merged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a text that becomes, or no longer is, the first with its text changes shards that were already merged."""
    sources, rows = overlapping(tmp_path)
    real, count = merge_shard, 0

    def stop(*args: object) -> object:
        nonlocal count
        count += 1
        if count > merged:
            raise Failure("killed")
        return real(*args)  # type: ignore[arg-type]

    for name in ("out", "changed"):
        with monkeypatch.context() as patch:
            patch.setattr(build_run, "merge_shard", stop)
            patch.setattr(build_run, "MERGE_THREADS", 1)
            count = 0
            with pytest.raises(Failure, match="killed"):
                run(sources, tmp_path / name, byte_bpe, **{**KEYS, "num_shards": 6})
    run(sources, tmp_path / "whole16", byte_bpe, **{**KEYS, "num_shards": 6})
    check(run(sources, tmp_path / "out", byte_bpe, **{**KEYS, "num_shards": 6}), tmp_path / "out", byte_bpe, rows)
    assert tree(tmp_path / "whole16") == tree(tmp_path / "out")
    rows[0] = [rows[3][-3], *rows[0][1:350], *rows[0][351:]]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows[0]))
    check(
        run(sources, tmp_path / "changed", byte_bpe, **{**KEYS, "num_shards": 6}), tmp_path / "changed", byte_bpe, rows
    )


def test_source_rows_are_found(tmp_path: Path, byte_bpe: Path) -> None:
    """Also after the folder was moved."""
    sources, rows = overlapping(tmp_path)
    run(sources, tmp_path / "made", byte_bpe, **KEYS)
    (tmp_path / "made").rename(tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    plan = load_build_plan(tmp_path / "out", manifest)
    for shard in [shard for shard in manifest.shards if shard.dataset in "ad"]:
        number = int(shard.prefix.rpartition("_")[2])
        for row in find_source_rows(plan, shard.split, number, range(shard.documents)).values():
            line = Path(row.path).read_bytes()[row.key :].partition(b"\n")[0]
            kept = expected(rows)["abcd".index(shard.dataset)]
            assert json.loads(line)["text"] in kept
    (tmp_path / "out" / ".prep" / manifest.plan_hash[:16] / "dropped").write_bytes(b"x")
    with pytest.raises(Failure, match="dropped: damaged"):
        find_source_rows(plan, "train", 0, [0])


def test_dataset_of_duplicates_only(tmp_path: Path, byte_bpe: Path) -> None:
    sources = [source(write(tmp_path / f"{name}.jsonl", texts(50)), name) for name in "ab"]
    with pytest.raises(UserError, match=r"dataset 'b': no tokens for training .*skipped: 49 duplicate"):
        run(sources, tmp_path / "out", byte_bpe, **KEYS)


def test_refused_without_splits_by_text(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(50))
    with pytest.raises(UserError, match="dedup=exact: needs split_by=text"):
        run(path, tmp_path / "out", byte_bpe, split_by="position", **KEYS)
    run(path, tmp_path / "out", byte_bpe, **{**KEYS, "dedup": "none", "split_by": "position"})
    with pytest.raises(UserError, match="has split_by=position"):
        run(path, tmp_path / "out", byte_bpe, **KEYS)
    run(path, tmp_path / "two", byte_bpe, **{**KEYS, "dedup": "none"})
    with pytest.raises(UserError, match="dedup was none, now exact"):
        run(path, tmp_path / "two", byte_bpe, **KEYS)
    with pytest.raises(UserError, match=r"dedup=exactly: .*exact"):
        run(path, tmp_path / "two", byte_bpe, **{**KEYS, "dedup": "exactly"})
    prepare([source(path)], options(tmp_path / "two", byte_bpe, force=True, **KEYS), "test")
