"""Pause Python's garbage collector while many long-lived objects are created."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused(*, freeze: bool = False) -> Iterator[None]:
    """Disable garbage collection while the block runs.

    Args:
        freeze: Exclude all objects that exist at the end of the block from later collections. Used for imports:
            scanning the objects of Megatron-Bridge's imports takes half a second per collection, while the GPU waits
            (benchmarks/results/gpu/imports_cpu.txt).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if freeze:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
