"""nano3 doctor: every line with its advice."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nano3.tools import doctor
from nano3.utils.provenance import install_command

Report = Callable[[], dict[str, str]]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """Run the tool in an empty folder with only `bin` on PATH; return its lines by name, the last one by ""."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NANO3_CONF", raising=False)

    def call() -> dict[str, str]:
        assert doctor.run(argparse.Namespace()) == 0
        output = capsys.readouterr().out.splitlines()
        assert output[0] == "This machine"
        found = {name: line for line in output[2:] for name in doctor.CHECKS if line.startswith(f"{name}  ")}
        assert list(found) == list(doctor.CHECKS)
        return {**found, "": output[-1]}

    return call


def write_program(folder: Path, name: str, text: str) -> None:
    """Write a shell script to `bin`."""
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_a_machine_without_gpu_and_slurm(report: Report, tmp_path: Path) -> None:
    lines = report()
    assert "none (no nvidia-smi)" in lines["GPU"] and "+experiment=quickstart" in lines["GPU"]
    assert "none (no sbatch and srun)" in lines["Slurm"] and "submit host" in lines["Slurm"]
    assert re.search(r"[\d.,]+ [MG]B of [\d.,]+ GB free", lines["memory"]) and "B free" in lines["output"]
    assert "GPU, Slurm" in lines[""]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin"], "no files are left behind"


def test_a_machine_with_gpus_and_slurm(report: Report, tmp_path: Path) -> None:
    write_program(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 580.1'; echo 'NVIDIA H100, 81559 MiB, 580.1'")
    for name in ("sbatch", "srun"):
        write_program(tmp_path, name, "exit 0")
    write_program(tmp_path, "sinfo", "echo batch; echo gpu")
    lines = report()
    assert lines["GPU"].endswith("2 x NVIDIA H100, 81559 MiB, 580.1")
    assert lines["Slurm"].endswith("partitions batch, gpu")


def test_failing_programs(report: Report, tmp_path: Path) -> None:
    write_program(tmp_path, "nvidia-smi", "echo 'Failed to initialize NVML' >&2; exit 9")
    for name in ("sbatch", "srun"):
        write_program(tmp_path, name, "exit 0")
    write_program(tmp_path, "sinfo", "echo 'one' >&2; echo 'no controller' >&2; exit 1")
    lines = report()
    assert "none (Failed to initialize NVML)" in lines["GPU"]
    assert "no controller" in lines["Slurm"] and "scontrol ping" in lines["Slurm"]


def test_unusable_folders(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANO3_HOME", "/proc/nope")
    monkeypatch.setenv("NANO3_CONF", str(tmp_path / "nowhere"))
    monkeypatch.setenv("NANO3_CACHE", "/proc/nope")
    lines = report()
    assert "set NANO3_HOME to a folder that you can write to" in lines["artifact store"]
    assert "no such folder" in lines["your own conf"] and "unset NANO3_CONF" in lines["your own conf"]
    assert "NANO3_CACHE" in lines["kernel cache"]


def test_own_members_are_listed(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "cluster").mkdir(parents=True)
    monkeypatch.setenv("NANO3_CONF", str(tmp_path / "mine"))
    assert "no members" in report()["your own conf"]
    (tmp_path / "mine" / "cluster" / "hopper.yaml").write_text("")
    assert report()["your own conf"].endswith("cluster/hopper.yaml")


def test_a_backend_that_is_not_installed(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano3.utils.provenance.is_installed", lambda name: name != "accelerate")
    lines = report()
    assert "not installed: accelerate" in lines["backend=transformers"]
    assert install_command("train") in lines["backend=transformers"]
