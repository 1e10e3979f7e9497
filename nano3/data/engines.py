"""The two tokenizer engines, loaded without numpy or pyarrow: the process that loads them must have no threads when
it forks.

`tokenizers` is the reference: its ids are right by definition. `fastokens` gives the same ids a hundred times faster
where it can read the tokenizer; it is used only after a proof (`tokenize.py`).
"""

import threading
import time
from collections.abc import Callable
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

    The fast engine takes longer to load: that goes on in a thread, which has ended when this returns; `meanwhile` is
    called beside it. Truncation and padding that the file may ask for are switched off: documents stay whole.
    """
    quick: Any = None
    why_not = ""

    def load_fast() -> None:
        nonlocal quick, why_not
        from fastokens import _native

        try:
            quick = _native.Tokenizer.from_file(file)
        except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
            why_not = f"fastokens cannot read this tokenizer: {error}"
            return
        quick.no_truncation()
        quick.no_padding()

    thread = threading.Thread(target=load_fast)
    if fast:
        thread.start()
    try:
        reference = load_reference(file, split_special_tokens)
        meanwhile()
    finally:
        if fast:
            thread.join()
            wait_until_alone()
    return Engines(reference, quick, why_not)


def wait_until_alone() -> None:
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
