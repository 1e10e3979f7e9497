"""Kinds of GPUs: by name, and that of this machine."""

from pathlib import Path

import pytest

from nano3.training.cost.gpus import GPU_KINDS, gpu_kind, gpu_of_run, local_gpu
from nano3.utils.errors import UserError

MODELS = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA GB300": "gb300",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA L4": None,
}


@pytest.mark.parametrize(("model", "name"), MODELS.items())
def test_the_driver_names_the_kind(model: str, name: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "0000:01:00.0"
    folder.mkdir()
    (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 100\n")
    found = local_gpu(tmp_path)
    assert (found and found.name) == name


def test_without_a_gpu(tmp_path: Path) -> None:
    assert local_gpu(tmp_path) is None
    assert local_gpu(tmp_path / "missing") is None


def test_a_name_is_taken_in_any_case_and_a_wrong_one_refused() -> None:
    assert gpu_kind("H200").title == "H200"
    with pytest.raises(UserError, match=r"cluster\.gpu=h10: no such kind of GPU"):
        gpu_kind("h10")


def test_elsewhere_an_h100_is_assumed_and_said_so() -> None:
    assert gpu_of_run(None, local=False) == (GPU_KINDS["h100"], True)
    assert gpu_of_run("gb200", local=False) == (GPU_KINDS["gb200"], False)


@pytest.mark.parametrize("kind", GPU_KINDS.values(), ids=list(GPU_KINDS))
def test_units(kind: object) -> None:
    """A slip of three digits would go unnoticed in a table of estimates."""
    gpu = GPU_KINDS[kind.name]  # type: ignore[attr-defined]
    assert 1e14 < gpu.bf16 < 1e16 and (gpu.fp8 is None or gpu.fp8 == pytest.approx(2 * gpu.bf16, rel=0.01))
    assert 7e10 < gpu.memory < 4e11 and 1e12 < gpu.bandwidth < 1e13
    assert gpu.network < gpu.nvlink < gpu.bandwidth
