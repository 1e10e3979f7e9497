"""Start the worker servers of many small preparations as forks of one process that has imported their modules.

Each runs the `main` of `nano3.data.build.worker_server` with its own socket, environment and output. What is saved is
the start of Python and the imports, which take longer than a preparation of a few documents.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from functools import cache
from typing import NoReturn

from nano3.data.build.worker_client import WORKER_ENV, WorkerServerClient

NEEDED = (
    "nano3.data.build.engine_check", "nano3.data.build.worker_server", "nano3.data.build.unit_encoder",
    "fastokens._native", "fsspec", "pyarrow.parquet", "tokenizers",
)  # fmt: skip
MOST = 1 << 20  # bytes of a request
_START, _PYTHONPATH = WorkerServerClient.__init__, os.environ.get("PYTHONPATH")


class Fork:
    """A fork of another process, with the methods of Popen that a `WorkerServerClient` uses."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid, self._pidfd = pid, pidfd

    def __del__(self) -> None:
        os.close(self._pidfd)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("worker_server", timeout or 0)

    def kill(self) -> None:
        """End it."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Forks:
    """The process with the imported modules."""

    def __init__(self) -> None:
        self._control, other_end = socket.socketpair(type=socket.SOCK_SEQPACKET)
        env = {**os.environ, **WORKER_ENV, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, __file__, str(other_end.fileno())]
        self._process = subprocess.Popen(command, env=env, pass_fds=[other_end.fileno()], stdin=subprocess.DEVNULL)
        other_end.close()

    def start(self, client_socket: int, file: str) -> Fork:
        """Start a server, with the present environment and output of this process."""
        request = json.dumps([file, {**os.environ, **WORKER_ENV}]).encode()
        socket.send_fds(self._control, [request], [client_socket, 1, 2])
        pid, pidfds, _, _ = socket.recv_fds(self._control, 100, 1)
        return Fork(int(pid), pidfds[0])


@cache
def forks() -> Forks:
    """Return the process of this session; it ends with this process."""
    return Forks()


def start(self: WorkerServerClient, file: str = "") -> None:
    """Take the place of `WorkerServerClient.__init__`."""
    if os.environ.get("PYTHONPATH") != _PYTHONPATH:  # a test wants other modules
        return _START(self, file)
    self._socket, server_end = socket.socketpair()
    self.process = forks().start(server_end.fileno(), file)  # type: ignore[assignment]
    server_end.close()
    return None


def serve(control: socket.socket) -> None:
    """Fork a server for each request, until the other end is closed."""
    while True:
        request, fds, _, _ = socket.recv_fds(control, MOST, 3)
        if not request:
            return
        while not_waited_for():
            pass
        pid = os.fork()
        if pid == 0:
            control.close()
            become(fds, *json.loads(request))
        pidfd = os.pidfd_open(pid)
        socket.send_fds(control, [str(pid).encode()], [pidfd])
        for fd in (*fds, pidfd):
            os.close(fd)


def not_waited_for() -> bool:
    """Wait for one process that has ended, and return whether there was any."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def become(fds: list[int], file: str, env: dict[str, str]) -> NoReturn:
    """Turn this process into a worker server."""
    from nano3.data.build import worker_server

    os.setpgid(0, 0)
    for number, fd in enumerate(fds[1:], 1):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[1:] = [str(fds[0]), file]
    try:
        worker_server.main()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    for needed in NEEDED:
        importlib.import_module(needed)
    gc.freeze()  # or every collection in a fork copies what it shares
    serve(socket.socket(fileno=int(sys.argv[1])))
