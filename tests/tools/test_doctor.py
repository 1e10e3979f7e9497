"""nano3 doctor: every line, with what to do about it."""

import argparse
from pathlib import Path

import pytest

from nano3.tools import doctor


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs it in an empty folder with only `bin` on the PATH; gives what is told of each thing."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NANO3_CONF", raising=False)

    def call() -> dict[str, str]:
        assert doctor.run(argparse.Namespace()) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[0] == "This machine"
        found = {name: line for line in told[2:] for name in doctor.LOOKS if line.startswith(f"{name}  ")}
        assert list(found) == list(doctor.LOOKS)
        return {**found, "": told[-1]}

    return call


def program(folder: Path, name: str, text: str) -> None:
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_a_machine_without_gpu_and_slurm(lines, tmp_path: Path) -> None:
    told = lines()
    assert "none (no nvidia-smi)" in told["GPU"] and "+experiment=quickstart" in told["GPU"]
    assert "none (no sbatch and srun)" in told["Slurm"] and "submit host" in told["Slurm"]
    assert "GB free" in told["memory"] and "GB free" in told["output"]
    assert "GPU, Slurm" in told[""]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin"], "it leaves nothing behind"


def test_a_machine_with_gpus_and_slurm(lines, tmp_path: Path) -> None:
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 580.1'; echo 'NVIDIA H100, 81559 MiB, 580.1'")
    for name in ("sbatch", "srun"):
        program(tmp_path, name, "exit 0")
    program(tmp_path, "sinfo", "echo batch; echo gpu")
    told = lines()
    assert told["GPU"].endswith("2 x NVIDIA H100, 81559 MiB, 580.1")
    assert told["Slurm"].endswith("partitions batch, gpu")


def test_what_does_not_answer(lines, tmp_path: Path) -> None:
    program(tmp_path, "nvidia-smi", "echo 'Failed to initialize NVML' >&2; exit 9")
    for name in ("sbatch", "srun"):
        program(tmp_path, name, "exit 0")
    program(tmp_path, "sinfo", "echo 'one' >&2; echo 'no controller' >&2; exit 1")
    told = lines()
    assert "none (Failed to initialize NVML)" in told["GPU"]
    assert "no controller" in told["Slurm"] and "scontrol ping" in told["Slurm"]


def test_places_that_cannot_be_used(lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANO3_HOME", "/proc/nope")
    monkeypatch.setenv("NANO3_CONF", str(tmp_path / "nowhere"))
    monkeypatch.setenv("NANO3_CACHE", "/proc/nope")
    told = lines()
    assert "set NANO3_HOME to a folder" in told["artifact store"]
    assert "no such folder" in told["your own conf"] and "unset NANO3_CONF" in told["your own conf"]
    assert "NANO3_CACHE" in told["kernel cache"]


def test_own_members_are_listed(lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "cluster").mkdir(parents=True)
    monkeypatch.setenv("NANO3_CONF", str(tmp_path / "mine"))
    assert "no members" in lines()["your own conf"]
    (tmp_path / "mine" / "cluster" / "hopper.yaml").write_text("")
    assert lines()["your own conf"].endswith("cluster/hopper.yaml")


def test_a_backend_that_is_not_installed(lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano3.utils.provenance.is_installed", lambda name: name != "accelerate")
    told = lines()
    assert "not installed: accelerate" in told["backend=transformers"]
    assert "uv sync --extra train" in told["backend=transformers"]
