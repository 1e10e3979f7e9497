"""sample_tokens: a number of tokens of each dataset, spread over its files, exact to within a document per shard."""

import random
from pathlib import Path

import numpy as np
import pytest
from data_helpers import documents, healthy, options, plan_build, reference, run, source, tree, write
from hypothesis import given
from hypothesis import strategies as st

from nano3.config import SourceConfig
from nano3.data.build import run as build_run
from nano3.data.build.merge import merge_shard
from nano3.data.build.run import finalize, run_task
from nano3.data.build.token_sample import select
from nano3.data.dataset.source_lookup import find_source_rows, load_build_plan
from nano3.data.planning.plan import load_plan
from nano3.utils.errors import Failure, UserError

KEYS = {"valid_fraction": 0.1, "test_fraction": 0.1, "num_shards": 4}
LONGEST = 200


def corpus(
    folder: Path, kinds: tuple[str, ...] = ("jsonl", "parquet", "jsonl.gz")
) -> tuple[list[SourceConfig], list[str]]:
    """Write two datasets of several files, with some equal texts, and return all texts of the first."""
    rng = random.Random(3)
    words = ["model", "data", "x_y", "日本", "é", "loss"]
    every = []
    for number in range(9):
        rows = [f"{number}.{i} " + " ".join(rng.choices(words, k=rng.randint(0, LONGEST // 4))) for i in range(90)]
        rows[7], rows[8] = "", rows[6]
        every += rows
        write(folder / "a" / f"{number}.{kinds[number % len(kinds)]}", rows)
    write(folder / "b.jsonl", every[:20])
    return [source(folder / "a", "a"), source(folder / "b.jsonl", "b")], every


@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_number_of_tokens(tmp_path: Path, byte_bpe: Path, dedup: str) -> None:
    sources, every = corpus(tmp_path / "in")
    wanted = 5_000
    manifest = run(sources[:1], tmp_path / "out", byte_bpe, sample_tokens=float(wanted), dedup=dedup, **KEYS)
    (entry,) = manifest.datasets
    longest = max(map(len, reference(byte_bpe, every)))
    assert abs(entry.tokens - wanted) <= len(manifest.shards) * longest
    assert entry.skipped["not_sampled"] > 0
    assert ("duplicate" in entry.skipped) == (dedup == "exact")
    assert entry.rows == entry.documents + sum(entry.skipped.values())
    assert healthy(tmp_path / "out")
    ids = {tuple(row): text for row, text in zip(reference(byte_bpe, every), every, strict=True)}
    files = [ids[tuple(row)].partition(".")[0] for row in documents(tmp_path / "out") if row]
    assert set(files) == set("012345678"), "all files contribute"
    plain = [files.count(name) for name in "0369"[:3]]  # of about equal sizes; quotas follow the sizes of files
    assert max(plain) <= 2 * min(plain)


def test_dataset_with_fewer_tokens_is_taken_completely(
    tmp_path: Path, byte_bpe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, every = corpus(tmp_path / "in")
    manifest = run(sources, tmp_path / "out", byte_bpe, sample_tokens=1e9, **KEYS)
    assert [entry.skipped for entry in manifest.datasets] == [{}, {}]
    assert sorted(documents(tmp_path / "out", dataset="a")) == sorted(reference(byte_bpe, every))
    assert "only" not in capsys.readouterr().err


def test_later_rows_that_are_shorter_than_expected(
    tmp_path: Path, byte_bpe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", ["word " * 500] * 20 + [f"{i}" for i in range(5000)])
    run(path, tmp_path / "out", byte_bpe, sample_tokens=100_000.0, **KEYS)
    shown = " ".join(capsys.readouterr().err.split())
    assert "tokens in the rows that were chosen for sample_tokens=100,000" in shown


def test_same_bytes_on_one_task_and_many(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano3.data.planning.plan.MIN_UNIT", 2000)
    sources, _ = corpus(tmp_path / "in")
    keys = {**KEYS, "sample_tokens": 5000.0, "dedup": "exact"}
    whole = run(sources[:1], tmp_path / "one", byte_bpe, **keys)
    plan = plan_build(sources[:1], options(tmp_path / "many", byte_bpe, **keys), "test")
    assert load_plan(plan).units > 5
    for task in range(3):
        run_task(plan, task, 3)
    manifest = finalize(plan)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    assert manifest.datasets[0].skipped == whole.datasets[0].skipped
    found = load_build_plan(tmp_path / "many", manifest)
    for shard in manifest.shards:
        rows = find_source_rows(found, shard.split, int(shard.prefix.rpartition("_")[2]), range(shard.documents))
        assert len(rows) == shard.documents


def test_resumed_while_shards_are_merged(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, _ = corpus(tmp_path / "in")
    keys = {**KEYS, "sample_tokens": 5000.0}
    whole = run(sources[:1], tmp_path / "whole", byte_bpe, **keys)
    real, calls = merge_shard, list[object]()

    def stop(*args: object) -> object:
        calls.append(args)
        if len(calls) > 2:
            raise Failure("killed")
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(build_run, "merge_shard", stop)
        patch.setattr(build_run, "MERGE_THREADS", 1)
        with pytest.raises(Failure, match="killed"):
            run(sources[:1], tmp_path / "out", byte_bpe, **keys)
    manifest = run(sources[:1], tmp_path / "out", byte_bpe, **keys)
    assert tree(tmp_path / "whole") == tree(tmp_path / "out")
    assert manifest.datasets == whole.datasets


def test_options(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a b"] * 50)
    for keys, message in (
        ({"sample": 3, "sample_tokens": 5.0}, "sample=3 and sample_tokens=5: give one of the two"),
        ({"sample_tokens": 0.5}, "sample_tokens=0.5: must be a whole number"),
        ({"sample_tokens": float("nan")}, "sample_tokens=nan: must be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            run(path, tmp_path / "out", byte_bpe, **keys)
    one = run(path, tmp_path / "out", byte_bpe)
    assert run(path, tmp_path / "out", byte_bpe, sample_tokens=None).plan_hash == one.plan_hash
    with pytest.raises(UserError, match=r"sample_tokens was None, now 50\.0"):
        run(path, tmp_path / "out", byte_bpe, sample_tokens=50.0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.floats(0, 1))
def test_kept_documents_have_the_budget(lengths: list[int], share: float) -> None:
    array = np.array(lengths, np.int32)
    budget = int(share * sum(lengths))
    kept = select(array, budget)
    assert abs(int(array[kept].sum()) - budget) <= max(lengths)
    assert kept[array == 0].all()
    assert select(array, sum(lengths)).all()
