"""The stack of another process is read from outside, or the text says why not and what to do."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracing import has_stack

from nano3.utils import process_stack
from nano3.utils.process_stack import FORBIDDEN, read_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
STOPPED = """
import os, signal
from nano3.utils.process_stack import allow_reading_this_process

def stopped_here():
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

allow_reading_this_process()
stopped_here()
"""


@contextlib.contextmanager
def stopped_process() -> Iterator[int]:
    """Yield the id of a process that has stopped itself."""
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE) as process:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        yield process.pid
        process.kill()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_stopped_process_is_read_and_stays_stopped() -> None:
    with stopped_process() as pid:
        text = read_stack(pid)
        assert has_stack(text, "stopped_here (<string>:")
        assert "import" not in text  # its command line, which may hold secrets
        assert state_of(pid) == "T"


def test_a_process_that_has_ended() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    text = read_stack(process.pid)
    assert "no stack: " in text and "failed with exit code 1" in text


def test_without_py_spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_stack(os.getpid()) == "no stack: py-spy is not installed (pip install py-spy)\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [("#!/bin/sh\nsleep 60\n", "did not end within 0.2 s"), ("#!/no/shell\n", "No such file or directory")],
    ids=["never ends", "cannot be started"],
)
def test_a_py_spy_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str) -> None:
    """It waits as long as the kernel holds it, and the rank that waits for it must end."""
    (tmp_path / "py-spy").write_text(script)
    (tmp_path / "py-spy").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(process_stack, "TIMEOUT_S", 0.2)
    text = read_stack(os.getpid())
    assert text.startswith("no stack: ") and words in text


@pytest.mark.parametrize("code", [0, 1])
def test_a_command_line_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    """Not even if py-spy ends after it, or another version does not print its own line."""
    (tmp_path / "py-spy").write_text(f"#!/bin/sh\necho 'Process 1: train --token=secret'\nexit {code}\n")
    (tmp_path / "py-spy").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    text = read_stack(os.getpid())
    assert "secret" not in text and f"failed with exit code {code}" in text


WITHOUT_CAPABILITY = """
import ctypes, sys
from nano3.utils.process_stack import read_stack
CAP_SYS_PTRACE, PR_CAPBSET_DROP = 19, 24
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0)
print(read_stack(int(sys.argv[1])))
"""


def test_a_container_without_the_capability() -> None:
    """Of a process that has it; a user who is not root has none to drop, and may not read one of root."""
    target = os.getpid() if os.getuid() == 0 else 1
    if os.getuid() and Path("/proc/1").stat().st_uid == os.getuid():
        pytest.skip("every process is of this user")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CAPABILITY, str(target)], capture_output=True, text=True, check=True
    )
    assert "no stack: " in done.stdout and FORBIDDEN in done.stdout
