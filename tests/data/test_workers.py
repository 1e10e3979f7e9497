"""The worker processes and the proof that goes on beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_helpers import options, run, source, texts, tree, write

from nano3.data import workers
from nano3.data.plan import load_plan
from nano3.data.run import write_plan
from nano3.data.state import State
from nano3.data.workers import PROVE, Pool
from nano3.errors import Failure


@pytest.fixture
def plan_path(tmp_path: Path, byte_bpe: Path) -> Path:
    path = write(tmp_path / "a.jsonl", texts(200))
    return write_plan([source(path)], options(tmp_path / "out", byte_bpe), "test")


def results(pool: Pool) -> list[tuple[tuple, str, object]]:
    """Everything until the pool is idle, ticks left out."""
    found = []
    while pool.busy:
        found += [row for row in pool.results() if row[1] != "tick"]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_one_thread_is_left_when_the_workers_are_forked(plan_path: Path) -> None:
    """A thread would not be in the worker, but the locks that it held would."""
    program = (
        "import os, sys; from pathlib import Path; from nano3.data.workers import load;"
        "load(Path(sys.argv[1]), True); print(len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, plan_path], env={**os.environ, **workers.ENV}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1"


def test_units_and_the_proof(plan_path: Path) -> None:
    with Pool(plan_path, 1, fast=True) as pool:
        pool.prove()
        pool.give(0, ("unit", 0))
        found = {task: (kind, value) for task, kind, value in results(pool)}
    assert found[PROVE] == ("done", "")
    kind, receipt = found[("unit", 0)]
    assert (kind, receipt.engine) == ("done", "fastokens")


def test_the_proof_names_an_engine_that_cannot_read_the_tokenizer(tmp_path: Path, unigram: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(20))
    plan_path = write_plan([source(path)], options(tmp_path / "out", unigram), "test")
    with Pool(plan_path, 1, fast=True) as pool:
        pool.prove()
        ((_, kind, why),) = results(pool)
    assert kind == "done" and str(why).startswith("fastokens cannot read this tokenizer")


def test_a_worker_that_dies_is_told(plan_path: Path) -> None:
    with Pool(plan_path, 1, fast=True) as pool:
        pool.give(0, ("unit", 0))
        pool._process.kill()
        with pytest.raises(Failure, match="a worker process died"):
            results(pool)


def test_nothing_is_joined_before_the_proof(tmp_path: Path, byte_bpe: Path, plan_path: Path) -> None:
    """Units of a run that was killed before the proof had ended are proven by the next one."""
    plan = load_plan(plan_path)
    with Pool(plan_path, 1, fast=True) as pool:
        for unit in State(plan, plan_path.parent).open_units():
            pool.give(0, ("unit", unit))
            results(pool)
    state = State(plan, plan_path.parent)
    assert state.open_units() == [] and not state.proven
    run(tmp_path / "a.jsonl", tmp_path / "out", byte_bpe)
    assert state.proven or (tmp_path / "out" / "manifest.json").exists()


def test_a_wrong_proof_throws_the_units_away(
    tmp_path: Path, byte_bpe: Path, plan_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """The workers have made units by the time the proof fails: the reference makes them anew."""
    real = Pool.results

    def wrong_proof(self: Pool, timeout: float | None = None):
        for task, kind, value in real(self, timeout):
            yield task, kind, "fastokens gives other ids than tokenizers for 'x'" if task == PROVE else value

    monkeypatch.setattr(Pool, "results", wrong_proof)
    manifest = run(tmp_path / "a.jsonl", tmp_path / "out", byte_bpe)
    assert manifest.versions["engine"] == "tokenizers"
    assert "Going on with the reference engine" in capfd.readouterr().err
    monkeypatch.undo()
    run(tmp_path / "a.jsonl", tmp_path / "right", byte_bpe)
    assert tree(tmp_path / "right") == tree(tmp_path / "out")
    with pytest.raises(Failure, match="engine=strict"), monkeypatch.context() as patch:
        patch.setattr(Pool, "results", wrong_proof)
        run(tmp_path / "a.jsonl", tmp_path / "strict", byte_bpe, engine="strict")
    receipts = (tmp_path / "strict" / ".prep").rglob("shards/*.json")
    assert [json.loads(p.read_text()) for p in receipts] == []
