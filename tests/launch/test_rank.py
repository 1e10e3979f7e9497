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
