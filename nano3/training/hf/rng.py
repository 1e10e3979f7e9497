"""The random number generators that a run may draw from, as a plain value that torch.load reads with weights_only."""

import random
from typing import Any


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch (every device)."""
    from accelerate.utils import set_seed

    set_seed(seed)


def rng_state() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators."""
    import numpy
    import torch

    kind, keys, place, has_gauss, gauss = numpy.random.get_state()
    version, words, extra = random.getstate()
    return {
        "python": [version, list(words), extra],
        "numpy": [kind, [int(k) for k in keys], place, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`. Generators of devices that are not there now are left out."""
    import numpy
    import torch

    version, words, extra = state["python"]
    random.setstate((version, tuple(words), extra))
    kind, keys, place, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), place, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
