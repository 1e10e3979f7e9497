"""Ctrl-C at any moment of a start: no traceback, also while modules are imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.utils.errors import INTERRUPTED_EXIT_CODE

ROOT = Path(__file__).parents[2]


def started(tmp_path: Path, module: str, slow: str, *words: str) -> "subprocess.Popen[str]":
    """`python -m MODULE WORDS` at the moment when it imports `slow`, which takes for ever here."""
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
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    assert process.stdout and process.stdout.readline() == "importing\n"
    return process


@pytest.mark.parametrize(
    ("module", "slow"),
    [("nano3.pretrain", "hydra"), ("nano3.data_prep", "hydra"), ("nano3", "hydra"), ("nano3.training", "hydra")],
)
def test_while_modules_are_imported(tmp_path: Path, module: str, slow: str) -> None:
    process = started(tmp_path, module, slow)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert told == ""
    assert process.returncode == -signal.SIGINT, "a shell says 130"


def test_while_a_tool_works(tmp_path: Path) -> None:
    process = started(tmp_path, "nano3", "numpy", "verify", str(tmp_path))
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert told == ""
    assert process.returncode == INTERRUPTED_EXIT_CODE


def test_who_ignores_it_goes_on_ignoring_it() -> None:
    """A shell starts what runs in the background so."""
    script = "import signal, nano3.cli.app; nano3.cli.app.enable_keyboard_interrupt(); print(signal.getsignal(signal.SIGINT))"
    shown = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ).stdout
    assert shown.strip() in ("1", "Handlers.SIG_IGN")
