"""Runs on this machine: which process is stopped, how a run ended, damaged files."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import local_job, lock
from nano3.tools import tail
from nano3.tools._local_runs import local_state, newest_start_is_local, stop_local_run
from nano3.utils.errors import Failure, UserError
from nano3.utils.records import DamagedRecordError

HOST = socket.gethostname()


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[str]"]:
    """A process without a run. It exits with 99 on SIGTERM."""
    program = "import signal, sys; signal.signal(15, lambda *a: sys.exit(99)); print('ready', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("host", [HOST, "elsewhere"], ids=["here", "elsewhere"])
def test_a_process_without_the_lock_is_not_stopped(
    tmp_path: Path, bystander: "subprocess.Popen[str]", host: str
) -> None:
    """Process ids are reused, and differ between machines."""
    (tmp_path / lock.FILE).touch()
    with pytest.raises(Failure) as caught:
        stop_local_run(tmp_path, f"process {bystander.pid} on {host}")
    message = "there is no such process on this machine" if host == HOST else f"ssh elsewhere kill {bystander.pid}"
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert bystander.stdin is not None
    bystander.stdin.write("\n")  # it exits normally: no signal was sent
    bystander.stdin.close()
    assert bystander.wait() == 0


HOLD = """
import sys
from pathlib import Path
from launch.lock import hold_run_lock
with hold_run_lock(Path(sys.argv[1])) as held:
    held.write_holder(int(sys.argv[2]) if len(sys.argv) > 2 else None)
    print("held", flush=True)
    input()
"""


def test_the_process_with_the_lock_is_stopped(tmp_path: Path) -> None:
    """The lock may first name a parent process that no longer exists."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    holder = lock.lock_holder(tmp_path)
    assert holder == f"process {process.pid} on {HOST}"
    gone = f"process {2**22 + 1} on {HOST}, which runs as process {process.pid}"
    assert f"asked process {process.pid}" in stop_local_run(tmp_path, gone)
    assert process.wait() == -signal.SIGTERM
    assert lock.lock_holder(tmp_path) == "", "the kernel releases the locks of a dead process"


@pytest.mark.parametrize("holder", ["another process", "", "\ufffd\ufffd", "process on"], ids=repr)
def test_an_unreadable_holder_is_not_guessed(tmp_path: Path, holder: str) -> None:
    with pytest.raises(Failure, match="end it where it was started"):
        stop_local_run(tmp_path, holder)


def record_local_start(run_dir: Path, code: int | None) -> None:
    """Write the record of a start on this machine."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text("")
    start = local_job.LocalJob(1, "host", "2026-01-01T00:00:00+00:00", "", code)
    (run_dir / local_job.FILE).write_text(json.dumps(vars(start)))


def tail_of(run_dir: Path, no_follow: bool = False) -> int:
    """Return the exit code of nano3 tail."""
    return tail.run(argparse.Namespace(run=str(run_dir), lines=5, rank=0, no_follow=no_follow))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(0, 0, id="finished"),
        pytest.param(75, 75, id="stopped"),
        pytest.param(3, 3, id="failed"),
        pytest.param(139, 139, id="segmentation fault"),
        pytest.param(None, 1, id="killed before it recorded a code"),
    ],
)
def test_tail_returns_the_exit_code_of_an_ended_run(tmp_path: Path, code: int | None, expected: int) -> None:
    """`nano3 tail RUN && next` must not continue after a killed run."""
    record_local_start(tmp_path, code)
    assert tail_of(tmp_path) == expected
    assert tail_of(tmp_path, no_follow=True) == 0, "--no-follow only shows the log"
    (tmp_path / "finished.json").write_text('{"iteration": 1}')
    assert tail_of(tmp_path) == 0


PROGRESS = {
    "saved last": ('{"iteration": 10}', "stopped"),
    "not the last": ('{"iteration": 9}', "failed"),
    "empty": ("", "failed"),
    "cut off": ('{"iterat', "failed"),
    "a list": ("[10]", "failed"),
    "null": ("null", "failed"),
    "another key": ('{"step": 10}', "failed"),
    "text instead of a number": ('{"iteration": "10"}', "failed"),
    "null instead of a number": ('{"iteration": null}', "failed"),
    "zeros after a power cut": ("\0" * 16, "failed"),
}


@pytest.mark.parametrize(("progress", "name"), PROGRESS.values(), ids=PROGRESS)
def test_the_state_without_a_recorded_end_follows_from_progress(tmp_path: Path, progress: str, name: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 10, "loss": 1.0}\n')
    (tmp_path / "progress.json").write_text(progress)
    assert local_state(tmp_path).name == name
    assert local_state(tmp_path).exit_code == {"stopped": 75, "failed": 1}[name]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": 1, "colour": "red"}', "\0\0"], ids=repr
)
def test_a_damaged_start_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / local_job.FILE).write_text(content)
    for read in (local_job.newest_local_job, newest_start_is_local, local_state):
        with pytest.raises(DamagedRecordError, match=r"local\.json: damaged .*Remove it"):
            read(tmp_path)


def test_a_start_is_recorded_when_it_begins_and_ends(tmp_path: Path) -> None:
    run_dir = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError), local_job.record_local_job(run_dir, run_dir / "log"):
        started = local_job.newest_local_job(run_dir)
        raise UserError("no")
    ended = local_job.newest_local_job(run_dir)
    assert started is not None and ended is not None
    assert (started.exit_code, ended.exit_code, started.pid) == (None, 2, os.getpid())
    assert Path(ended.log) == run_dir / "log"
