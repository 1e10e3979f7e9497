"""One Slurm task: signals, exit codes, records; and the rank process itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_helpers import eventually

from launch.task import RankProcess, RankTask, check_starts, port, record_failure
from nano3.utils.errors import Failure, UserError


@pytest.fixture(autouse=True)
def _signals_restored():
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
def test_exit_code_of_the_child(program: str, code: int) -> None:
    assert RankProcess(python(program), 10).wait() == code


WAITS = """
import signal, sys, time
signal.signal(signal.{0}, lambda *a: sys.exit(75))
print("ready", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_signals_are_passed_on(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    child = RankProcess(python(WAITS.format(name)), 20)
    while "ready" not in capfd.readouterr().out:
        time.sleep(0.05)
    os.kill(os.getpid(), getattr(signal, name))
    assert child.wait() == 75
    assert child.told_to_end == (name == "SIGTERM") and not child.killed_late


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


def test_first_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, code in (("3", 9), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        record_failure(tmp_path / "7_2", code)
    assert (tmp_path / "7_2.exit").read_text().split()[:2] == ["9", "3"]
    assert [p.name for p in tmp_path.iterdir()] == ["7_2.exit"]


@pytest.mark.parametrize(
    ("progress", "gives_up_at"),
    [
        ([None, None, None], 2),
        ([None, "1", "1", "1"], 3),
        (["1", "2", "3", "4", "5"], None),
        ([None, "1", "1", "2", "2"], None),
        (["5", "5", "5"], 2),
    ],
    ids=["never", "stuck after one", "always", "now and then", "resumed and stuck"],
)
def test_crash_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: list[str | None], gives_up_at: int | None
) -> None:
    file = tmp_path / "progress.json"
    for start, value in enumerate(progress):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
        if value is not None:
            file.write_text(value)
        if start == gives_up_at:
            with pytest.raises(Failure, match="last 2 starts of this job made no progress"):
                check_starts(tmp_path / "7", file, max_crashes=2)
            return
        check_starts(tmp_path / "7", file, max_crashes=2)
    assert gives_up_at is None


def test_another_job_with_an_old_id_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "7.starts.json").write_text('["", "", ""]')
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    check_starts(tmp_path / "7", tmp_path / "progress.json", max_crashes=1)


def run_task(tmp_path: Path, *args: str, **more: int) -> int:
    """RankTask as task 0 of job 7, without Slurm."""
    return start_task(tmp_path, *args, **more).wait()


def start_task(
    tmp_path: Path, *args: str, restarts: int = 0, retries: int = 0, part: bool = False
) -> "subprocess.Popen[bytes]":
    task = RankTask("launch_entries:" + args[0], args[1:], str(tmp_path), str(tmp_path / "progress.json"), 60, 2,
                    (2, 5) if part else None, retries)  # fmt: skip
    program = f"import sys; from launch.task import RankTask; sys.exit({task!r}._run())"
    env = {**os.environ, "RANK": "0", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.Popen([sys.executable, "-c", program], env=env)


def files(tmp_path: Path) -> set[str]:
    return {p.name for p in tmp_path.iterdir() if p.name.startswith("7.")} - {"7.starts.json"}


def test_task_that_succeeds(tmp_path: Path) -> None:
    assert run_task(tmp_path, "write_argument", str(tmp_path / "out"), "a 'b'\n$c") == 0
    assert (tmp_path / "out").read_text() == "a 'b'\n$c" and files(tmp_path) == set()


def test_task_that_fails(tmp_path: Path) -> None:
    assert run_task(tmp_path, "raise_failure", "no disk") == 1
    assert files(tmp_path) == {"7.exit"} and (tmp_path / "7.exit").read_text().startswith("1 0 ")


def test_task_that_stops_by_itself_asks_for_no_requeue(tmp_path: Path) -> None:
    assert run_task(tmp_path, "count", str(tmp_path), "fail_rank=0", "fail_code=75") == 0
    assert files(tmp_path) == {"7.stopped"}


def test_task_that_was_told_to_stop_asks_for_a_requeue(tmp_path: Path) -> None:
    task = start_task(tmp_path, "count", str(tmp_path), "steps=6000", "pause=0.1")
    eventually(lambda: (tmp_path / "progress.json").exists())
    task.send_signal(signal.SIGUSR2)
    assert task.wait() == 0
    assert files(tmp_path) == {"7.again"}


def test_part_of_an_array(tmp_path: Path) -> None:
    assert run_task(tmp_path, "part", str(tmp_path), "", part=True) == 0
    assert (tmp_path / "part_2").read_text() == "2 of 5" and files(tmp_path) == {"7.done"}


def test_part_that_fails_is_started_again(tmp_path: Path) -> None:
    assert run_task(tmp_path, "part", str(tmp_path), "always:2", part=True, retries=1) == 0
    assert files(tmp_path) == {"7.again"}
    (tmp_path / "7.again").unlink()
    assert run_task(tmp_path, "part", str(tmp_path), "always:2", part=True, retries=1, restarts=1) == 9
    assert files(tmp_path) == {"7.exit"}


def rank(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "launch.rank", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("launch_entries:raise_failure", "disk full"), 1, "error: disk full\n"),
        (("launch_entries:raise_unforeseen", "x"), 1, "ZeroDivisionError: x\n"),
        (("launch_entries",), 2, "error: 'launch_entries' is not an entry. Write it as package.module:function.\n"),
    ],
)
def test_how_a_rank_ends(words: tuple[str, ...], code: int, says: str) -> None:
    done = rank(*words)
    assert done.returncode == code and done.stderr.endswith(says)
    assert ("Traceback" in done.stderr) == (words[0].endswith("unforeseen"))


def test_user_error_has_its_own_code() -> None:
    program = "from nano3.utils.errors import UserError\ndef f(): raise UserError(['one', 'two'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport __main__, sys\nfrom launch.rank import run_rank\n"
         "sys.exit(run_rank('__main__:f', ()))"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (UserError.exit_code, "error: one\nerror: two\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signal_before_the_entry_handles_it(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow_import.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(30)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.rank", "slow_import:main"],
        env={**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{tmp_path}"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(number)
    process.send_signal(number)
    assert process.wait() == 75


def test_where_the_ranks_of_a_job_meet() -> None:
    """The same place for every rank; tasks of one array may share a host, and a second start must not fail as the
    first."""
    ports = {port(f"104_{task}", restart) for task in range(20) for restart in range(3)}
    assert len(ports) == 60
    assert all(20_000 <= number < 32_768 for number in ports), "above is what Linux gives away"
    assert port("104_0", 1) == port("104_0", 1)
