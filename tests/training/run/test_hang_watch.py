"""A rank without progress is noticed, recorded and ended; the message names the rank that is behind."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracing import has_stack
from training_processes import Child, tiny_config

from nano3.config import PretrainConfig
from nano3.training.hf.backend import train
from nano3.training.run import hang_watch
from nano3.training.run.hang_watch import (
    FIRST_STEP_S,
    LEAST_FIRST_STEP_S,
    HangWatch,
    describe_hang,
    first_step_limit_s,
    ranks_behind,
    read_ranks,
)
from nano3.training.run.metrics import Metrics
from nano3.utils.errors import HANG_EXIT_CODE, Failure
from nano3.utils.files import read_json


@pytest.mark.parametrize(
    ("phase", "longest", "limit"),
    [
        pytest.param("start", 0.0, 1000.0, id="before-the-first-step"),
        pytest.param("step", 2.0, 100.0, id="short-steps"),
        pytest.param("step", 60.0, 300.0, id="long-steps"),
        pytest.param("save", 2.0, 600.0, id="saving"),
        pytest.param("validation", 60.0, 1800.0, id="validation-of-long-steps"),
        pytest.param("end", 2.0, 600.0, id="end"),
        pytest.param("end", 0.0, 600.0, id="end-without-a-step"),
    ],
)
def test_the_limit_grows_with_what_is_done(tmp_path: Path, phase: str, longest: float, limit: float) -> None:
    watch = HangWatch(tmp_path, 100.0, first_step_s=1000.0)
    watch._progress.phase, watch._progress.longest_step_s = phase, longest
    assert watch.limit_s() == limit


@pytest.mark.parametrize(
    ("phase", "longest", "words"),
    [
        pytest.param("step", 2.0, "limit: train.hang_timeout_s=100", id="the-setting"),
        pytest.param(
            "step",
            60.0,
            "300 s, which follows from train.hang_timeout_s=100, the longest step (60.0 s)",
            id="long-steps",
        ),
        pytest.param("save", 2.0, "limit: 600 s, which follows from", id="saving"),
        pytest.param(
            "end", 0.0, "600 s, which follows from train.hang_timeout_s=100 and what the rank did (end)", id="end"
        ),
        pytest.param("start", 0.0, "limit of the first steps: 1000 s", id="start"),
    ],
)
def test_the_message_names_the_limit_that_was_reached(tmp_path: Path, phase: str, longest: float, words: str) -> None:
    watch = HangWatch(tmp_path, 100.0, first_step_s=1000.0)
    watch._progress.phase, watch._progress.longest_step_s = phase, longest
    assert words in watch._limit_text()


@pytest.mark.parametrize(
    ("slowest", "limit"),
    [(0.0, 3600.0), (0.3, 600.0), (38.0, 600.0), (60.0, 600.0), (154.4, 1544.0), (400.0, 3600.0), (5000.0, 3600.0)],
)
def test_the_limit_before_the_first_step(slowest: float, limit: float) -> None:
    """An hour, where nothing was measured; at a restart ten times what was, from ten minutes to an hour."""
    assert first_step_limit_s(slowest) == pytest.approx(limit)


@given(st.floats(0.001, 1e6), st.floats(0.001, 1e6))
def test_a_slower_start_never_gets_a_shorter_limit(one: float, other: float) -> None:
    limits = [first_step_limit_s(slowest) for slowest in sorted([one, other])]
    assert LEAST_FIRST_STEP_S <= limits[0] <= limits[1] <= FIRST_STEP_S


RESTART = """
import sys, time
from pathlib import Path
from nano3.training.run import hang_watch

def data_that_never_opens():
    time.sleep(30)

hang_watch.FIRST_STEP_S, hang_watch.LEAST_FIRST_STEP_S = 1.5, 0.5
with hang_watch.watch_for_hangs(Path(sys.argv[1]), 0.2):
    data_that_never_opens()
