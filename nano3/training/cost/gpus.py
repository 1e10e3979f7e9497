"""What each kind of GPU offers, from NVIDIA's data sheets. All figures are per GPU and without sparsity.

Sources: H100 Tensor Core GPU data sheet; H200 data sheet; DGX B200, DGX B300, GB200 NVL72 and GB300 NVL72
specification pages (a page gives one NVLink domain with sparsity; here it is divided by its GPUs and by two); A100
80GB data sheet. `memory` is what CUDA reports where a run recorded it (H100: benchmarks/results/gpu/recipe_h100.txt),
otherwise 0.98 of the data sheet's.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nano3.training.checks.low_precision import TITLES, TO_BF16
from nano3.utils.errors import UserError, nearest_hint


@dataclass(frozen=True)
class GpuKind:
    """One kind of GPU.

    Attributes:
        name: As in `gpu=NAME`.
        title: As printed.
        bf16: Peak of dense bf16 matrix products in FLOP/s.
        fp8: Peak of dense FP8 matrix products in FLOP/s; None if it has none.
        memory: Usable memory in bytes.
        bandwidth: Of that memory, in bytes/s.
        nvlink: Bytes/s to other GPUs of its NVLink domain, in one direction.
        domain: GPUs of one NVLink domain.
        network: Bytes/s to other domains, in one direction.
        node: GPUs of one node.
    """

    name: str
    title: str
    bf16: float
    fp8: float | None
    memory: float
    bandwidth: float
    nvlink: float
    domain: int
    network: float
    node: int = 8


_GB: Final = 1e9
GPU_KINDS: Final[dict[str, GpuKind]] = {
    kind.name: kind
    for kind in (
        GpuKind("a100", "A100", 312e12, None, 79.1 * 2**30, 2039 * _GB, 300 * _GB, 8, 25 * _GB),
        GpuKind("h100", "H100", 989e12, 1979e12, 79.2 * 2**30, 3350 * _GB, 450 * _GB, 8, 50 * _GB),
        GpuKind("h200", "H200", 989e12, 1979e12, 139.7 * 2**30, 4800 * _GB, 450 * _GB, 8, 50 * _GB),
        GpuKind("b200", "B200", 2250e12, 4500e12, 178.3 * 2**30, 8000 * _GB, 900 * _GB, 8, 50 * _GB),
        GpuKind("gb200", "GB200", 2500e12, 5000e12, 184 * _GB, 8000 * _GB, 900 * _GB, 72, 50 * _GB, 4),
        GpuKind("b300", "B300", 2250e12, 4500e12, 267 * _GB, 8000 * _GB, 900 * _GB, 8, 100 * _GB),
        GpuKind("gb300", "GB300", 2500e12, 5000e12, 278 * _GB, 8000 * _GB, 900 * _GB, 72, 100 * _GB, 4),
    )
}
# The first GPUs with MXFP8 and NVFP4 (`check_mxfp8_support` in Transformer Engine).
_BLACKWELL: Final = ("b200", "gb200", "b300", "gb300")
# Dense bf16 peak of GPUs whose layouts are not estimated, in FLOP/s.
_OTHER_PEAKS: Final = {"GH200": 989e12, "L40S": 362e12}


def gpu_kind(name: str, key: str = "cluster.gpu") -> GpuKind:
    """Return the GPU of this name.

    Args:
        name: The name.
        key: Where it was given, for the message.

    Raises:
        UserError: There is none.
    """
    found = GPU_KINDS.get(name.lower())
    if found is None:
        hint = nearest_hint(name.lower(), list(GPU_KINDS))
        raise UserError(f"{key}={name}: no such kind of GPU.{hint} Allowed: {', '.join(GPU_KINDS)}.")
    return found


def precision_problem(precision: str, gpu: GpuKind) -> str | None:
    """Return why a GPU cannot multiply in a precision, or None.

    Args:
        precision: bf16, fp8, mxfp8 or nvfp4.
        gpu: The kind of GPU.
    """
    able = [kind.name for kind in GPU_KINDS.values() if (kind.fp8 if "fp8" in precision else True)]
    if precision in ("mxfp8", "nvfp4"):
        able = [name for name in able if name in _BLACKWELL]
    if gpu.name in able:
        return None
    title = TITLES[precision]
    return f"the {gpu.title} has no matrix products in {title}. These have: {', '.join(able)}. bf16: {TO_BF16}."


def local_gpu(driver: Path = Path("/proc/driver/nvidia/gpus")) -> GpuKind | None:
    """Return the kind of this machine's first GPU, or None without a known one.

    Args:
        driver: Folder in which NVIDIA's driver describes each GPU.
    """
    for file in sorted(driver.glob("*/information")):
        try:
            words = _words(file.read_text(errors="replace").partition("\n")[0])
        except OSError:
            continue
        return next((kind for kind in GPU_KINDS.values() if kind.title in words), None)
    return None


def peak_flops(device_name: str) -> float | None:
    """Return the peak dense bf16 FLOP/s of a GPU such as "NVIDIA H100 80GB HBM3", or None if it is not known."""
    peaks = {kind.title: kind.bf16 for kind in GPU_KINDS.values()} | _OTHER_PEAKS
    return next((peaks[word] for word in _words(device_name) if word in peaks), None)


def _words(text: str) -> list[str]:
    return re.split(r"[\s-]+", text)


def gpu_of_run(chosen: str | None, local: bool) -> tuple[GpuKind, bool]:
    """Return the kind of GPU of a run, and whether it is only assumed to be an H100.

    Args:
        chosen: The name in cluster.gpu, if any.
        local: Whether the run is on this machine.

    Raises:
        UserError: There is no such kind.
    """
    if chosen is not None:
        return gpu_kind(chosen), False
    found = local_gpu() if local else None
    return (found, False) if found else (GPU_KINDS["h100"], True)
