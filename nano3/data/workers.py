"""Worker processes. One process loads the tokenizer and forks the workers, so that loading is paid for once and shared.

    this process ── starts ──▶ python -m nano3.data.workers (one thread when it forks) ── forks ──▶ N workers, 1 prover
         └────────────────────────── one socket for each: tasks out, results back ───────────────────────────────┘

A worker does one task at a time and keeps its caches from one to the next. The prover compares the engines while the
workers have begun; nothing that they made is used before it has answered. All of them die with the process that
started them.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from nano3.data.engines import Engines, load_engines
from nano3.errors import Failure, Nano3Error

Task = tuple[Any, ...]  # ("unit", number) or PROVE
PROVE: Task = ("prove",)
ENV = {
    "FASTOKENS_BPE_THREADS": "1",  # a worker is one core's work
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class Pool:
    """N workers on one plan, and a prover. Use as a context manager; leaving it ends them."""

    def __init__(self, plan_path: Path, workers: int, fast: bool) -> None:
        self._workers = workers
        self._ends: list[Connection] = []
        theirs = []
        for _ in range(workers + 1):
            mine, other = Pipe()
            self._ends.append(mine)
            theirs.append(other)
        fds = [end.fileno() for end in theirs]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "nano3.data.workers", str(plan_path), str(int(fast)), *map(str, fds)]
        env = {**os.environ, **ENV, "PYTHONPATH": path}
        # A process group of its own: Ctrl-C is this process's business, also while the other is only starting.
        self._process = subprocess.Popen(command, pass_fds=fds, env=env, stdin=subprocess.DEVNULL, process_group=0)
        for end in theirs:
            end.close()
        self._busy: dict[int, Task] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for end in self._ends:
            end.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if kind is None:
                self._process.wait(timeout=5)
        self._process.kill()
        self._process.wait()

    def prove(self) -> None:
        """Have the prover compare the engines: a result of the task `PROVE` says what is wrong, or ""."""
        self.give(self._workers, PROVE)

    def idle(self) -> list[int]:
        """Numbers of the workers without a task."""
        return [n for n in range(self._workers) if n not in self._busy]

    @property
    def busy(self) -> bool:
        """Whether any task is under way."""
        return bool(self._busy)

    def give(self, worker: int, task: Task) -> None:
        """Start a task on an idle worker."""
        self._busy[worker] = task
        with contextlib.suppress(BrokenPipeError):  # the next `results` tells of the dead worker
            self._ends[worker].send(task)

    def results(self, timeout: float | None = None) -> Iterator[tuple[Task, str, Any]]:
        """(task, kind, value) of what workers have sent since: kind is "tick" (bytes of text), "done" or "mismatch".

        Raises what a worker raised, or `Failure` when a worker died.
        """
        for ready in wait([self._ends[n] for n in self._busy], timeout):
            worker = self._ends.index(ready)  # type: ignore[arg-type]
            task = self._busy[worker]
            try:
                kind, value = self._ends[worker].recv()
            except (EOFError, ConnectionResetError) as error:
                raise Failure(
                    f"a worker process died during {task}; out of memory is the usual cause. What is finished is "
                    f"kept: run again, with fewer workers (workers={max(1, self._workers - 1)}) if memory is short."
                ) from error
            if kind != "tick":
                del self._busy[worker]
            if kind == "error":
                raise value
            yield task, kind, value


def main() -> None:
    """The loading process: read the plan's tokenizer, fork a worker for each socket, wait for them."""
    plan_path, fast, *fds = sys.argv[1:]
    die_with_parent()
    engines: Engines | Nano3Error
    try:
        engines = load(Path(plan_path), bool(int(fast)))
    except Nano3Error as error:
        engines = error
    mother = os.getpid()
    for fd in fds:
        if os.fork() == 0:
            for other in fds:
                if other != fd:
                    os.close(int(other))
            die_with_parent()
            if os.getppid() != mother:
                os._exit(1)
            serve(Connection(int(fd)), Path(plan_path), engines)
            os._exit(0)
    for fd in fds:
        os.close(int(fd))
    for _ in fds:
        os.wait()
    os._exit(0)  # there is nothing to tidy, and letting go of a large tokenizer takes time


def load(plan_path: Path, fast: bool) -> Engines:
    """The engines for a plan, and a worker's modules. Leaves one thread: pyarrow, which starts one, comes later."""
    import msgspec

    plan = msgspec.json.decode(plan_path.read_bytes())
    info = plan["tokenizer"]
    file = f"{info['folder']}/{info['json_name']}"
    try:
        return load_engines(file, plan["options"]["split_special_tokens"], fast, meanwhile=import_worker)
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        raise Failure(f"{file}: the tokenizer cannot be loaded: {error}") from error


def import_worker() -> None:
    """Import once what every worker needs."""
    importlib.import_module("nano3.data.shard")


def serve(end: Connection, plan_path: Path, engines: Engines | Nano3Error) -> None:
    """Do tasks until the socket closes."""
    from nano3.data.shard import EngineMismatch

    worker: Any = None
    while True:
        try:
            task = end.recv()
        except EOFError:
            return
        try:
            if isinstance(engines, Nano3Error):
                raise engines
            if worker is None:
                worker = make_worker(end, plan_path, engines)
            end.send(("done", do(worker, engines, task)))
        except EngineMismatch as mismatch:
            end.send(("mismatch", str(mismatch)))
        except Nano3Error as error:
            end.send(("error", error))
        except (BrokenPipeError, ConnectionResetError):
            return
        except BaseException:
            end.send(("error", RuntimeError(f"in a worker, during {task}:\n{traceback.format_exc()}")))


def make_worker(end: Connection, plan_path: Path, engines: Engines) -> Any:
    """The worker's state."""
    import gc

    from nano3.data.plan import load_plan
    from nano3.data.shard import Worker
    from nano3.data.tokenize import fast_encoder, reference_encoder

    gc.freeze()
    plan = load_plan(plan_path)
    fast = fast_encoder(engines.fast, plan.options.split_special_tokens) if engines.fast else None
    reference = reference_encoder(engines.reference)
    return Worker(plan, plan_path.parent, reference, fast, lambda size: end.send(("tick", size)))


def do(worker: Any, engines: Engines, task: Task) -> Any:
    """One task; its result is small."""
    if task[0] == "unit":
        return worker.encode_unit(task[1])
    from nano3.data.proof import prove

    return engines.why_not or prove(worker, engines)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that ends. Elsewhere the closed socket does it,
    later.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