"""


@pytest.mark.parametrize(
    ("measured", "limit"),
    [([], 1.5), ([9.0], 1.5), ([9.0, 0.01], 0.5), ([0.01, 0.05, 0.13, 0.02], 1.3), ([0.01, 9.0], 1.5)],
)
def test_a_restart_that_hangs_before_its_first_step(tmp_path: Path, measured: list[float], limit: float) -> None:
    """The resumes before it were measured, but not the first start; the message says what raises the limit."""
    lines: list[dict] = []
    for number, seconds in enumerate(measured):
        lines.append({"iteration": number, "start": number + 1})
        stages = {"startup/checks": seconds / 4, "startup/first_step": seconds * 3 / 4}
        lines.append({"iteration": number + 1, "loss": 1.0, **stages})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run([sys.executable, "-c", RESTART, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == HANG_EXIT_CODE, done.stderr
    assert "in iteration 1 (start)" in done.stderr and "in data_that_never_opens" in done.stderr
    assert f"limit of the first steps: {limit:.0f} s (an hour, or ten times the slowest resume so far" in done.stderr
    assert "or train.hang_timeout_s=0.2 if that is more" in done.stderr
    assert limit <= read_json(tmp_path / "hang/rank_0.json")["waited_s"] + 0.1


ALL_AT_ONCE = """#!/bin/sh
touch "{folder}/$4"
while [ $(ls "{folder}" | wc -l) -lt 7 ]; do sleep 0.1; done
printf 'a command line\\nPython v3: the stack of %s\\n' "$4"
"""


def test_the_stacks_of_many_silent_ranks_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take ten seconds, and the timer of faulthandler ends this rank soon, with a code that is no hang's."""
    started, program = tmp_path / "started", tmp_path / "py-spy"
    started.mkdir()
    program.write_text(ALL_AT_ONCE.format(folder=started))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    watch = HangWatch(tmp_path, 100.0)
    watch.folder.mkdir()
    records: dict[int, dict] = {n: {"host": os.uname().nodename, "pid": 100 + n} for n in range(8)}
    records[0]["stack"] = ["here"]
    watch.world = 8
    watch._read_silent(records)
    texts = {n: (watch.folder / f"rank_{n}.txt").read_text() for n in range(1, 8)}
    assert all(texts[n].endswith(f"Python v3: the stack of {100 + n}\n") for n in texts)


def test_the_longest_step_is_measured_between_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(hang_watch.time, "monotonic", lambda: now[0])
    watch = HangWatch(tmp_path, 100.0)
    for iteration, phase in [(1, "step"), (1, "save"), (1, "step"), (2, "step")]:
        watch.progress(iteration, phase)
        now[0] += 50.0 if phase == "save" else 10.0
    assert watch._progress.longest_step_s == 10.0


def test_the_first_step_compiles_and_counts_until_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, limits = [0.0], []
    monkeypatch.setattr(hang_watch.time, "monotonic", lambda: now[0])
    watch = HangWatch(tmp_path, 10.0, first_step_s=1000.0)
    watch.progress(0)
    for iteration, seconds in enumerate([50.0, 0.5, 8.0, 0.5], start=1):
        limits.append(watch.limit_s())
        now[0] += seconds
        watch.progress(iteration)
    assert [*limits, watch.limit_s()] == [1000.0, 250.0, 10.0, 40.0, 40.0]


def phase_while_closing(config: PretrainConfig, data: Path, run_dir: Path, fails: bool) -> tuple[str, int]:
    """Train, and return the phase and the iterations in which the outputs were closed."""
    seen = []

    def close(self: Metrics, exit_code: int = 0) -> None:
        assert hang_watch._current and exit_code == fails
        seen.append((hang_watch._current._progress.phase, hang_watch._current._progress.iteration))

    def on_save(iteration: int, folder: Path) -> None:
        if fails and iteration == 2:
            raise Failure("boom")

    Metrics.close = close  # type: ignore[method-assign]
    with hang_watch.watch_for_hangs(run_dir, 300.0), contextlib.suppress(Failure):
        train(config, data, run_dir, on_save)
    return seen[0]


@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_closing_the_outputs_is_the_end_and_no_step(data: Path, tmp_path: Path, fails: bool) -> None:
    """A W&B server that hangs holds it for 20 s, which a short limit of steps must not count as a hang."""
    config = tiny_config(**{"checkpoint.save_interval": 2, "train.eval_interval": 0})
    child = Child(phase_while_closing, (config, data, tmp_path, fails), tmp_path / "log.txt")
    assert child.result() == ("end", 2 if fails else 12), child.output()


def phases(config: PretrainConfig, data: Path, run_dir: Path) -> list[str]:
    """Train, and return the phases that the watch sees."""
    seen = []

    def progress(self: HangWatch, iteration: int, phase: str = "step") -> None:
        seen.append(phase)

    HangWatch.progress = progress  # type: ignore[method-assign]
    with hang_watch.watch_for_hangs(run_dir, 300.0):
        train(config, data, run_dir)
    return seen


