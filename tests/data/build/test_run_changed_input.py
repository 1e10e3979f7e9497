"""Test input that changes between or during runs: old and new text are never mixed, valid units are kept."""

import argparse
import os
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from data_helpers import documents, healthy, options, plan_build, reference, run, source, texts, tree, write

from nano3.data.build.run import finalize, run_task
from nano3.data.dataset.manifest import load_manifest
from nano3.data.sources.discovery import WHOLE_FILE_LIMIT
from nano3.utils.errors import Failure, UserError


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make many units from little text."""
    from nano3.data.planning import plan

    monkeypatch.setattr(plan, "MIN_UNIT", 200_000)
    monkeypatch.setattr(plan, "MAX_UNIT", 200_000)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Write three files; b.jsonl is too large for a fingerprint of every byte."""
    for name, count in (("a.jsonl", 600), ("b.jsonl", 3000), ("c.parquet", 600)):
        write(tmp_path / "in" / name, texts(count, seed=count, longest=500), row_group_size=200)
    assert (
        (tmp_path / "in" / "b.jsonl").stat().st_size > WHOLE_FILE_LIMIT > (tmp_path / "in" / "a.jsonl").stat().st_size
    )
    return tmp_path / "in"


def undetected_edit(path: Path) -> None:
    """Change bytes that a large file's fingerprint does not cover; keep the size."""
    before = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    at = data.index(b"model", 400_000)
    data[at : at + 5] = b"MODEL"
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_any_edit_of_a_small_file_makes_other_data(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    run(many, tmp_path / "out", byte_bpe)
    data = bytearray((many / "a.jsonl").read_bytes())
    data[data.index(b"model", 120_000)] ^= 1
    (many / "a.jsonl").write_bytes(data)
    with pytest.raises(UserError, match="holds other data"):
        run(many, tmp_path / "out", byte_bpe)


def test_an_undetected_edit_of_a_large_file_warns(
    tmp_path: Path, many: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = run(many, tmp_path / "out", byte_bpe)
    undetected_edit(many / "b.jsonl")
    capfd.readouterr()
    assert run(many, tmp_path / "out", byte_bpe) == first
    printed = capfd.readouterr()
    assert "b.jsonl: changed on disk since the data was made" in printed.err
    assert "force=true" in printed.err
    run(many, tmp_path / "out", byte_bpe, force=True)
    run(many, tmp_path / "fresh", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    capfd.readouterr()
    run(many, tmp_path / "out", byte_bpe)
    assert capfd.readouterr().err == ""


def test_a_touched_small_file_is_unchanged(
    tmp_path: Path, many: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(many, tmp_path / "out", byte_bpe)
    os.utime(many / "a.jsonl", (1, 1))
    capfd.readouterr()
    run(many, tmp_path / "out", byte_bpe)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_build_drops_units_of_an_edited_file(
    tmp_path: Path, many: Path, byte_bpe: Path, force: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    for task in range(2):
        run_task(plan, task, 2)
    undetected_edit(many / "b.jsonl")
    run(many, tmp_path / "out", byte_bpe, force=force)
    assert "finished units are kept" in capfd.readouterr().out
    run(many, tmp_path / "fresh", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_an_edit_during_the_build_prevents_publishing(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    for task in range(2):
        run_task(plan, task, 2)
    os.utime(many / "a.jsonl", (1, 1))  # a small file is fingerprinted again: same content
    undetected_edit(many / "b.jsonl")
    with pytest.raises(Failure, match=r"b\.jsonl: was changed while the data was made") as caught:
        finalize(plan)
    assert "a.jsonl" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    run(many, tmp_path / "out", byte_bpe)
    run(many, tmp_path / "fresh", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def spoil(path: Path, row: int) -> None:
    """Make a row of a JSON lines file invalid."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[row] = b'{"text": null}\n'
    path.write_bytes(b"".join(lines))


def test_a_corrected_row_rebuilds_only_its_file(
    tmp_path: Path, many: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(many / "d.jsonl", texts(600, seed=9, longest=500))
    spoil(many / "d.jsonl", 500)
    with pytest.raises(Failure, match=r"d\.jsonl: row 501 .*null"):
        run(many, tmp_path / "out", byte_bpe)
    assert len(list((tmp_path / "out").rglob("units/*.json"))) > 5
    corrected = (many / "d.jsonl").read_bytes().replace(b'{"text": null}', b'{"text": "corrected"}')
    (many / "d.jsonl").write_bytes(corrected)
    capfd.readouterr()
    run(many, tmp_path / "out", byte_bpe)
    kept = re.search(r"(\d+) finished units are kept", capfd.readouterr().out)
    assert kept
    assert int(kept[1]) > 5
    run(many, tmp_path / "fresh", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert healthy(tmp_path / "out")
    assert list((tmp_path / "out" / ".prep").glob("*/units")) == []


def test_other_options_start_over_without_force(
    tmp_path: Path, many: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 2)
    run(many, tmp_path / "out", byte_bpe, add_eos=False)
    assert "starting over" in capfd.readouterr().out
    run(many, tmp_path / "fresh", byte_bpe, add_eos=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_added_and_removed_files_start_over(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 2)
    (many / "a.jsonl").unlink()
    write(many / "e.jsonl", texts(500, seed=4, longest=500))
    run(many, tmp_path / "out", byte_bpe)
    run(many, tmp_path / "fresh", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_data_with_skipped_rows_is_rejected_if_bad_rows_fail(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(300))
    spoil(path, 7)
    manifest = run(path, tmp_path / "out", byte_bpe, bad_rows="skip", min_doc_chars=3)
    entry = manifest.datasets[0]
    assert entry.rows == 300 == entry.documents + sum(entry.skipped.values())
    with pytest.raises(UserError, match=r"dataset 'd': .*without 1 bad rows \(1 null\).*bad_rows=skip.*force=true"):
        run(path, tmp_path / "out", byte_bpe, min_doc_chars=3)
    run(path, tmp_path / "out", byte_bpe, bad_rows="skip", min_doc_chars=3)
    short = write(tmp_path / "b.jsonl", texts(300))
    run(short, tmp_path / "short", byte_bpe, min_doc_chars=3)
    run(short, tmp_path / "short", byte_bpe, min_doc_chars=3)  # a filter is no bad row


def test_an_interrupted_build_does_not_hide_skipped_rows(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    spoil(many / "a.jsonl", 7)
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe, bad_rows="skip"), "test")
    run_task(plan, 0, 2)
    with pytest.raises(Failure, match=r"a\.jsonl: row 8 "):
        run(many, tmp_path / "out", byte_bpe)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("damage", [b"", b"{", b'{"hash": "x"}', b"\xff\xfe"])
def test_a_damaged_plan_is_ignored(tmp_path: Path, many: Path, byte_bpe: Path, damage: bytes, force: bool) -> None:
    path = many / "a.jsonl"
    plan = plan_build([source(path)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 2)
    plan.write_bytes(damage)
    with pytest.raises(Failure, match=r"plan\.json: damaged .*Run the same command again"):
        run_task(plan, 1, 2)
    run(path, tmp_path / "out", byte_bpe, force=force)
    run(path, tmp_path / "fresh", byte_bpe)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_resuming_does_not_scan_the_files_again(
    tmp_path: Path, many: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nano3.data.planning import planner

    keys = {"sample": 1500, "workers": 2}
    run(many, tmp_path / "fresh", byte_bpe, **keys)
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe, **keys), "test")
    run_task(plan, 0, 2)
    monkeypatch.setattr(planner, "sample_rows", None)
    monkeypatch.setattr(planner, "set_bounds", None)
    manifest = run([source(many, weight=3.0)], tmp_path / "out", byte_bpe, **keys)
    assert manifest.datasets[0].weight == 3.0
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_the_manifest_lists_the_input_files(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    run(many, tmp_path / "out", byte_bpe)
    entry = load_manifest(tmp_path / "out").datasets[0]
    assert entry.rows == 4200
    assert [set(msgspec.to_builtins(file)) for file in entry.inputs] == [
        {"name", "bytes", "fingerprint", "mtime_ns", "format"}
    ] * 3
    for file in entry.inputs:
        info = (many / file.name).stat()
        assert (file.bytes, file.mtime_ns) == (info.st_size, info.st_mtime_ns)
    assert [file.format for file in entry.inputs] == ["jsonl", "jsonl", "parquet"]
    sampled = run(many, tmp_path / "sample", byte_bpe, sample=30)
    assert sum(file.rows or 0 for file in sampled.datasets[0].inputs) == 30 == sampled.datasets[0].rows


def test_a_lost_tokenizer_is_copied_back(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(100))
    run(path, tmp_path / "out", byte_bpe)
    shutil.rmtree(tmp_path / "out" / "tokenizer")
    with pytest.raises(Failure, match=r"tokenizer\.json: there is no such file.*copies it back"):
        inspect(tmp_path / "out")
    run(path, tmp_path / "out", byte_bpe)
    assert healthy(tmp_path / "out")
    (tmp_path / "out" / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(Failure, match=r"tokenizer\.json: damaged"):
        inspect(tmp_path / "out")


def inspect(folder: Path) -> None:
    """Run `nano3 inspect FOLDER --doc 0`."""
    from nano3.tools import inspect_data as tool

    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    tool.run(parser.parse_args([str(folder), "--doc", "0"]))


# Splits of data whose first documents differ from the rest


def test_a_few_large_first_documents_do_not_set_split_bounds(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nano3.data.planning import splits

    monkeypatch.setattr(splits, "SCAN_BYTES", 100_000)
    write(tmp_path / "in" / "0.jsonl", [f"{i} " + "large " * 10_000 for i in range(4)])
    write(tmp_path / "in" / "1.jsonl", texts(3000))
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, valid_fraction=0.05, test_fraction=0.05)
    assert 90 < manifest.splits["valid"].documents < 220
    assert 90 < manifest.splits["test"].documents < 220


def test_a_small_dataset_of_large_documents_has_every_split(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nano3.data.planning import splits

    monkeypatch.setattr(splits, "SCAN_BYTES", 100)
    path = write(tmp_path / "a.jsonl", [f"{i} " + "large " * 1000 for i in range(3)])
    manifest = run(path, tmp_path / "out", byte_bpe)
    assert [s.documents for s in manifest.splits.values()] == [1, 1, 1]


def test_an_empty_split_warns(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from nano3.data.planning import splits

    monkeypatch.setattr(splits, "SCAN_BYTES", 100)
    for i in range(4):
        write(tmp_path / "in" / f"{i}.jsonl", texts(20, seed=i))
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, valid_fraction=1e-9, test_fraction=0.0)
    assert manifest.splits["valid"].documents == 0
    printed = capfd.readouterr().err
    assert "no document of valid among its first 20" in printed
    assert "none of its 80 documents fell into valid. Raise valid_fraction" in printed


# Mismatches of the fast engine


def test_strict_fails_on_a_build_with_a_mismatch(tmp_path: Path, byte_bpe: Path) -> None:
    from nano3.data.build.build_state import BuildState
    from nano3.data.planning.plan import load_plan

    path = write(tmp_path / "a.jsonl", texts(100))
    plan = plan_build([source(path)], options(tmp_path / "out", byte_bpe), "test")
    BuildState(load_plan(plan), plan.parent).mark_mismatch("seen in a test")
    with pytest.raises(Failure, match=r"engine=strict: .*seen in a test"):
        run(path, tmp_path / "out", byte_bpe, engine="strict")
    run(path, tmp_path / "out", byte_bpe)
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, texts(100)))


def test_the_finalizer_rebuilds_units_after_a_mismatch(tmp_path: Path, many: Path, byte_bpe: Path) -> None:
    from nano3.data.build.build_state import BuildState
    from nano3.data.planning.plan import load_plan

    run(many, tmp_path / "whole", byte_bpe)
    plan = plan_build([source(many)], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 2)
    BuildState(load_plan(plan), plan.parent).mark_mismatch("seen in another task")
    run_task(plan, 1, 2)
    assert finalize(plan).versions["engine"] == "tokenizers"
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
