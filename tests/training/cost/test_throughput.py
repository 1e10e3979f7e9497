"""Tokens per second, FLOP/s and MFU of a step."""

import pytest

from nano3.training.cost.gpus import peak_flops
from nano3.training.cost.throughput import Throughput


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA B300 SXM6 AC", 2.25e15),
        ("NVIDIA GB300", 2.5e15),
        ("NVIDIA GH200 480GB", 989e12),
        ("Tesla T4", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_gpu_with_a_known_peak() -> None:
    found = Throughput(tokens=8000, flops_per_token=989e9, gpus=4, device_name="NVIDIA H100").metrics(2.0)
    assert found == {
        "tokens_per_s": 4000,
        "seconds_per_iteration": 2,
        "tokens_per_s_per_gpu": 1000,
        "tflops_per_gpu": 989,
        "mfu": 1,
    }


@pytest.mark.parametrize(
    ("flops", "gpus", "device", "missing"),
    [
        pytest.param(1e9, 0, "", {"tokens_per_s_per_gpu", "tflops_per_gpu", "mfu"}, id="CPU"),
        pytest.param(1e9, 1, "Tesla T4", {"mfu"}, id="unknown peak"),
        pytest.param(None, 1, "NVIDIA H100", {"tflops_per_gpu", "mfu"}, id="unknown architecture"),
    ],
)
def test_what_is_not_known_is_not_recorded(flops: float | None, gpus: int, device: str, missing: set[str]) -> None:
    known = set(Throughput(100, 1e9, 1, "NVIDIA H100").metrics(1.0))
    assert known - set(Throughput(100, flops, gpus, device).metrics(1.0)) == missing
