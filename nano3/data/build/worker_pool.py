"""A pool of worker processes. One process loads the tokenizer once and forks the workers, which share its memory.

    this process ── starts ──▶ worker_server (one thread when it forks) ── forks ──▶ N workers and 1 comparer
         └────────────────────────── one socket for each: tasks out, results back ───────────────────────────┘

A worker runs one task at a time and keeps its caches between tasks. The comparer compares the tokenizer engines while
the workers run; their results are used only after the engines agree. All processes end with the one that started them.
"""

import contextlib
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, cast

from nano3.data.build.worker_client import Task, WorkerServerClient
from nano3.data.planning.plan import load_plan
from nano3.data.sources.reader_process import find_crashing_file
from nano3.data.sources.readers import row_number
from nano3.utils.errors import Failure, Nano3Error

COMPARE_ENGINES: Task = ("compare",)


class WorkerPool:
    """N workers on one plan and a comparer. Use it as a context manager; leaving it ends the processes."""

    def __init__(self, plan_path: Path, workers: int, fast: bool) -> None:
        self._workers = workers
        self._plan_path = plan_path
        self._connections: list[Connection] = []
        worker_ends = []
        for _ in range(workers + 1):
            own_end, worker_end = Pipe()
            self._connections.append(own_end)
            worker_ends.append(worker_end)
        self._server = WorkerServerClient.acquire()
        self._server.fork_workers(plan_path, fast, [end.fileno() for end in worker_ends])
        for end in worker_ends:
            end.close()
        self._running: dict[int, Task] = {}
        self._at: dict[int, tuple[int, int, int]] = {}  # what each worker encodes: dataset, file, key

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        self._server.close(5 if kind is None else 0)

    def compare_engines(self) -> None:
        """Start the task `COMPARE_ENGINES`. Its result says what differs, or is ""."""
        self.submit(self._workers, COMPARE_ENGINES)

    def idle(self) -> list[int]:
        """Return the numbers of the workers without a task."""
        return [n for n in range(self._workers) if n not in self._running]

    @property
    def busy(self) -> bool:
        """Whether any task is running."""
        return bool(self._running)

    def submit(self, worker: int, task: Task) -> None:
        """Start a task on an idle worker."""
        self._running[worker] = task
        self._at.pop(worker, None)
        with contextlib.suppress(BrokenPipeError):  # the next `results` reports the dead worker
            self._connections[worker].send(task)

    def results(self, timeout: float | None = None) -> Iterator[tuple[Task, str, Any]]:
        """Wait for messages of busy workers and yield one of each that has any.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Yields:
            (task, kind, value). Kind "tick": bytes of text encoded since the last one. "done": the `UnitReceipt` of a
            unit, or what differs between the engines. "mismatch": the document for which the engines differ.

        Raises:
            Nano3Error: The error of a worker, or `Failure` if one died.
        """
        for ready in wait([self._connections[n] for n in self._running], timeout):
            worker = self._connections.index(ready)  # type: ignore[arg-type]
            task = self._running[worker]
            try:
                kind, value = self._connections[worker].recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._death(task, self._at.get(worker)) from error
            if kind == "at":
                self._at[worker] = value
                continue
            if kind != "tick":
                del self._running[worker]
            if kind == "error":
                raise value
            yield task, kind, value

    def _death(self, task: Task, document: tuple[int, int, int] | None) -> Failure:
        """Return the error for a worker that died during a task.

        Args:
            task: The task.
            document: (dataset, file, key) of the first document that was being encoded, or None.
        """
        plan = load_plan(self._plan_path)
        if task == COMPARE_ENGINES:
            what, ranges = "the comparison of the engines", [dataset.whole_file(0) for dataset in plan.datasets]
        else:
            dataset, unit = plan.unit(cast(int, task[-1]))
            what, ranges = f"unit {task[-1]}", [file for _, file in plan.datasets[dataset].file_ranges(unit)]
        if failure := find_crashing_file(ranges):
            return failure
        if document:
            file = plan.datasets[document[0]].whole_file(document[1])
            row = f"key {document[2]:,}"
            with contextlib.suppress(Nano3Error, OSError):  # the file is gone by now
                row = f"row {row_number(file, document[2]):,}"
            what += f", in {row} of {file.path} or after it"
        files = f"{ranges[0].path}{f' and {len(ranges) - 1:,} more files' if len(ranges) > 1 else ''}"
        return Failure(
            f"a worker process died during {what} ({files}); out of memory is the usual cause. Finished units are "
            f"kept: run again, with fewer workers (workers={max(1, self._workers - 1)}) if memory is short."
        )