def test_each_batch_of_a_validation_is_progress(data: Path, tmp_path: Path) -> None:
    """A validation may take far longer than a step: only one of its batches may not."""
    changes = {"train.train_iters": 2, "train.eval_interval": 2, "train.eval_iters": 6, "checkpoint.save_interval": 2}
    changes |= {"scheduler.lr_warmup_iters": 1, "scheduler.lr_wsd_decay_iters": 1}
    child = Child(phases, (tiny_config(**changes), data, tmp_path), tmp_path / "log.txt")
    assert child.result().count("validation") == 2 * 3 * 2 * 2  # validations, datasets, batches, micro batches


SCRIPT = """
import sys, time
from pathlib import Path
from nano3.training.run import hang_watch

def data_loader_that_never_returns():
    time.sleep(60)

def hold_the_lock():
    import ctypes
    ctypes.PyDLL(None).sleep(60)  # PyDLL keeps Python's lock

hang_watch.NATIVE_MARGIN_S = 0.5
limit, steps = (2.0, 50) if sys.argv[2] == "works" else (0.4, 5)  # a busy machine may stop a process for a second
with hang_watch.HangWatch(Path(sys.argv[1]), limit, first_step_s=limit) as watch:
    for iteration in range(1, steps + 1):
        time.sleep(0.05)
        watch.progress(iteration)
    if sys.argv[2] == "works":
        sys.exit(0)
    if sys.argv[2] == "unwritable":
        (Path(sys.argv[1]) / "hang/rank_0.json").unlink()
        (Path(sys.argv[1]) / "hang/rank_0.json").mkdir()
    (hold_the_lock if sys.argv[2] == "native" else data_loader_that_never_returns)()
"""


def run_script(folder: Path, kind: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", SCRIPT, str(folder), kind], capture_output=True, text=True, timeout=30)


def test_a_hanging_rank_is_recorded_and_ended(tmp_path: Path) -> None:
    done = run_script(tmp_path, "hangs")
    assert done.returncode == HANG_EXIT_CODE
    assert "error: hang: no progress for" in done.stderr
    assert "in iteration 6 (step). It is in" in done.stderr
    assert "; limit: train.hang_timeout_s=0.4." in done.stderr
    assert "data_loader_that_never_returns" in done.stderr
    assert "data_loader_that_never_returns" in (tmp_path / "hang/rank_0.txt").read_text()
    recorded = read_json(tmp_path / "hang/rank_0.json")
    assert recorded["iteration"] == 5 and recorded["behind"] == [recorded["node"]]


def test_a_hang_that_cannot_be_recorded_ends_the_rank_too(tmp_path: Path) -> None:
    done = run_script(tmp_path, "unwritable")
    assert done.returncode == HANG_EXIT_CODE
    assert "error: hang: no progress on rank 0, which cannot be recorded: " in done.stderr


def test_a_rank_in_native_code_that_keeps_pythons_lock_is_ended_too(tmp_path: Path) -> None:
    done = run_script(tmp_path, "native")
    assert done.returncode == 1, done.stderr
    assert "hold_the_lock" in (tmp_path / "hang/rank_0.txt").read_text()


def test_a_working_rank_is_left_alone(tmp_path: Path) -> None:
    done = run_script(tmp_path, "works")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "hang/rank_0.txt").read_text() == ""


TWO_RANKS = """
import os, signal, sys, time
from pathlib import Path
from nano3.training.run import hang_watch

def stopped_in_a_driver():
    os.kill(os.getpid(), signal.SIGSTOP)

def wait_for_the_other():
    time.sleep(60)

with hang_watch.HangWatch(Path(sys.argv[1]), 0.4, first_step_s=0.4, gather_s=0.5):
    stopped_in_a_driver() if os.environ["RANK"] == "1" else wait_for_the_other()
"""


