"""The kernel cache has one folder per kind of GPU and version of torch and triton."""

import os
from pathlib import Path

import pytest

from nano3.training.megatron import compile_cache


def fake_gpu(root: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Write the driver's description of one GPU, as in /proc."""
    file = root / "0000:18:00.0" / "information"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"Model: \t\t {model}\nIRQ:   \t\t 18\n")
    monkeypatch.setattr(compile_cache, "GPUS", root)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_AUTOTUNING"):
        monkeypatch.delenv(name, raising=False)


def test_the_folder_names_gpu_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(tmp_path / "proc", monkeypatch, "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(compile_cache, "version", lambda package: {"torch": "2.11.0+cu130", "triton": "3.6.0"}[package])
    monkeypatch.setenv("NANO3_CACHE", str(tmp_path / "cache"))
    folder = compile_cache.set_compile_cache()
    assert folder == tmp_path / "cache/kernels/nvidia-h100-80gb-hbm3_torch-2.11.0_triton-3.6.0"
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")
    assert os.environ["TRITON_CACHE_AUTOTUNING"] == "1"
    fake_gpu(tmp_path / "proc", monkeypatch, "NVIDIA H200")
    assert compile_cache.kernel_folder() != folder


def test_without_a_gpu_or_triton_there_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise compile_cache.PackageNotFoundError(package)

    monkeypatch.setattr(compile_cache, "GPUS", tmp_path / "nothing")
    monkeypatch.setattr(compile_cache, "version", absent)
    assert compile_cache.kernel_folder().name == "no-gpu_torch-none_triton-none"


def test_folders_set_by_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/shared")
    monkeypatch.setenv("TRITON_CACHE_AUTOTUNING", "0")
    compile_cache.set_compile_cache()
    assert (os.environ["TRITON_CACHE_DIR"], os.environ["TRITON_CACHE_AUTOTUNING"]) == ("/shared", "0")
