"""Inject faults: make the n-th system call of a kind fail or kill the process there (strace), or fill a small disk."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest


@cache
def works() -> bool:
    """Return whether strace is installed and permitted, which it may not be in a container."""
    if not shutil.which("strace"):
        return False
    call = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=rename", "-o", "/dev/null", "true"]
    return subprocess.run(call, capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif("not __import__('faults').works()", reason="needs strace, and leave to trace")


def with_fault(log: Path, call: str, what: str, when: int, code: str, *args: object) -> tuple[bool, str, int]:
    """Run Python code whose `when`-th `call` gets fault `what` ("error=EIO", "signal=KILL").

    Returns whether the fault occurred, the output, and the exit code. Calls are counted per process and thread.
    """
    # With seccomp-bpf, which is quicker, strace 6.1 delivers no signal. A process that is killed has not made the call.
    quick = ["--seccomp-bpf"] if what.startswith("error") else []
    trace = ["strace", "-f", *quick, "-q", "-o", str(log), "-e", f"trace={call}"]
    command = [*trace, "-e", f"inject={call}:{what}:when={when}", sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    traced = log.read_text()
    hit = "INJECTED" in traced if what.startswith("error") else "killed by SIGKILL" in traced
    return hit, done.stdout + done.stderr, done.returncode


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a disk of a size such as "1m" on a folder during the block; skip the test if that is not permitted."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(*paths: Path) -> None:
    """Fill a disk with the first file, and append to the others, whose last page may have room, until nothing fits."""
    for path in paths:
        with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"." * 65536)
