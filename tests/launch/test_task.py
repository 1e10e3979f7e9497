"""launch.task: signals, exit codes and markers of one Slurm task."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch_helpers import eventually
from tracing import has_stack

from launch import task as task_module
from launch.task import RankProcess, RankTask, read_task, rendezvous_port
from nano3.utils.files import write_json


@pytest.fixture(autouse=True)
def _signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os._exit(75)", 75),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 11)", 139),
        ("import os; os.abort()", 134),
    ],
)
def test_exit_code_of_the_rank_process(program: str, code: int) -> None:
    assert RankProcess(python(program), 10).wait() == code


WAITS = """
import signal, sys, time
signal.signal(signal.{0}, lambda *a: sys.exit(75))
print("ready", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_signals_are_forwarded(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    child = RankProcess(python(WAITS.format(name)), 20)
    while "ready" not in capfd.readouterr().out:
        time.sleep(0.05)
    os.kill(os.getpid(), getattr(signal, name))
    assert child.wait() == 75
    assert child.sigterm_received == (name == "SIGTERM") and not child.killed_late


def test_a_rank_that_does_not_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = f"""
import pathlib, signal, subprocess, time
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
worker = subprocess.Popen(["sleep", "60"])
pathlib.Path({str(pid_file)!r}).write_text(str(worker.pid))
time.sleep(60)
"""
    child = RankProcess(python(program), 0.5)
    while not pid_file.exists() or not pid_file.read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert child.wait() == 137 and child.killed_late
    state = Path(f"/proc/{pid_file.read_text()}/stat")
    eventually(lambda: not state.exists() or state.read_text().split()[2] == "Z")


def run_task(tmp_path: Path, *args: str, **more: int) -> int:
    """Run a RankTask as rank 0 of job 7 without Slurm."""
    return start_task(tmp_path, *args, **more).wait()


def start_task(
    tmp_path: Path, *args: str, restarts: int = 0, retries: int = 0, array_task: bool = False, restart: bool = False
) -> "subprocess.Popen[bytes]":
    task = RankTask("launch_entries:" + args[0], args[1:], str(tmp_path), str(tmp_path / "progress.json"), 60, 2,
                    (2, 5) if array_task else None, retries, restart)  # fmt: skip
    program = f"import sys; from launch.task import RankTask; sys.exit({task!r}._run())"
    env = {**os.environ, "RANK": "0", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.Popen([sys.executable, "-c", program], env={**env, "SLURMD_NODENAME": "node7"})


def files(tmp_path: Path) -> set[str]:
    return {p.name for p in tmp_path.iterdir() if p.name.startswith("7.")} - {"7.starts.json"}


def test_task_that_succeeds(tmp_path: Path) -> None:
    assert run_task(tmp_path, "write_argument", str(tmp_path / "out"), "a 'b'\n$c") == 0
    assert (tmp_path / "out").read_text() == "a 'b'\n$c" and files(tmp_path) == set()


def test_task_that_fails(tmp_path: Path) -> None:
    assert run_task(tmp_path, "raise_failure", "no disk") == 1
    assert files(tmp_path) == {"7.exit"} and (tmp_path / "7.exit").read_text().startswith("1 0 ")


def test_a_killed_task_shows_the_log_of_its_rank(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_task(tmp_path, "kill_itself", str(tmp_path)) == 137
    err = capfd.readouterr().err
    assert "launch: rank 0 was killed; end of" in err and "its last words" in err
    assert err.splitlines()[-1] == "launch: rank 0 was ended by SIGKILL", "the last line is shown as the reason"


def test_a_killed_task_without_a_word_shows_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_task(tmp_path, "kill_itself", str(tmp_path), "==== rank 0, 2026-11-29 00:36:32 +0000\n") == 137
    assert capfd.readouterr().err.splitlines()[-1] == "launch: the rank was ended by SIGKILL"


def test_task_that_stops_by_itself_asks_for_no_requeue(tmp_path: Path) -> None:
    assert run_task(tmp_path, "count", str(tmp_path), "fail_rank=0", "fail_code=75") == 0
    assert files(tmp_path) == {"7.stopped"}


def test_task_with_a_stop_request_asks_for_a_requeue(tmp_path: Path) -> None:
    task = start_task(tmp_path, "count", str(tmp_path), "steps=6000", "pause=0.1")
    eventually(lambda: (tmp_path / "progress.json").exists())
    task.send_signal(signal.SIGUSR2)
    assert task.wait() == 0
    assert files(tmp_path) == {"7.again"}


def no_file(tmp_path: Path, name: str) -> None:
    """Let no marker be written, as on a full disk."""
    (tmp_path / name).symlink_to(tmp_path / "missing" / name)


def test_a_requeue_that_cannot_be_marked_is_an_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    no_file(tmp_path, "7.again")
    task = start_task(tmp_path, "count", str(tmp_path), "steps=6000", "pause=0.1")
    eventually(lambda: (tmp_path / "progress.json").exists())
    task.send_signal(signal.SIGUSR2)
    assert task.wait() == 77
    err = capfd.readouterr().err
    assert "the end of this rank cannot be recorded" in err and "7.again" in err and "Traceback" not in err


@pytest.mark.parametrize(("rank", "code"), [("0", 77), ("1", 0)])
def test_rank_0_alone_says_that_no_requeue_could_be_marked(
    monkeypatch: pytest.MonkeyPatch, rank: str, code: int
) -> None:
    """Srun ends the other tasks when one fails, and its exit code would be theirs."""
    waited = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(task_module.time, "sleep", waited.append)

    def full() -> None:
        raise OSError(28, "No space left on device")

    assert task_module._end_of_stop(full, 77) == code
    assert waited == ([task_module.OTHERS_END_S] if code else [])


def test_a_stop_that_cannot_be_marked_is_an_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    no_file(tmp_path, "7.stopped")
    assert run_task(tmp_path, "count", str(tmp_path), "fail_rank=0", "fail_code=75") == 75
    assert "7.stopped" in (err := capfd.readouterr().err) and "Traceback" not in err


def test_a_failure_that_cannot_be_recorded_keeps_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    no_file(tmp_path, "7.exit.0")
    assert run_task(tmp_path, "count", str(tmp_path), "fail_rank=0", "fail_code=9", restart=True) == 9
    err = capfd.readouterr().err
    assert "7.exit.0" in err and "the job is not restarted; run the same command" in err and "Traceback" not in err


def test_a_start_that_cannot_be_recorded_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "7.starts.json").mkdir()
    assert run_task(tmp_path, "write_argument", str(tmp_path / "out"), "x") == 1
    assert not (tmp_path / "out").exists() and "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "7.exit").read_text() == "1 0 node7 end\n"


def test_a_task_of_an_array_that_cannot_be_marked_is_not_done(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    no_file(tmp_path, "7.done")
    assert run_task(tmp_path, "part", str(tmp_path), "", array_task=True) == 1
    assert "7.done" in (err := capfd.readouterr().err) and "Traceback" not in err


def test_a_rank_that_is_rolled_back_starts_again_in_its_task(tmp_path: Path) -> None:
    """No requeue: the job keeps its nodes. The ranks meet on another port each time."""
    assert run_task(tmp_path, "roll_back", str(tmp_path), "2") == 0
    ports = (tmp_path / "starts_0.txt").read_text().splitlines()
    assert len(ports) == len(set(ports)) == 3 and files(tmp_path) == set()
    assert ports[1:] == [str(rendezvous_port("7", 0, rollback)) for rollback in (1, 2)]


def test_task_of_an_array(tmp_path: Path) -> None:
    assert run_task(tmp_path, "part", str(tmp_path), "", array_task=True) == 0
    assert (tmp_path / "part_2").read_text() == "2 of 5" and files(tmp_path) == {"7.done"}


def test_failed_task_of_an_array_is_requeued(tmp_path: Path) -> None:
    for restarts, after in ((0, "restart"), (1, "end")):
        (tmp_path / "7.exit").unlink(missing_ok=True)
        task = ("part", str(tmp_path), "always:2")
        assert run_task(tmp_path, *task, array_task=True, retries=1, restarts=restarts) == 9
        assert files(tmp_path) == {"7.exit"} and (tmp_path / "7.exit").read_text() == f"9 0 node7 {after}\n"


@pytest.mark.parametrize(
    ("code", "restart", "after"),
    [(1, True, "restart"), (139, True, "restart"), (76, True, "restart"), (2, True, "end"), (1, False, "end")],
)
def test_a_crashed_run_restarts_unless_the_user_made_a_mistake(
    tmp_path: Path, code: int, restart: bool, after: str
) -> None:
    (tmp_path / "hang").mkdir()
    (tmp_path / "hang" / "rank_0.json").write_text('{"behind": ["node8"]}')
    assert run_task(tmp_path, "count", str(tmp_path), "fail_rank=0", f"fail_code={code}", restart=restart) == code
    node = "node8" if code == 76 else "node7"
    assert (tmp_path / "7.exit").read_text() == f"{code} 0 {node} {after}\n"


@pytest.mark.parametrize("record", ['{"behind": ["node1", "node2"]}', '{"behind": []}', "{}", "{", None])
def test_no_node_is_blamed_for_a_hang_of_unknown_cause(tmp_path: Path, record: str | None) -> None:
    (tmp_path / "hang").mkdir()
    if record is not None:
        (tmp_path / "hang" / "rank_0.json").write_text(record)
    assert run_task(tmp_path, "count", str(tmp_path), "fail_rank=0", "fail_code=76", restart=True) == 76
    assert (tmp_path / "7.exit").read_text() == "76 0 - restart\n"


def hang_record(node: str, **more: object) -> dict[str, object]:
    return {"host": "elsewhere", "time": time.time() + 1, "behind": [node], "stack": []} | more


def test_the_stack_of_a_rank_that_others_wait_for(tmp_path: Path) -> None:
    """It is stopped, and no rank on its machine notices; earlier hangs and those of other nodes are left out."""
    (tmp_path / "hang").mkdir()
    write_json(tmp_path / "hang" / "rank_1.json", hang_record("node7", time=1.0))
    write_json(tmp_path / "hang" / "rank_2.json", hang_record("node8"))
    stack = tmp_path / "hang" / "rank_0.txt"
    task = start_task(tmp_path, "stop_itself")

    def is_stopped() -> bool:
        return [child.status() for child in psutil.Process(task.pid).children()] == [psutil.STATUS_STOPPED]

    eventually(is_stopped)
    (rank,) = psutil.Process(task.pid).children()
    try:
        task.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        assert not stack.exists()
        write_json(tmp_path / "hang" / "rank_1.json", hang_record("node7"))
        eventually(lambda: stack.exists() and "does not answer" in stack.read_text())
        assert has_stack(stack.read_text(), "stop_itself (")
    finally:
        rank.kill()
    assert task.wait() == 137
    assert stack.read_text().count("does not answer") == 1 and files(tmp_path) == set()


def test_a_stack_that_a_rank_on_the_same_machine_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    (tmp_path / "hang").mkdir()
    write_json(tmp_path / "hang" / "rank_1.json", hang_record("node7"))
    write_json(tmp_path / "hang" / "rank_2.json", hang_record("node7", host=socket.gethostname()))
    task = RankTask("launch_entries:count", (), str(tmp_path), str(tmp_path / "progress.json"), 60, 2)
    task._record_if_behind(os.getpid(), 0.0)
    assert not list((tmp_path / "hang").glob("*.txt"))


def test_a_run_that_crashes_without_progress_gives_up(tmp_path: Path) -> None:
    for restarts, after in enumerate(("restart", "give-up")):
        (tmp_path / "7.exit").unlink(missing_ok=True)
        words = ("count", str(tmp_path), "fail_rank=0", "fail_code=9")
        assert run_task(tmp_path, *words, restarts=restarts, restart=True) == 9
        assert (tmp_path / "7.exit").read_text() == f"9 0 node7 {after}\n"


def test_rendezvous_port() -> None:
    """Equal for all ranks of a job, different for tasks that may share a host and after a restart."""
    ports = {rendezvous_port(f"104_{task}", restart) for task in range(20) for restart in range(3)}
    assert len(ports) == 60
    assert all(20_000 <= number < 32_768 for number in ports), "higher ports are ephemeral"
    assert rendezvous_port("104_0", 1) == rendezvous_port("104_0", 1)


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGRTMIN, signal.SIGRTMIN + 6, signal.SIGRTMAX], ids=int)
def test_a_rank_may_be_ended_by_any_signal(capfd: pytest.CaptureFixture[str], number: int) -> None:
    assert (
        RankProcess([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})"], 10).wait()
        == 128 + number
    )
    message = capfd.readouterr().err
    assert "the rank was ended by " in message
    assert str(int(number)) in message or message.rstrip().endswith(signal.Signals(number).name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_rank_that_is_stopped_before_it_starts_is_requeued(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends the rank before it handles signals; nothing is lost, so it is no failure."""
    words = ("launch_entries:not_ready", (str(tmp_path),), str(tmp_path), str(tmp_path / "progress.json"))
    program = f"import sys; from launch.task import RankTask; sys.exit(RankTask(*{words!r}, 600, 2)._run())"
    env = {**os.environ, "RANK": "0", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}
    task = subprocess.Popen([sys.executable, "-c", program], env=env)
    eventually((tmp_path / "waits").exists)
    task.send_signal(number)
    assert task.wait() == 0
    assert {p.name for p in tmp_path.glob("7.*")} == {"7.again", "7.starts.json"}


def test_a_signal_before_the_rank_process_exists_is_forwarded() -> None:
    """The signal arrives between the handlers and the start of the process."""
    popen = subprocess.Popen

    def signal_meanwhile(*words: Any, **keys: Any) -> "subprocess.Popen[bytes]":
        os.kill(os.getpid(), signal.SIGUSR2)
        return popen(*words, preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN), **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", signal_meanwhile)
        child = RankProcess(["sleep", "600"], 1)
    assert child.stop_requested and child.wait() == 137 and child.killed_late


def test_arguments_of_an_entry_are_unchanged(tmp_path: Path) -> None:
    """There is no shell between the task and its rank."""
    words = ("a b", "$HOME;`id`", "'", '"', "--array-task", "\n", "", "*", "é😀", os.fsdecode(b"caf\xe9"))
    task = RankTask("launch_entries:count", words, str(tmp_path), str(tmp_path / "p"), 60, 2, array_task=(3, 8))
    expected = ["-u", "-m", "launch.rank", "--array-task", "3", "8", "launch_entries:count", *words]
    assert task.command == [sys.executable, *expected]
    write_json(tmp_path / "tasks.json", [{}, asdict(task)])
    assert read_task(tmp_path / "tasks.json", 1) == task
    program = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    child = RankProcess(["sh", "-c", f'exec "$0" -c "$1" "$@" >{tmp_path}/out', sys.executable, program, *words], 10)
    assert child.wait() == 0
    assert (tmp_path / "out").read_bytes().split(b"\0")[1:] == [os.fsencode(word) for word in words]
