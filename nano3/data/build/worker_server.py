"""The loading process: it loads the tokenizer's engines, forks the workers, and waits for them (`workers.py`).

python -m nano3.data.build.worker_server SOCKET TOKENIZER_FILE      # the file may be "": then only the plan says which
"""

import contextlib
import gc
import hashlib
import importlib
import os
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nano3.data.build.worker_client import receive_plan
from nano3.data.tokenization.engines import Engines, load_engines
from nano3.utils.errors import Failure, Nano3Error

Task = tuple[Any, ...]  # of workers.Pool


@dataclass
class PreloadedEngines:
    """Engines that were loaded before the plan was known, and the SHA-256 of what they were loaded from."""

    engines: Engines
    sha256: str


def main() -> None:
    """Load, wait for the plan, fork a worker for each socket that comes with it, wait for them."""
    control, file = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    exit_with_parent()
    gc.disable()  # a load makes many objects and no garbage
    ahead = preload_engines(file) if file else None
    try:
        plan_path, fast, sockets = receive_plan(control)
    except (EOFError, ConnectionResetError):
        os._exit(0)  # nobody wants it
    control.close()
    engines: Engines | Nano3Error
    try:
        engines = load_plan_engines(plan_path, fast, ahead)
    except Nano3Error as error:
        engines = error
    del ahead
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
    os._exit(0)  # there is nothing to tidy, and letting go of a large tokenizer takes time


def preload_engines(file: str) -> PreloadedEngines | None:
    """The engines of a tokenizer that the plan will probably name; None when it cannot be loaded: if the plan does name
    it, `load_plan_engines` tells why.
    """
    try:
        sha256 = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return PreloadedEngines(load_engines(file, False, True, meanwhile=import_worker), sha256)
    except Exception:  # tokenizers raises bare Exception for a file it cannot read
        return None


def load_plan_engines(plan_path: Path, fast: bool, ahead: PreloadedEngines | None = None) -> Engines:
    """The engines for a plan, and a worker's modules. Leaves one thread: pyarrow, which starts one, comes later."""
    import msgspec

    plan = msgspec.json.decode(plan_path.read_bytes())
    info, split = plan["tokenizer"], plan["options"]["split_special_tokens"]
    file = f"{info['folder']}/{info['json_name']}"
    if ahead and ahead.sha256 == info["sha256"]:
        ahead.engines.reference.encode_special_tokens = split
        return ahead.engines if fast else replace(ahead.engines, fast=None)
    try:
        return load_engines(file, split, fast, meanwhile=import_worker)
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        raise Failure(f"{file}: the tokenizer cannot be loaded: {error}") from error


def import_worker() -> None:
    """Import once what every worker needs."""
    importlib.import_module("nano3.data.build.unit_encoder")


def serve_tasks(end: Connection, plan_path: Path, engines: Engines | Nano3Error) -> None:
    """Do tasks until the socket closes, or is reset because the other side died with messages unread."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        run_tasks(end, plan_path, engines)


def run_tasks(end: Connection, plan_path: Path, engines: Engines | Nano3Error) -> None:
    """Do tasks for ever. Raises what the socket raises."""
    from nano3.data.build.unit_encoder import EngineMismatchError

    worker: Any = None
    while True:
        task = end.recv()
        try:
            if isinstance(engines, Nano3Error):
                raise engines
            if worker is None:
                worker = make_worker(end, plan_path, engines)
            end.send(("done", run_task(worker, engines, task)))
        except EngineMismatchError as mismatch:
            end.send(("mismatch", str(mismatch)))
        except Nano3Error as error:
            end.send(("error", error))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except BaseException:
            end.send(("error", RuntimeError(f"in a worker, during {task}:\n{traceback.format_exc()}")))


def make_worker(end: Connection, plan_path: Path, engines: Engines) -> Any:
    """The worker's state."""
    import gc

    from nano3.data.build.unit_encoder import Worker
    from nano3.data.planning.plan import load_plan
    from nano3.data.tokenization.encoders import fast_encoder, reference_encoder

    gc.freeze()
    plan = load_plan(plan_path)
    fast = fast_encoder(engines.fast, plan.options.split_special_tokens) if engines.fast else None
    reference = reference_encoder(engines.reference)
    return Worker(plan, plan_path.parent, reference, fast, lambda size: end.send(("tick", size)))


def run_task(worker: Any, engines: Engines, task: Task) -> Any:
    """One task; its result is small."""
    if task[0] == "unit":
        return worker.encode_unit(task[1])
    from nano3.data.build.engine_check import compare_engines

    return engines.why_not or compare_engines(worker, engines)


def trim_heap() -> None:
    """Return what loading has freed to the system, where the C library can (glibc): up to 150 MB in every worker."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def exit_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that ends. Elsewhere the closed socket does it,
    later.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
