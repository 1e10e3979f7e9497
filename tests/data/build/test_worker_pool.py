"""Test the worker processes and the comparison of the engines."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_helpers import options, plan_build, run, source, texts, tree, write

from nano3.data.build.build_state import VERIFIED_MARKER, BuildState
from nano3.data.build.worker_client import WORKER_ENV, WorkerServerClient, receive_plan, send_plan
from nano3.data.build.worker_pool import COMPARE_ENGINES, WorkerPool
from nano3.data.planning.plan import load_plan
from nano3.utils.errors import Failure

REAL_STARTS = True  # of the worker servers


@pytest.fixture
def plan_path(tmp_path: Path, byte_bpe: Path) -> Path:
    path = write(tmp_path / "a.jsonl", texts(200))
    return plan_build([source(path)], options(tmp_path / "out", byte_bpe), "test")


def results(pool: WorkerPool) -> list[tuple[tuple, str, object]]:
    """Return all results until the pool is idle, without ticks."""
    found = []
    while pool.busy:
        found += [row for row in pool.results() if row[1] != "tick"]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_one_thread_is_left_when_the_workers_are_forked(plan_path: Path) -> None:
    """A fork copies the locks of other threads, but not the threads."""
    program = (
        "import os, sys; from pathlib import Path; from nano3.data.build.worker_server import load_plan_engines;"
        "load_plan_engines(Path(sys.argv[1]), True); print(len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, plan_path], env={**os.environ, **WORKER_ENV}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1"


def test_a_unit_and_the_comparison(plan_path: Path) -> None:
    with WorkerPool(plan_path, 1, fast=True) as pool:
        pool.compare_engines()
        pool.submit(0, ("unit", 0))
        found = {task: (kind, value) for task, kind, value in results(pool)}
    assert found[COMPARE_ENGINES] == ("done", "")
    kind, receipt = found[("unit", 0)]
    assert (kind, receipt.engine) == ("done", "fastokens")


def test_the_comparison_reports_a_tokenizer_that_the_fast_engine_cannot_read(tmp_path: Path, unigram: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(20))
    plan_path = plan_build([source(path)], options(tmp_path / "out", unigram), "test")
    with WorkerPool(plan_path, 1, fast=True) as pool:
        pool.compare_engines()
        ((_, kind, why),) = results(pool)
    assert kind == "done" and str(why).startswith("fastokens cannot read this tokenizer")


def test_a_dead_worker_is_reported(plan_path: Path) -> None:
    with WorkerPool(plan_path, 1, fast=True) as pool:
        pool._server.process.kill()  # first, as a quick worker could finish before
        pool._server.process.wait()
        pool.submit(0, ("unit", 0))
        with pytest.raises(Failure, match="a worker process died"):
            results(pool)


def test_no_shard_is_merged_before_the_comparison(tmp_path: Path, byte_bpe: Path, plan_path: Path) -> None:
    """Units of a run killed before the comparison ended are checked by the next run."""
    plan = load_plan(plan_path)
    with WorkerPool(plan_path, 1, fast=True) as pool:
        for unit in BuildState(plan, plan_path.parent).open_units():
            pool.submit(0, ("unit", unit))
            results(pool)
    state = BuildState(plan, plan_path.parent)
    assert state.open_units() == [] and not state.verified
    run(tmp_path / "a.jsonl", tmp_path / "out", byte_bpe)
    assert state.verified or (tmp_path / "out" / "manifest.json").exists()


def test_a_mismatch_drops_the_finished_units(
    tmp_path: Path, byte_bpe: Path, plan_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Units finished before the mismatch are rebuilt with the reference engine."""
    real = WorkerPool.results

    def mismatch(self: WorkerPool, timeout: float | None = None) -> Iterator[tuple[Any, str, Any]]:
        for task, kind, value in real(self, timeout):
            yield task, kind, "fastokens gives other ids than tokenizers for 'x'" if task == COMPARE_ENGINES else value

    monkeypatch.setattr(WorkerPool, "results", mismatch)
    manifest = run(tmp_path / "a.jsonl", tmp_path / "out", byte_bpe)
    assert manifest.versions["engine"] == "tokenizers"
    assert "Continuing with the reference engine" in capfd.readouterr().err
    monkeypatch.undo()
    run(tmp_path / "a.jsonl", tmp_path / "right", byte_bpe)
    assert tree(tmp_path / "right") == tree(tmp_path / "out")
    with pytest.raises(Failure, match="engine=strict"), monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "results", mismatch)
        run(tmp_path / "a.jsonl", tmp_path / "strict", byte_bpe, engine="strict")
    receipts = (tmp_path / "strict" / ".prep").rglob("shards/*.json")
    assert [json.loads(p.read_text()) for p in receipts] == []
    assert not list((tmp_path / "strict" / ".prep").rglob(VERIFIED_MARKER)), "engines that differ are not verified"


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Leave no process behind."""
    yield
    WorkerServerClient.cancel_preload()


def compare(plan_path: Path) -> tuple[str, object]:
    """Return the result of the comparison in a new pool."""
    with WorkerPool(plan_path, 1, fast=True) as pool:
        pool.compare_engines()
        ((_, kind, why),) = results(pool)
    return kind, why


@pytest.mark.usefixtures("no_process_left")
def test_a_preloaded_tokenizer_is_used_once(plan_path: Path) -> None:
    WorkerServerClient.preload(load_plan(plan_path).tokenizer.file)
    process = WorkerServerClient._preloaded.process
    with WorkerPool(plan_path, 2, fast=True) as pool:
        assert pool._server.process is process
        pool.submit(1, ("unit", 0))
        ((_, kind, receipt),) = results(pool)
    assert (kind, receipt.engine) == ("done", "fastokens")
    with WorkerPool(plan_path, 1, fast=True) as pool:
        assert pool._server.process is not process


@pytest.mark.usefixtures("no_process_left")
def test_a_plan_without_the_fast_engine_does_not_get_it(plan_path: Path) -> None:
    WorkerServerClient.preload(load_plan(plan_path).tokenizer.file)
    with WorkerPool(plan_path, 1, fast=False) as pool:
        pool.submit(0, ("unit", 0))
        ((_, _, receipt),) = results(pool)
    assert receipt.engine == "tokenizers"


@pytest.mark.usefixtures("no_process_left")
@pytest.mark.parametrize("fault", ["other", "none", "broken"])
def test_a_wrong_guess_does_no_harm(tmp_path: Path, plan_path: Path, unigram: Path, fault: str) -> None:
    """The fast engine cannot read the unigram tokenizer, which the comparison would report."""
    (tmp_path / "broken.json").write_text("{")
    files = {"other": unigram / "tokenizer.json", "none": tmp_path / "no.json", "broken": tmp_path / "broken.json"}
    WorkerServerClient.preload(str(files[fault]))
    assert compare(plan_path) == ("done", "")


@pytest.mark.usefixtures("no_process_left")
def test_a_preloaded_tokenizer_splits_literal_special_tokens(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a</s>b" * 50] * 20)
    trees = []
    for name, begin in (("ahead", True), ("later", False)):
        if begin:
            WorkerServerClient.preload(str(byte_bpe / "tokenizer.json"))
        run(path, tmp_path / name, byte_bpe, split_special_tokens=True, check_every=1)
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1]


def test_cancel_preload_ends_the_process(plan_path: Path) -> None:
    WorkerServerClient.preload(load_plan(plan_path).tokenizer.file)
    process = WorkerServerClient._preloaded.process
    WorkerServerClient.cancel_preload()
    assert process.poll() is not None
    WorkerServerClient.cancel_preload()


def test_more_sockets_than_fit_in_one_message() -> None:
    """Linux sends at most 253 at once."""
    with contextlib.ExitStack() as stack:
        here, there = (stack.enter_context(end) for end in socket.socketpair())
        files = [stack.enter_context(Path(os.devnull).open()) for _ in range(301)]
        send_plan(here, Path("/a/plan.json"), True, [file.fileno() for file in files])
        plan, fast, fds = receive_plan(there)
        for fd in fds:
            os.close(fd)
        assert (plan, fast, len(set(fds))) == (Path("/a/plan.json"), True, 301)
        here.close()
        with pytest.raises(EOFError):
            receive_plan(there)


def test_the_loading_process_imports_little() -> None:
    """Imports delay every run, and no library may start a thread before the fork."""
    program = (
        "import sys, nano3.data.build.worker_server as server; server.import_worker();"
        "print(*sorted({'hydra', 'omegaconf', 'rich', 'pyarrow', 'torch', 'fsspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_ended_threads_are_waited_for() -> None:
    program = (
        "import os, threading; from nano3.data.tokenization.engines import wait_for_thread_exit\n"
        "for _ in range(300):\n"
        "    thread = threading.Thread(target=str); thread.start(); thread.join(); wait_for_thread_exit()\n"
        "    assert len(os.listdir('/proc/self/task')) == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
