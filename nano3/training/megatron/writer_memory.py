"""Host memory of the process that writes checkpoints, allocated before the first save needs it.

That process copies a checkpoint to pinned host memory, and training waits for the copy. At the first save it waits for
the allocation, too: torch allocates tensor by tensor, in blocks of powers of two, and keeps the blocks for later saves.
`ReserveMemory` has the blocks of the first save allocated while the first steps run: measured in
benchmarks/results/gpu/saving_h200.txt.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from nano3.utils.console import say, size_text, warn

# A reservation of less is not worth a request: the copy of so little takes a fraction of a second.
LEAST_BYTES = 2**28


def blocks_of_a_save(optimizer: Any, weight_bytes: int) -> dict[int, int]:
    """Return how many blocks of each size (bytes) a rank's part of a checkpoint takes in pinned memory.

    A rank writes its shards of the optimizer's master weights and moments, and about as much of the weights themselves.
    It is exact for a rank that holds the whole model; with several ranks, weights are cut between them in other ways.

    Args:
        optimizer: Megatron-Core's optimizer, after its first step.
        weight_bytes: Bytes of an element of the model's weights.
    """
    return dict(Counter(block_size(size) for size in _tensor_bytes(optimizer, weight_bytes)))


def block_size(size: int) -> int:
    """Return the power of two to which torch rounds an allocation of pinned memory (CachingHostAllocator.h)."""
    return 1 << (size - 1).bit_length()


def _tensor_bytes(optimizer: Any, weight_bytes: int) -> Iterator[int]:
    """Yield the bytes of each tensor on the GPU that a rank writes."""
    if hasattr(optimizer, "chained_optimizers"):
        for part in optimizer.chained_optimizers:
            yield from _tensor_bytes(part, weight_bytes)
        return
    inner = optimizer.optimizer
    if inner is None:  # this rank has no shard
        return
    for parameter in (p for group in inner.param_groups for p in group["params"]):
        state = [v for v in inner.state.get(parameter, {}).values() if getattr(v, "ndim", 0)]
        for tensor in [parameter, *state]:
            if tensor.device.type != "cpu":
                yield tensor.numel() * tensor.element_size()
        if parameter.element_size() != weight_bytes:  # a master weight, apart from the weight itself
            yield parameter.numel() * weight_bytes


def reserve(blocks: dict[int, int]) -> None:
    """Allocate pinned memory and leave it to torch's allocator for reuse, in the process that writes checkpoints.

    If the memory does not suffice, keep what there is: the first save decides whether it is enough.

    Args:
        blocks: Number of blocks by size in bytes.
    """
    import torch

    held = []
    try:
        for size, number in sorted(blocks.items(), reverse=True):
            held += [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(number)]
    except RuntimeError as error:
        warn(f"pinned memory for checkpoints: {error}")


class ReserveMemory:
    """A callback of Megatron-Bridge that has the memory of the first save allocated after the first step.

    Every rank sends one request at the same iteration, an empty one too: Megatron-Core compares their numbers.
    """

    def __init__(self, run_in_writer: Callable[..., None]) -> None:
        """Create the callback.

        Args:
            run_in_writer: Takes Megatron-Bridge's GlobalState, a function and its arguments, and has the function run
                in the process that writes checkpoints.
        """
        self._run_in_writer = run_in_writer
        self._sent = False

    def on_train_step_end(self, context: Any) -> None:
        """Send the request after the first step, when the optimizer has its state."""
        if self._sent or context.skipped_iter:
            return
        self._sent = True
        weight_bytes = min(p.element_size() for chunk in context.model for p in chunk.parameters())
        blocks = blocks_of_a_save(context.optimizer, weight_bytes)
        total = sum(size * number for size, number in blocks.items())
        if total < LEAST_BYTES:
            blocks = {}
        self._run_in_writer(context.state, reserve, blocks)
        if blocks:
            say(f"saving in the background: reserving {size_text(total)} of pinned host memory for this rank")