def test_a_stopped_rank_has_a_stack_of_its_own(tmp_path: Path) -> None:
    """It cannot write it; the rank beside it reads it from outside. A third never started."""
    command = [sys.executable, "-c", TWO_RANKS, str(tmp_path)]
    env = {**os.environ, "WORLD_SIZE": "3"}
    with subprocess.Popen(command, env={**env, "RANK": "1"}) as stopped:
        assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
        other = subprocess.run(command, env={**env, "RANK": "0"}, capture_output=True, text=True, timeout=60)
        stopped.kill()
    assert other.returncode == HANG_EXIT_CODE, other.stderr
    record = (tmp_path / "hang/rank_1.txt").read_text()
    assert f"rank 1 on {os.uname().nodename} does not answer" in record
    assert has_stack(record, "stopped_in_a_driver")
    assert "wait_for_the_other" in (tmp_path / "hang/rank_0.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "hang").glob("*.txt")) == ["rank_0.txt", "rank_1.txt"]


COLLECTIVE = "/lib/torch/distributed/distributed_c10d.py:3007 in all_reduce"


def record(rank: int, iteration: int = 41, *stack: str, host: str = "n1") -> dict[str, Any]:
    stack = stack or ("loop.py:9 in step", "all_reduce.py:1 in all_reduce")
    own = {"rank": rank, "host": host, "pid": 1, "time": 0.0}
    return own | {"waited_s": 300.2, "iteration": iteration, "phase": "step", "stack": list(stack)}


@pytest.mark.parametrize(
    ("records", "world", "words"),
    [
        pytest.param([record(0), record(1)], 2, "All ranks are in all_reduce.py:1 in all_reduce.", id="all-alike"),
        pytest.param(
            [record(0), record(1), record(2, 41, "loop.py:9 in step", "data.py:3 in read")],
            3,
            "rank 2 on n1 is behind, in data.py:3 in read.",
            id="one-elsewhere",
        ),
        pytest.param([record(0), record(1, 40)], 2, "iteration 41 (step). rank 1 on n1 is behind", id="one-earlier"),
        pytest.param(
            [record(0), record(1, 41, "data.py:3 in read")], 2, "rank 0 is in all_reduce.py:1", id="two-different"
        ),
        pytest.param(
            [record(0, 41, "loop.py:9 in step", COLLECTIVE), record(1, 41, "data.py:3 in read")],
            2,
            "rank 1 on n1 is behind, in data.py:3 in read.",
            id="one-of-two-in-a-collective",
        ),
        pytest.param([record(0)], 2, "rank 1 never started.", id="one-missing"),
        pytest.param(
            [record(0), {"rank": 1, "host": "elsewhere", "pid": 5, "time": 0.0}],
            2,
            "rank 1 on elsewhere (process 5) is behind and does not answer.",
            id="another-machine",
        ),
    ],
)
def test_the_message_names_the_rank_that_is_behind(records: list[dict[str, Any]], world: int, words: str) -> None:
    text = describe_hang({r["rank"]: r for r in records}, world)
    assert text.startswith("no progress for 300 s in iteration")
    assert words in text


@pytest.mark.parametrize(
    ("records", "behind"),
    [
        ([record(0), record(1)], []),
        ([record(0), record(1), record(2, 41, "data.py:3 in read")], [2]),
        ([record(0), record(1, 40)], [1]),
        ([record(0), record(1, 41, "data.py:3 in read")], []),
        ([record(0), record(2)], [1]),
        ([record(0, 41, COLLECTIVE), record(1, 41, "data.py:3 in read")], [1]),
        ([record(0, 41, COLLECTIVE), record(1, 41, COLLECTIVE)], []),
    ],
    ids=[
        "all alike",
        "one elsewhere",
        "one earlier",
        "two different",
        "one silent",
        "one of two in a collective",
        "both in a collective",
    ],
)
def test_the_ranks_behind(records: list[dict[str, Any]], behind: list[int]) -> None:
    assert ranks_behind({r["rank"]: r for r in records}, max(r["rank"] for r in records) + 1) == behind


def test_a_stopped_process_is_called_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(19)
        time.sleep(0.1)
        silent = {"rank": 1, "host": os.uname().nodename, "pid": process.pid, "time": 0.0}
        assert "it is stopped (SIGSTOP or a debugger)" in describe_hang({0: record(0), 1: silent}, 2)
        process.kill()
    assert "the process is gone" in describe_hang({0: record(0), 1: silent}, 2)


def test_stacks_of_an_earlier_start_are_left_out(tmp_path: Path) -> None:
    from nano3.utils.files import write_json

    write_json(tmp_path / "rank_1.json", record(1))
    assert "stack" in read_ranks(tmp_path, since=-1.0)[1]
    assert "stack" not in read_ranks(tmp_path, since=1.0)[1]
