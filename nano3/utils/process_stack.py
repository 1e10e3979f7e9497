"""The Python stack of another process, read from outside by py-spy, as a stopped one cannot write its own."""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from nano3.utils.child_processes import prctl

_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)  # <sys/prctl.h>
TIMEOUT_S = 10.0
FORBIDDEN = (
    "py-spy reads the memory of the process, which the system may forbid. In a container, the capability SYS_PTRACE "
    "allows it (docker run --cap-add=SYS_PTRACE); elsewhere, a value of 0 or 1 of the sysctl kernel.yama.ptrace_scope."
)


def allow_reading_this_process() -> None:
    """Let any process of this user read the stack of this one. Does nothing on other systems than Linux.

    Yama, which Ubuntu has on, allows it to the ancestors of a process only.
    """
    if sys.platform == "linux":
        prctl()(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)


def append_stack(folder: Path, rank: int, pid: int) -> None:
    """Append the stack of a rank on this machine that does not answer to its record.

    Args:
        folder: RUN/hang.
        rank: The rank.
        pid: Its process id.
    """
    moment, text = time.strftime("%Y-%m-%d %H:%M:%S"), read_stack(pid)
    with (folder / f"rank_{rank}.txt").open("a") as file:
        file.write(f"\n{moment} rank {rank} on {socket.gethostname()} does not answer\n{text}")


def read_stack(pid: int) -> str:
    """Return the Python stacks of all threads of a process on this machine, or a text that says why there are none.

    The process is not paused: that fails with a stopped one, and waits as long as it does for a disk.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which("py-spy", path=path)
    if program is None:
        return "no stack: py-spy is not installed (pip install py-spy)\n"
    try:
        process = subprocess.Popen(
            [program, "dump", "--nonblocking", "--pid", str(pid)], text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "RUST_BACKTRACE": "0"},
        )  # fmt: skip
    except OSError as error:
        return f"no stack: {error}\n"
    try:
        output, problem = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # without waiting: it can be held in the kernel as the process that it reads
        return f"no stack: {program} did not end within {TIMEOUT_S:g} s\n"
    _, version, stacks = output.partition("\nPython v")  # before it the command line, which may hold secrets
    output = version.lstrip() + stacks
    if process.returncode or not output:
        return f"{output}no stack: {program} failed with exit code {process.returncode}\n{problem}{FORBIDDEN}\n"
    return output
