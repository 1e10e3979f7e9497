"""The tools on runs of this machine: whose process is stopped, how a run ended, and what its files may look like."""

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
from nano3.tools import _folders, _local, inspect_data, tail, verify
from nano3.utils.errors import Failure, UserError

HOST = socket.gethostname()


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[str]"]:
    """A process that has nothing to do with any run, and says so when it is asked to end."""
    program = "import signal, sys; signal.signal(15, lambda *a: sys.exit(99)); print('ready', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("host", [HOST, "elsewhere"], ids=["here", "elsewhere"])
def test_a_process_that_does_not_hold_the_run_is_not_stopped(
    tmp_path: Path, bystander: "subprocess.Popen[str]", host: str
) -> None:
    """Numbers of processes are used again, and mean others on other machines."""
    (tmp_path / lock.FILE).touch()
    with pytest.raises(Failure) as caught:
        _local.stop(tmp_path, f"process {bystander.pid} on {host}")
    told = "cannot be found here" if host == HOST else f"ssh elsewhere kill {bystander.pid}"
    assert told in str(caught.value) and str(tmp_path) in str(caught.value)
    assert bystander.stdin is not None
    bystander.stdin.write("\n")  # it ends by itself: no signal is on its way
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


def test_the_process_that_holds_the_run_is_stopped(tmp_path: Path) -> None:
    """Also when the one that started it, which comes first in the lock, is gone: its number is taken for nobody's."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    holder = lock.lock_holder(tmp_path)
    assert holder == f"process {process.pid} on {HOST}"
    gone = f"process {2**22 + 1} on {HOST}, which runs as process {process.pid}"
    assert f"asked process {process.pid}" in _local.stop(tmp_path, gone)
    assert process.wait() == -signal.SIGTERM
    assert lock.lock_holder(tmp_path) == "", "the kernel lets go of what a dead process held"


@pytest.mark.parametrize("holder", ["another process", "", "\ufffd\ufffd", "process on"], ids=repr)
def test_a_holder_that_cannot_be_read_is_not_guessed(tmp_path: Path, holder: str) -> None:
    with pytest.raises(Failure, match="end it where it was started"):
        _local.stop(tmp_path, holder)


def note(run_dir: Path, code: int | None) -> None:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text("")
    start = local_job.LocalJob(1, "host", "2026-01-01T00:00:00+00:00", "", code)
    (run_dir / local_job.FILE).write_text(json.dumps(vars(start)))


def tail_of(run_dir: Path, no_follow: bool = False) -> int:
    return tail.run(argparse.Namespace(run=str(run_dir), lines=5, rank=0, no_follow=no_follow))


@pytest.mark.parametrize(
    ("code", "end"),
    [
        pytest.param(0, 0, id="finished"),
        pytest.param(75, 75, id="stopped"),
        pytest.param(3, 3, id="failed"),
        pytest.param(139, 139, id="segmentation fault"),
        pytest.param(None, 1, id="killed with the one that would have noted it"),
    ],
)
def test_following_a_run_that_has_ended_gives_its_end(tmp_path: Path, code: int | None, end: int) -> None:
    """`nano3 tail RUN && next`: what was killed has not succeeded."""
    note(tmp_path, code)
    assert tail_of(tmp_path) == end
    assert tail_of(tmp_path, no_follow=True) == 0, "it was only looked at"
    (tmp_path / "finished.json").write_text("{}")
    assert tail_of(tmp_path) == 0


PROGRESS = {
    "saved all": ('{"iteration": 10}', "stopped"),
    "not the last": ('{"iteration": 9}', "failed"),
    "empty": ("", "failed"),
    "cut off": ('{"iterat', "failed"),
    "a list": ("[10]", "failed"),
    "null": ("null", "failed"),
    "another key": ('{"step": 10}', "failed"),
    "a text for a number": ('{"iteration": "10"}', "failed"),
    "nothing for a number": ('{"iteration": null}', "failed"),
    "zeros after a power cut": ("\0" * 16, "failed"),
}


@pytest.mark.parametrize(("progress", "word"), PROGRESS.values(), ids=PROGRESS)
def test_a_run_without_a_noted_end_is_judged_by_what_it_saved(tmp_path: Path, progress: str, word: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 10, "loss": 1.0}\n')
    (tmp_path / "progress.json").write_text(progress)
    assert _local.state_of(tmp_path).word == word
    assert _local.state_of(tmp_path).exit_code == {"stopped": 75, "failed": 1}[word]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": 1, "colour": "red"}', "\0\0"], ids=repr
)
def test_a_damaged_start_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / local_job.FILE).write_text(content)
    assert local_job.newest_local_job(tmp_path) is None
    assert _local.is_newest(tmp_path) and _local.state_of(tmp_path).word == "failed"


def test_a_start_is_noted_while_it_runs_and_when_it_ends(tmp_path: Path) -> None:
    run_dir = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError), local_job.record_local_job(run_dir, run_dir / "log"):
        begun = local_job.newest_local_job(run_dir)
        raise UserError("no")
    ended = local_job.newest_local_job(run_dir)
    assert begun is not None and ended is not None
    assert (begun.exit_code, ended.exit_code, begun.pid) == (None, 2, os.getpid())
    assert Path(ended.log) == run_dir / "log"


def test_runs_are_looked_for_where_runs_are(tmp_path: Path) -> None:
    """Not in what a run itself has written, and not round in circles."""
    for place in ("a", "a/checkpoints/iter_1", "a/logs", "sweep/lr=1", "sweep/slurm", "b/deep/er", "wandb"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.yaml").touch()
    (tmp_path / "sweep" / "round").symlink_to(tmp_path)
    found = {str(place.relative_to(tmp_path)) for place in _folders.run_folders(tmp_path)}
    assert found == {"a", "sweep/lr=1", "b/deep/er"}
    assert list(_folders.run_folders(tmp_path / "gone")) == []


def test_a_run_is_no_file_and_a_name_means_the_nearer_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").touch()
    with pytest.raises(UserError, match=r"no run 'notes', neither here nor under output/nano3/runs\. `nano3 jobs`"):
        _folders.run_folder("notes")
    (tmp_path / _folders.RUNS / "mine").mkdir(parents=True)
    assert _folders.run_folder("mine") == _folders.RUNS / "mine"
    (tmp_path / "mine").mkdir()
    assert _folders.run_folder("mine") == Path("mine")


@pytest.mark.parametrize("tool", [inspect_data, verify], ids=["inspect", "verify"])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        pytest.param("nothing", "no manifest.json; it is not a folder that nano3.data_prep made", id="empty"),
        pytest.param(".prep", "no manifest.json; its preparation is not finished: run it again", id="unfinished"),
        pytest.param("manifest.json", "cannot be read: ", id="a folder for a file"),
    ],
)
def test_a_folder_that_holds_no_data_is_told(tmp_path: Path, tool, make: str, told: str) -> None:
    (tmp_path / make).mkdir()
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    with pytest.raises((UserError, Failure)) as caught:
        tool.run(parser.parse_args([str(tmp_path)]))
    assert str(tmp_path) in str(caught.value) and told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "there is no such file. Run the same nano3.data_prep again", id="gone"),
        pytest.param("{", "damaged (", id="cut off"),
        pytest.param("", "damaged (", id="empty"),
        pytest.param("[]", "damaged (", id="something else"),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(Failure) as caught:
        inspect_data.load_tokenizer(tmp_path / "tokenizer.json")
    assert f"{tmp_path}/tokenizer.json: {told}" in str(caught.value) and "copies it back" in str(caught.value)


@pytest.mark.parametrize(
    ("tool", "words", "told"),
    [
        pytest.param(inspect_data, ["d", "--doc", "-1"], "-1 is too small: 0 at least", id="document"),
        pytest.param(inspect_data, ["d", "--count", "0"], "0 is too small: 1 at least", id="count"),
        pytest.param(inspect_data, ["d", "--chars", "many"], "'many' is not a whole number", id="characters"),
        pytest.param(verify, ["d", "--threads", "1.5"], "'1.5' is not a whole number", id="threads"),
        pytest.param(tail, ["r", "-n", "-3"], "-3 is too small: 0 at least", id="lines"),
        pytest.param(tail, ["r", "--rank", ""], "'' is not a whole number", id="rank"),
    ],
)
def test_numbers_are_checked_where_they_are_typed(
    capsys: pytest.CaptureFixture[str], tool, words: list[str], told: str
) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    assert stopped.value.code == 2 and told in capsys.readouterr().err
