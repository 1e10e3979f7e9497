"""Ctrl-C never prints a traceback, not even while modules are imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.utils.errors import INTERRUPTED_EXIT_CODE

ROOT = Path(__file__).parents[2]


def start_until_import(tmp_path: Path, module: str, slow: str, *words: str) -> "subprocess.Popen[str]":
    """Start `python -m MODULE WORDS` and return while it imports `slow`, replaced by a module that sleeps."""
    stand_in = tmp_path / "stand_in"
    stand_in.mkdir()
    (stand_in / f"{slow}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{stand_in}{os.pathsep}{ROOT}", "NANO3_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background processes ignore SIGINT
    )
    assert process.stdout and process.stdout.readline() == "importing\n"
    return process


@pytest.mark.parametrize(
    ("module", "slow"),
    [("nano3.pretrain", "hydra"), ("nano3.data_prep", "hydra"), ("nano3", "argparse"), ("nano3.training", "omegaconf")],
)
def test_while_modules_are_imported(tmp_path: Path, module: str, slow: str) -> None:
    process = start_until_import(tmp_path, module, slow)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors == ""
    assert process.returncode == -signal.SIGINT, "a shell says 130"


@pytest.mark.parametrize(("slow", "words"), [("numpy", ["verify", "."]), ("hydra", ["plan"])])
def test_while_a_tool_runs(tmp_path: Path, slow: str, words: list[str]) -> None:
    """Or while its module is imported."""
    process = start_until_import(tmp_path, "nano3", slow, *words)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors == ""
    assert process.returncode == INTERRUPTED_EXIT_CODE


def test_an_ignored_sigint_stays_ignored() -> None:
    """Shells start background processes with SIGINT ignored."""
    script = (
        "import signal; from nano3.cli.process import enable_keyboard_interrupt; enable_keyboard_interrupt(); "
        "print(signal.getsignal(signal.SIGINT))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ).stdout
    assert printed.strip() in ("1", "Handlers.SIG_IGN")
