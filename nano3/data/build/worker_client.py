"""Starting the process that loads a tokenizer and forks the workers (`prefork.py`), if need be before all else.

Loading takes longer than everything else at the start of a run. `Loader.begin` starts it for a tokenizer that the run
will probably want; the first `Loader.take` then gets that process. It uses what it has loaded only if that is the
plan's tokenizer, byte for byte; otherwise it loads that one, like a process that was told of none.
"""

import contextlib
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

WORKER_ENV = {
    "FASTOKENS_BPE_THREADS": "1",  # a worker is one core's work
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Arrow's own allocators keep what they once had: 100 MB more for each page of that size.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
SOCKETS_PER_MESSAGE = 100  # sockets sent in one message; Linux takes 253


class WorkerServerClient:
    """A loading process, seen from the one that wants workers."""

    _preloaded: "WorkerServerClient | None" = None

    def __init__(self, file: str = "") -> None:
        """Start a process; it loads the tokenizer.json `file` at once, "" for none."""
        self._socket, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "nano3.data.build.worker_server", str(theirs.fileno()), file]
        env = {**os.environ, **WORKER_ENV, "PYTHONPATH": path}
        # A process group of its own: Ctrl-C is this process's business, also while the other is only starting.
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL, process_group=0
        )
        theirs.close()

    @classmethod
    def preload(cls, file: str) -> None:
        """Start loading a tokenizer.json that will probably be wanted."""
        cls._preloaded = cls(file)

    @classmethod
    def acquire(cls) -> "WorkerServerClient":
        """The process of `begin`, once; otherwise a new one."""
        ahead, cls._preloaded = cls._preloaded, None
        return ahead or cls()

    @classmethod
    def cancel_preload(cls) -> None:
        """End the process of `begin` if nobody has taken it."""
        if cls._preloaded:
            cls.acquire().end(0)

    def fork(self, plan_path: Path, fast: bool, sockets: list[int]) -> None:
        """Have it load what the plan wants and fork a worker for each socket; does not wait for that.

        A process that has died is not noticed here, but by whoever waits for a worker.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send_plan(self._socket, plan_path, fast, sockets)

    def end(self, patience: float) -> None:
        """Wait `patience` seconds for the process to end by itself, then make it."""
        self._socket.close()
        try:
            self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def send_plan(control: socket.socket, plan_path: Path, fast: bool, sockets: list[int]) -> None:
    """Tell a loading process what to do: the plan, whether the fast engine may be used, a socket for each worker."""
    with Connection(os.dup(control.fileno())) as end:
        end.send((str(plan_path), fast, len(sockets)))
    for start in range(0, len(sockets), SOCKETS_PER_MESSAGE):
        socket.send_fds(control, [b"."], sockets[start : start + SOCKETS_PER_MESSAGE])


def receive_plan(control: socket.socket) -> tuple[Path, bool, list[int]]:
    """What `send_plan` sent.

    Raises `EOFError` when the other side has closed.
    """
    with Connection(os.dup(control.fileno())) as end:
        plan_path, fast, count = end.recv()
    sockets: list[int] = []
    while len(sockets) < count:
        data, some, _, _ = socket.recv_fds(control, 1, SOCKETS_PER_MESSAGE)
        if not data:
            raise EOFError
        sockets += some
    return Path(plan_path), fast, sockets
