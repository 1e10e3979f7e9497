"""Picks the backend and says, before anything heavy is imported, whether it can run here."""

from collections.abc import Callable

from nano3.utils.errors import did_you_mean
from nano3.utils.provenance import is_installed

# What each backend imports that the core installation does not hold, and how to get it.
NEEDS = {
    "transformers": (("torch", "transformers", "accelerate", "megatron.core"), "uv sync --extra train"),
    "megatron": (("torch", "megatron.bridge"), "a GPU container or the extra `megatron` (docs/gpu.md)"),
}


def name_problems(backend: str) -> list[str]:
    """Empty, or why `backend` is no backend."""
    return [] if backend in NEEDS else [f"backend={backend}: no such backend.{did_you_mean(backend, list(NEEDS))}"]


def missing_here(backend: str) -> list[str]:
    """Empty, or one message that names the packages `backend` lacks in this Python. Imports none of them."""
    packages, remedy = NEEDS[backend]
    absent = [name for name in packages if not is_installed(name)]
    if not absent:
        return []
    other = "\n  Without a GPU: +experiment=quickstart. On a cluster: cluster=slurm." if backend == "megatron" else ""
    return [f"backend={backend} needs {', '.join(absent)}, not installed in this Python: {remedy}{other}"]


def load(backend: str) -> Callable:
    """The `train` function of a backend. Heavy: imports torch and more."""
    if backend == "megatron":
        from nano3.training.megatron.backend import train
    else:
        from nano3.training.hf.backend import train
    return train
