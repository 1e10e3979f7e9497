"""The two tokenizer engines, loaded without numpy or pyarrow: the process that loads them must have no threads when
it forks.

`tokenizers` is the reference: its ids are right by definition. `fastokens` gives the same ids a hundred times faster
where it can read the tokenizer; it is used only after a proof (`tokenize.py`).
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
    """`fast` is None when it may not or cannot be used; `why_not` then says why."""

    reference: Any
    fast: Any
    why_not: str = ""


def load_engines(
    file: str, split_special_tokens: bool, fast: bool, meanwhile: Callable[[], None] = lambda: None
) -> Engines:
    """Load a tokenizer.json into both engines (the reference only, when not `fast`).

    The fast engine takes longest: the rest, `meanwhile` included, is done beside it in a thread, which has ended when
    this returns. Truncation and padding that the file may ask for are switched off: documents stay whole.
    """
    if not fast:
        meanwhile()
        return Engines(load_reference(file, split_special_tokens), None)
    beside: Future[Any] = Future()

    def others() -> None:
        # The fast engine and what else a run does at its start are waited for first: two cores have enough in them.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        try:
            reference = load_reference(file, split_special_tokens)
            meanwhile()
            beside.set_result(reference)
        except BaseException as error:
            beside.set_exception(error)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        quick, why_not = load_fast(file)
    finally:
        thread.join()
        wait_for_thread_exit()
    return Engines(beside.result(), quick, why_not)


def load_fast(file: str) -> tuple[Any, str]:
    """Load a tokenizer.json into fastokens; (None, why not) when it cannot be."""
    from fastokens import _native

    try:
        quick = _native.Tokenizer.from_file(file)
    except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
        return None, f"fastokens cannot read this tokenizer: {error}"
    quick.no_truncation()
    quick.no_padding()
    return quick, ""


def wait_for_thread_exit() -> None:
    """Until threads that have ended are gone from the process (Linux): `join` returns a moment before they are."""
    tasks, end = Path("/proc/self/task"), time.monotonic() + 1
    while tasks.is_dir() and len(list(tasks.iterdir())) > threading.active_count() and time.monotonic() < end:
        time.sleep(0.0005)


def load_reference(file: str, split_special_tokens: bool) -> Any:
    """Load a tokenizer.json into tokenizers."""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(file)
    reference.no_truncation()
    reference.no_padding()
    reference.encode_special_tokens = split_special_tokens
    return reference
