"""launch.rank: exit codes, errors and early signals of one rank."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.utils.errors import UserError


def rank(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "launch.rank", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("launch_entries:raise_failure", "disk full"), 1, "error: disk full\n"),
        (("launch_entries:raise_unforeseen", "x"), 1, "ZeroDivisionError: x\n"),
        (
            ("launch_entries",),
            2,
            "error: 'launch_entries' does not name a function. Write it as package.module:function.\n",
        ),
    ],
)
def test_exit_code_and_message_of_a_rank(words: tuple[str, ...], code: int, says: str) -> None:
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
def test_signal_before_the_entry_installs_handlers(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow_import.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(30)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.rank", "slow_import:main"],
        env={**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{tmp_path}"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(number)
    process.send_signal(number)
    assert process.wait() == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_after_the_work_does_not_change_its_code(tmp_path: Path, number: signal.Signals) -> None:
    text = f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {int(number)}))\ndef main(): return 0\n"
    (tmp_path / "signaled.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{tmp_path}"}
    assert subprocess.run([sys.executable, "-m", "launch.rank", "signaled:main"], env=env, check=False).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_after_a_failure_does_not_change_its_code(tmp_path: Path, number: signal.Signals) -> None:
    """As when another rank fails at the same time, and srun or torchrun ends this one."""
    text = (
        "import os\nfrom nano3.utils.errors import Failure\n"
        f"class Late(Failure):\n    exit_code = property(lambda self: os.kill(os.getpid(), {int(number)}) or 1)\n"
        "def main(): raise Late('the cause')\n"
    )
    (tmp_path / "failed.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{tmp_path}"}
    words = [sys.executable, "-m", "launch.rank", "failed:main"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: the cause\n")


@pytest.mark.parametrize("code", [0, 3, 75])
def test_a_full_disk_at_the_end_does_not_change_the_code_under_torchrun(tmp_path: Path, code: int) -> None:
    """Without the file, torchrun must not take a rank that saved and stopped for a finished one."""
    (tmp_path / "0.exit").symlink_to("/dev/full")
    words = ["launch.torchrun_rank", str(tmp_path), "launch_entries:count", str(tmp_path), "steps=1", "fail_rank=0"]
    words += [f"fail_code={code}"]
    env = {**os.environ, "RANK": "0"}
    done = subprocess.run([sys.executable, "-m", *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stdout + done.stderr
