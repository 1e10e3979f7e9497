"""Random number generators of a run, saved as plain values that torch.load reads with weights_only."""

import random
from typing import Any


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch (every device)."""
    from accelerate.utils import set_seed

    set_seed(seed)


def rng_state() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators."""
    import numpy
    import torch

    kind, keys, position, has_gauss, gauss = numpy.random.get_state()
    version, words, extra = random.getstate()
    return {
        "python": [version, list(words), extra],
        "numpy": [kind, [int(k) for k in keys], position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Restore the states that `rng_state` returned. CUDA states are ignored if the number of devices differs."""
    import numpy
    import torch

    version, words, extra = state["python"]
    random.setstate((version, tuple(words), extra))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
