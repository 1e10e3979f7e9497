"""The cache of compiled GPU kernels, so that only the first run on a kind of machine compiles them.

Compiling and tuning the Mamba and MoE kernels takes minutes. The results are valid for one kind of GPU and one version
of torch and triton, so each combination has its own folder under $NANO3_CACHE (default ~/.cache/nano3). Nodes may
share it.
"""

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nano3.utils.files import expand_user

# The driver's description of each GPU. Reading it needs neither torch nor a GPU context.
GPUS = Path("/proc/driver/nvidia/gpus")


def set_compile_cache() -> Path:
    """Point Triton and Inductor to the cache, unless the user has set a folder, and return it.

    Call this before torch is imported.
    """
    folder = kernel_folder()
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    # Cache the results of autotuning as well as the compiled candidates.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    return folder


def kernel_folder() -> Path:
    """Return the folder for this GPU and these versions.

    For example ~/.cache/nano3/kernels/nvidia-h100-80gb-hbm3_torch-2.11.0_triton-3.6.0.
    """
    names = [gpu_name(), *(f"{package}-{_version(package)}" for package in ("torch", "triton"))]
    return cache_home() / "kernels" / "_".join(names)


def cache_home() -> Path:
    """Return $NANO3_CACHE or, if it is not set or empty, ~/.cache/nano3, as an absolute path."""
    return expand_user(os.environ.get("NANO3_CACHE") or "~/.cache/nano3").absolute()


def gpu_name() -> str:
    """Return the name of the first GPU in a form for file names; `no-gpu` without one."""
    for path in sorted(GPUS.glob("*/information")):
        if found := re.search(r"^Model:\s*(.+?)\s*$", path.read_text(), re.MULTILINE):
            return re.sub(r"[^a-z0-9.]+", "-", found[1].lower()).strip("-")
    return "no-gpu"


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "none"
