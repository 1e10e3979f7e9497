"""Python's garbage collector, held back where a great deal is made and none of it is garbage."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused(*, freeze: bool = False) -> Iterator[None]:
    """No collection while the block runs: each would search all that was made so far, and find nothing.

    With `freeze` no later collection looks at what is there when the block has ended. For imports: Megatron-Bridge's
    leave so many objects behind that searching them takes half a second whenever a collection is due, with the GPU
    waiting (benchmarks/results/gpu/imports_cpu.txt).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
        if freeze:
            gc.freeze()
    finally:
        if was:
            gc.enable()
