"""Load the tokenizer engines, fork the workers, and wait for them (see `worker_pool`).

    python -m nano3.data.build.worker_server SOCKET TOKENIZER_FILE

SOCKET is a file descriptor. TOKENIZER_FILE is a tokenizer.json to preload, or "" to wait for the plan.
"""

import contextlib
import gc
import hashlib
import importlib
import os
import socket
import sys
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.data.build.worker_client import Task, receive_plan
from nano3.data.tokenization.engines import Engines, load_engines
from nano3.utils.child_processes import exit_with_parent
from nano3.utils.errors import Failure, Nano3Error

if TYPE_CHECKING:
    from nano3.data.build.receipts import UnitReceipt
    from nano3.data.build.unit_encoder import Worker


@dataclass
class PreloadedEngines:
    """Engines loaded before the plan was known, and the SHA-256 of their tokenizer.json."""

    engines: Engines
    sha256: str


def main() -> None:
    """Load the engines, wait for the plan, fork a worker for each of its sockets, and wait for them."""
    control, file = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    exit_with_parent()
    gc.disable()  # loading makes many objects and no garbage
    preloaded = preload_engines(file) if file else None
    try:
        plan_path, fast, sockets = receive_plan(control)
    except (EOFError, ConnectionResetError):
        os._exit(0)  # the run needs no workers
    control.close()
    engines: Engines | Nano3Error
    try:
        engines = load_plan_engines(plan_path, fast, preloaded)
    except Nano3Error as error:
        engines = error
    del preloaded
    trim_heap()
    parent = os.getpid()
    for fd in sockets:
        if os.fork() == 0:
            for other in sockets:
                if other != fd:
                    os.close(other)
            gc.enable()
            exit_with_parent()
            if os.getppid() != parent:
                os._exit(1)
            serve_tasks(Connection(fd), plan_path, engines)
            os._exit(0)
    for fd in sockets:
        os.close(fd)
    for _ in sockets:
        os.wait()
    os._exit(0)  # skip the cleanup: freeing a large tokenizer takes time


def preload_engines(file: str) -> PreloadedEngines | None:
    """Load the tokenizer.json that the plan will probably name.

    Return None if it cannot be loaded; if the plan names it, `load_plan_engines` reports the error.
    """
    try:
        sha256 = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return PreloadedEngines(load_engines(file, False, True, meanwhile=import_worker), sha256)
    except Exception:  # tokenizers raises bare Exception for a file it cannot read
        return None


def load_plan_engines(plan_path: Path, fast: bool, preloaded: PreloadedEngines | None = None) -> Engines:
    """Load the engines for a plan and import a worker's modules.

    Leave one thread only, as a fork copies no other. pyarrow, which starts one, is imported after the fork.

    Args:
        plan_path: Path of the plan.
        fast: Whether the fast engine may be used.
        preloaded: Engines to use if they are those of the plan.

    Raises:
        Failure: If the tokenizer cannot be loaded.
    """
    import msgspec

    plan = msgspec.json.decode(plan_path.read_bytes())
    info, split = plan["tokenizer"], plan["options"]["split_special_tokens"]
    file = f"{info['folder']}/{info['json_name']}"
    if preloaded and preloaded.sha256 == info["sha256"]:
        preloaded.engines.reference.encode_special_tokens = split
        return preloaded.engines if fast else replace(preloaded.engines, fast=None)
    try:
        return load_engines(file, split, fast, meanwhile=import_worker)
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        raise Failure(f"{file}: the tokenizer cannot be loaded: {error}") from error


def import_worker() -> None:
    """Import the modules that every worker needs, once for all."""
    importlib.import_module("nano3.data.build.unit_encoder")


def serve_tasks(connection: Connection, plan_path: Path, engines: Engines | Nano3Error) -> None:
    """Run tasks until the socket closes, or is reset because the other side died with unread messages.

    Args:
        connection: Socket to the pool.
        plan_path: Path of the plan.
        engines: The engines, or the error to report for every task.
    """
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        run_tasks(connection, plan_path, engines)


def run_tasks(connection: Connection, plan_path: Path, engines: Engines | Nano3Error) -> None:
    """Run tasks forever and send their results.

    Args:
        connection: Socket to the pool.
        plan_path: Path of the plan.
        engines: The engines, or the error to report for every task.

    Raises:
        OSError: If the socket is broken.
        EOFError: If the other side closed the socket.
    """
    from nano3.data.build.unit_encoder import EngineMismatchError

    worker: Worker | None = None
    while True:
        task: Task = connection.recv()
        try:
            if isinstance(engines, Nano3Error):
                raise engines
            if worker is None:
                worker = make_worker(connection, plan_path, engines)
            connection.send(("done", run_task(worker, engines, task)))
        except EngineMismatchError as mismatch:
            connection.send(("mismatch", str(mismatch)))
        except Nano3Error as error:
            connection.send(("error", error))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except BaseException:
            connection.send(("error", RuntimeError(f"in a worker, during {task}:\n{traceback.format_exc()}")))


def make_worker(connection: Connection, plan_path: Path, engines: Engines) -> "Worker":
    """Return the worker of this process; it reports progress on `connection`."""
    from nano3.data.build.unit_encoder import Worker
    from nano3.data.planning.plan import load_plan
    from nano3.data.tokenization.encoders import fast_encoder, reference_encoder

    gc.freeze()
    plan = load_plan(plan_path)
    fast = fast_encoder(engines.fast, plan.options.split_special_tokens) if engines.fast else None
    reference = reference_encoder(engines.reference)
    return Worker(
        plan,
        plan_path.parent,
        reference,
        fast,
        lambda size: connection.send(("tick", size)),
        lambda document: connection.send(("at", document)),
    )


def run_task(worker: "Worker", engines: Engines, task: Task) -> "UnitReceipt | str":
    """Run one task and return its result, which is small.

    Args:
        worker: The worker of this process.
        engines: Its engines.
        task: ("unit", number) or `worker_pool.COMPARE_ENGINES`.

    Returns:
        The receipt of the unit, or what differs between the engines.
    """
    if len(task) == 2:
        return worker.encode_unit(task[1])
    from nano3.data.build.engine_check import compare_engines

    return engines.fast_error or compare_engines(worker, engines)


def trim_heap() -> None:
    """Return memory freed after loading to the system (glibc only): up to 150 MB in every worker."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    main()
