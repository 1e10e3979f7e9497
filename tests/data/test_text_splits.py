"""Splits by text: equal texts share a split, duplicates are counted, and older data keeps its rule."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from data_helpers import documents, healthy, jsonl, options, plan_build, reference, run, source, texts, tree, write

from nano3.config import SourceConfig
from nano3.data.build import duplicates
from nano3.data.build.run import finalize, prepare, run_task
from nano3.data.dataset.manifest import Manifest, load_manifest
from nano3.data.dataset.source_lookup import find_source_rows, load_build_plan
from nano3.data.planning import planner
from nano3.data.planning.plan import SPLITS, load_plan
from nano3.utils.errors import UserError

SHARES = {"valid_fraction": 0.2, "test_fraction": 0.1}


def split_of_texts(folder: Path, tokenizer: Path, wanted: list[str]) -> dict[str, set[str]]:
    """Return the splits in which each text occurs."""
    ids = {tuple(row): text for row, text in zip(reference(tokenizer, wanted), wanted, strict=True)}
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in documents(folder, split):
            found.setdefault(ids[tuple(row)], set()).add(split)
    return found


def overlapping(folder: Path) -> tuple[list[SourceConfig], list[list[str]]]:
    """Write datasets of every size and several formats that have texts in common, and texts twice."""
    every = [text for text in texts(400) if text]
    rng = random.Random(1)
    rows = [rng.choices(every, k=1000), every[:60] * 2, every[30:50], every[5:8], every[5:6] * 4, every[40:300]]
    names = ["a.jsonl", "b.parquet", "c.jsonl.gz", "d.json", "e.jsonl", "f.arrow"]
    sources = [source(write(folder / name, r), name[0]) for name, r in zip(names, rows, strict=True)]
    return sources, rows


def all_of(rows: list[list[str]]) -> list[str]:
    return [text for own in rows for text in own]


@pytest.mark.parametrize("keys", [SHARES, {}, {"valid_fraction": 0.01, "test_fraction": 0.0}], ids=str)
def test_equal_texts_share_a_split(tmp_path: Path, byte_bpe: Path, keys: dict[str, float]) -> None:
    """Also those of datasets so small that texts are moved; every dataset with enough texts has every split."""
    sources, rows = overlapping(tmp_path)
    manifest = run(sources, tmp_path / "out", byte_bpe, num_shards=40, **keys)
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, all_of(rows)))
    found = split_of_texts(tmp_path / "out", byte_bpe, all_of(rows))
    assert {len(splits) for splits in found.values()} == {1}
    for entry, own in zip(manifest.datasets, rows, strict=True):
        filled = [split for split in SPLITS if entry.splits[split].documents]
        requested = 2 if keys.get("test_fraction") == 0.0 else 3
        assert len(filled) == min(requested, len(set(own))), entry.name
    assert healthy(tmp_path / "out")


def test_split_of_a_text_does_not_depend_on_where_it_is(tmp_path: Path, byte_bpe: Path) -> None:
    """Nor on the number of shards, format, and blend, in datasets that are large enough."""
    wanted = [text for text in texts(600) if text]
    found = []
    for number, (name, shards) in enumerate([("a.jsonl", 3), ("b/c.parquet", 30), ("d.json", 9)]):
        write(tmp_path / name, wanted[::-1] if number else wanted)
        out = tmp_path / f"out{number}"
        run([source(tmp_path / name, f"n{number}")], out, byte_bpe, num_shards=shards, **SHARES)
        found.append(split_of_texts(out, byte_bpe, wanted))
    assert found[0] == found[1] == found[2]


def test_dataset_of_one_text_is_for_training(
    tmp_path: Path, byte_bpe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run(write(tmp_path / "a.jsonl", ["again"] * 50), tmp_path / "out", byte_bpe, **SHARES)
    assert [manifest.splits[split].documents for split in SPLITS] == [50, 0, 0]
    shown = " ".join(capsys.readouterr().err.split())
    assert "50 document(s) of 1 different text(s), too few for a valid split. Equal texts are in the same" in shown
    assert "none of its 50 documents" not in shown


def counts(manifest: Manifest) -> list[tuple[int | None, int | None]]:
    return [(entry.duplicates, entry.shared) for entry in manifest.datasets]


def expected_counts(rows: list[list[str]]) -> list[tuple[int, int]]:
    """Count duplicates in the simplest way."""
    seen: set[str] = set()
    found = []
    for own in rows:
        different = set(own) - {""}
        found.append((sum(text != "" for text in own) - len(different), len(different & seen)))
        seen |= different
    return found


@pytest.mark.parametrize("at_once", [1 << 24, 100])
def test_duplicates_are_counted(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: int
) -> None:
    """With all hashes in memory, or a few at a time. Empty documents are not duplicates."""
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", at_once)
    sources, rows = overlapping(tmp_path)
    rows.append(["", "", "é" * 9_000_000, "é" * 9_000_000, rows[1][0]])
    sources.append(source(write(tmp_path / "g.jsonl", rows[-1]), "g"))
    manifest = run(sources, tmp_path / "out", byte_bpe, **SHARES)
    assert counts(manifest) == expected_counts(rows)
    assert counts(load_manifest(tmp_path / "out")) == expected_counts(rows)
    assert "duplicates" in capsys.readouterr().out


def test_no_duplicates_are_not_shown(tmp_path: Path, byte_bpe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run(write(tmp_path / "a.jsonl", ["a", "b", "c", ""]), tmp_path / "out", byte_bpe)
    assert counts(manifest) == [(0, 0)]
    assert "duplicates" not in capsys.readouterr().out


def test_same_bytes_and_counts_with_one_task_and_many(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after hashes of texts were lost or damaged."""
    monkeypatch.setattr("nano3.data.planning.plan.MIN_UNIT", 2000)
    sources, rows = overlapping(tmp_path)
    run(sources, tmp_path / "one", byte_bpe, **SHARES)
    plan = plan_build(sources, options(tmp_path / "many", byte_bpe, **SHARES), "test")
    assert load_plan(plan).units > 20
    for task in range(8):
        run_task(plan, task, 8)
    hashes = sorted((plan.parent / "units").glob("*.hash"))
    hashes[0].unlink()
    hashes[5].write_bytes(b"\0" * 16)
    for task in range(8):
        run_task(plan, task, 8)
    manifest = finalize(plan)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    assert counts(manifest) == expected_counts(rows)


