"""Load the two tokenizer engines, without NumPy or PyArrow: the process that loads them forks and must have no threads.

`tokenizers` is the reference: its ids are correct by definition. `fastokens` gives the same ids about a hundred times
faster for the tokenizers that it can read. It is used only after a comparison (`nano3.data.build.engine_check`).
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFERENCE = "tokenizers"
FAST = "fastokens"


@dataclass
class Engines:
    """The loaded engines.

    Attributes:
        reference: A `tokenizers.Tokenizer`.
        fast: A native tokenizer of fastokens; None if it must not or cannot be used.
        fast_error: Why fastokens cannot be used, or "".
    """

    reference: Any
    fast: Any
    fast_error: str = ""


def load_engines(
    file: str, split_special_tokens: bool, fast: bool, meanwhile: Callable[[], None] = lambda: None
) -> Engines:
    """Load a tokenizer.json into both engines.

    fastokens takes longest to load, so everything else is done at the same time in a thread, which has ended when
    this function returns. Truncation and padding in the file are switched off: documents stay whole.

    Args:
        file: Path of the tokenizer.json.
        split_special_tokens: Whether special tokens in a text are encoded as plain text.
        fast: Whether to load fastokens.
        meanwhile: Called while fastokens loads.
    """
    if not fast:
        meanwhile()
        return Engines(load_reference(file, split_special_tokens), None)
    result: Future[Any] = Future()

    def load_rest() -> None:
        # fastokens and other work at the start of a run come first: they keep two cores busy.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        try:
            reference = load_reference(file, split_special_tokens)
            meanwhile()
            result.set_result(reference)
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=load_rest)
    thread.start()
    try:
        tokenizer, fast_error = load_fast(file)
    finally:
        thread.join()
        wait_for_thread_exit()
    return Engines(result.result(), tokenizer, fast_error)


def load_fast(file: str) -> tuple[Any, str]:
    """Load a tokenizer.json into fastokens; return (None, reason) if that fails."""
    from fastokens import _native

    try:
        tokenizer = _native.Tokenizer.from_file(file)
    except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
        return None, f"fastokens cannot read this tokenizer: {error}"
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, ""


def load_reference(file: str, split_special_tokens: bool) -> Any:
    """Load a tokenizer.json into tokenizers."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = split_special_tokens
    return tokenizer


def wait_for_thread_exit() -> None:
    """Wait until the kernel has removed ended threads (Linux): `join` returns slightly earlier."""
    tasks, end = Path("/proc/self/task"), time.monotonic() + 1
    while tasks.is_dir() and len(list(tasks.iterdir())) > threading.active_count() and time.monotonic() < end:
        time.sleep(0.0005)
