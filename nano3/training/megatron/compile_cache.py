"""Where compiled GPU kernels are kept between starts, so that only the first one on a kind of machine pays for them.

Compiling and tuning the Mamba and MoE kernels takes minutes. The results hold for one kind of GPU and one version of
torch and triton, so each has a folder of its own under $NANO3_CACHE (default ~/.cache/nano3); all nodes may share it.
"""

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# The driver's own description of each GPU; reading it needs neither torch nor a context on the GPU.
GPUS = Path("/proc/driver/nvidia/gpus")


def set_compile_cache() -> Path:
    """Name the folder to Triton and Inductor, unless the user has named one. Call it before torch is imported."""
    folder = kernel_folder()
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    # Keep the winners of autotuning too, not only the compiled candidates.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    return folder


def kernel_folder() -> Path:
    """For example ~/.cache/nano3/kernels/nvidia-h100-80gb-hbm3_torch-2.11.0_triton-3.6.0."""
    parts = [gpu_kind(), *(f"{name}-{_version(name)}" for name in ("torch", "triton"))]
    return cache_home() / "kernels" / "_".join(parts)


def cache_home() -> Path:
    """$NANO3_CACHE, by default ~/.cache/nano3."""
    return Path(os.environ.get("NANO3_CACHE", "~/.cache/nano3")).expanduser().absolute()


def gpu_kind() -> str:
    """Name of this machine's first GPU in a form for file names; `no-gpu` without one."""
    for path in sorted(GPUS.glob("*/information")):
        if found := re.search(r"^Model:\s*(.+?)\s*$", path.read_text(), re.MULTILINE):
            return re.sub(r"[^a-z0-9.]+", "-", found[1].lower()).strip("-")
    return "no-gpu"


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "none"