def test_source_rows_are_found(tmp_path: Path, byte_bpe: Path) -> None:
    """With texts that were moved to another split than their hash says."""
    rows = [["one", "two", "three", "four"], ["two", "five", "six"]]
    sources = [source(write(tmp_path / f"{i}.json", r), f"n{i}") for i, r in enumerate(rows)]
    manifest = run(sources, tmp_path / "out", byte_bpe, valid_fraction=1e-9, test_fraction=1e-9)
    plan = load_build_plan(tmp_path / "out", manifest)
    assert plan.moved
    seen = []
    for shard in manifest.shards:
        number = int(shard.prefix.rpartition("_")[2])
        for row in find_source_rows(plan, shard.split, number, range(shard.documents)).values():
            seen.append(json.loads(Path(row.path).read_text())[row.key]["text"])
    assert reference(byte_bpe, seen) == documents(tmp_path / "out")
    assert sorted(seen) == sorted(all_of(rows))


def test_changed_small_dataset_moves_its_texts_in_finished_units(tmp_path: Path, byte_bpe: Path) -> None:
    """An interrupted build is resumed after another text is to be moved: the result is that of a build from scratch."""
    big = [text for text in texts(300) if text]
    sources = [source(write(tmp_path / "a.jsonl", big), "a"), source(write(tmp_path / "b.jsonl", big[:3]), "b")]
    keys = {"valid_fraction": 0.01, "test_fraction": 0.01}
    plan = plan_build(sources, options(tmp_path / "out", byte_bpe, **keys), "test")
    before = load_plan(plan).moved
    run_task(plan, 0, 1)
    (tmp_path / "b.jsonl").write_bytes(jsonl(big[200:203]))
    prepare(sources, options(tmp_path / "out", byte_bpe, **keys), "test")
    after = load_build_plan(tmp_path / "out", load_manifest(tmp_path / "out")).moved
    assert before and after and before != after
    run(sources, tmp_path / "scratch", byte_bpe, **keys)
    assert tree(tmp_path / "out") == tree(tmp_path / "scratch")


# Older data and split_by


def forget_rule(folder: Path) -> None:
    """Make data or a build look like one of a version without split_by."""
    for path in [*folder.glob("manifest.json"), *folder.glob(".prep/*/plan.json")]:
        content = json.loads(path.read_text())
        del content["options"]["split_by"]
        content.pop("moved", None)
        if path.name == "manifest.json":
            del content["checksum"], content["tokenizer"]["files"]
        path.write_text(json.dumps(content))


def test_data_of_older_versions_is_complete(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", texts(50))
    old = run(path, tmp_path / "out", byte_bpe, split_by="position", **SHARES)
    assert counts(old) == [(None, None)]
    forget_rule(tmp_path / "out")
    before = tree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(planner, "make_plan", None)
        for keys in ({}, {"split_by": "position"}):
            assert run(path, tmp_path / "out", byte_bpe, **SHARES, **keys).plan_hash == old.plan_hash
    assert tree(tmp_path / "out") == before
    with pytest.raises(UserError, match="split_by was position, now text"):
        run(path, tmp_path / "out", byte_bpe, split_by="text", **SHARES)
    new = run(path, tmp_path / "out", byte_bpe, force=True, **SHARES)
    assert new.plan_hash != old.plan_hash and new.options["split_by"] == "text"
    assert run(path, tmp_path / "out", byte_bpe, **SHARES).plan_hash == new.plan_hash
    with pytest.raises(UserError, match="split_by was text, now position"):
        run(path, tmp_path / "out", byte_bpe, split_by="position", **SHARES)


@pytest.mark.parametrize("force", [False, True])
def test_build_of_an_older_version_is_resumed(tmp_path: Path, byte_bpe: Path, force: bool) -> None:
    path = write(tmp_path / "a.jsonl", texts(50))
    run(path, tmp_path / "whole", byte_bpe, split_by="position", **SHARES)
    request = options(tmp_path / "out", byte_bpe, split_by="position", **SHARES)
    plan = plan_build([source(path)], request, "test")
    run_task(plan, 0, 1)
    forget_rule(tmp_path / "out")
    assert load_plan(plan).options.split_by == "position"
    made = {path.name: path.stat().st_mtime_ns for path in (plan.parent / "train").iterdir()}
    manifest = prepare([source(path)], replace(request, split_by="auto", force=force), "test")
    assert manifest.options["split_by"] == "position"
    assert tree(tmp_path / "whole") == tree(tmp_path / "out")
    assert made == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").iterdir()}
