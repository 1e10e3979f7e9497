"""Worker processes. One process loads the tokenizer and forks the workers, so that loading is paid for once and shared.

    this process ── starts ──▶ worker_server (one thread when it forks) ── forks ──▶ N workers, 1 prover
         └────────────────────────── one socket for each: tasks out, results back ───────────────────────────────┘

A worker does one task at a time and keeps its caches from one to the next. The prover compares the engines while the
workers have begun; nothing that they made is used before it has answered. All of them die with the process that
started them.
"""

import contextlib
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from nano3.data.build.worker_client import WorkerServerClient
from nano3.utils.errors import Failure

Task = tuple[Any, ...]  # ("unit", number) or PROVE
COMPARE_ENGINES: Task = ("prove",)


class WorkerPool:
    """N workers on one plan, and a prover. Use as a context manager; leaving it ends them."""

    def __init__(self, plan_path: Path, workers: int, fast: bool) -> None:
        self._workers = workers
        self._ends: list[Connection] = []
        theirs = []
        for _ in range(workers + 1):
            mine, other = Pipe()
            self._ends.append(mine)
            theirs.append(other)
        self._loader = WorkerServerClient.acquire()
        self._loader.fork(plan_path, fast, [end.fileno() for end in theirs])
        for end in theirs:
            end.close()
        self._busy: dict[int, Task] = {}

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for end in self._ends:
            end.close()
        self._loader.end(5 if kind is None else 0)

    def prove(self) -> None:
        """Have the prover compare the engines: a result of the task `COMPARE_ENGINES` says what is wrong, or ""."""
        self.give(self._workers, COMPARE_ENGINES)

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
