"""Start and talk to the process that loads a tokenizer and forks the workers (`worker_server`).

Loading takes longer than everything else at the start of a run. `WorkerServerClient.preload` starts a process for the
tokenizer that the run will probably need; the first `WorkerServerClient.acquire` gets that process. The process uses
the preloaded tokenizer only if it equals the plan's byte for byte; otherwise it loads the plan's.
"""

import contextlib
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from nano3.data.sources.url_credentials import has_credentials

Task = tuple[str, int] | tuple[str]  # ("unit", number) or worker_pool.COMPARE_ENGINES

WORKER_ENV = {
    "FASTOKENS_BPE_THREADS": "1",  # one core for each worker
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Arrow's own allocators do not return memory: 100 MB more for each page of that size.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
SOCKETS_PER_MESSAGE = 100  # Linux allows 253


class WorkerServerClient:
    """A loading process, seen from the process that needs workers."""

    _preloaded: "WorkerServerClient | None" = None

    def __init__(self, file: str = "") -> None:
        """Start a process that loads the tokenizer.json `file` at once, "" for none."""
        self._socket, server_end = socket.socketpair()
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "nano3.data.build.worker_server", str(server_end.fileno()), file]
        env = {**os.environ, **WORKER_ENV, "PYTHONPATH": path}
        # In its own process group, so Ctrl-C reaches only this process, even while the other starts.
        self.process = subprocess.Popen(
            command, pass_fds=[server_end.fileno()], env=env, stdin=subprocess.DEVNULL, process_group=0
        )
        server_end.close()

    @classmethod
    def preload(cls, file: str) -> None:
        """Start loading a tokenizer.json that the run will probably need."""
        cls._preloaded = cls(file)

    @classmethod
    def acquire(cls) -> "WorkerServerClient":
        """Return the process of `preload` the first time, else a new one."""
        if has_credentials():  # the process inherits them, so it must start after they are known
            cls.cancel_preload()
        preloaded, cls._preloaded = cls._preloaded, None
        return preloaded or cls()

    @classmethod
    def cancel_preload(cls) -> None:
        """End the process of `preload` if it was not acquired."""
        preloaded, cls._preloaded = cls._preloaded, None
        if preloaded:
            preloaded.close(0)

    def fork_workers(self, plan_path: Path, fast: bool, sockets: list[int]) -> None:
        """Ask the process to load the engines for a plan and fork one worker for each socket; do not wait.

        If the process has died, reading from the sockets' other ends fails.

        Args:
            plan_path: Path of the plan.
            fast: Whether the fast engine may be used.
            sockets: File descriptors.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send_plan(self._socket, plan_path, fast, sockets)

    def close(self, timeout: float) -> None:
        """Wait `timeout` seconds for the process to end by itself, then kill it."""
        self._socket.close()
        try:
            self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def send_plan(control: socket.socket, plan_path: Path, fast: bool, sockets: list[int]) -> None:
    """Send a plan and one socket for each worker to a loading process.

    Args:
        control: Socket to the process.
        plan_path: Path of the plan.
        fast: Whether the fast engine may be used.
        sockets: File descriptors.
    """
    with Connection(os.dup(control.fileno())) as connection:
        connection.send((str(plan_path), fast, len(sockets)))
    for start in range(0, len(sockets), SOCKETS_PER_MESSAGE):
        socket.send_fds(control, [b"."], sockets[start : start + SOCKETS_PER_MESSAGE])


def receive_plan(control: socket.socket) -> tuple[Path, bool, list[int]]:
    """Receive the arguments of `send_plan`.

    Raises:
        EOFError: If the other side closed the socket.
    """
    with Connection(os.dup(control.fileno())) as connection:
        plan_path, fast, count = connection.recv()
    sockets: list[int] = []
    while len(sockets) < count:
        data, received, _, _ = socket.recv_fds(control, 1, SOCKETS_PER_MESSAGE)
        if not data:
            raise EOFError
        sockets += received
    return Path(plan_path), fast, sockets
