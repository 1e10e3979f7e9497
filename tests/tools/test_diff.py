"""nano3 diff: what differs between two runs."""

import argparse
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nano3.config import PretrainConfig
from nano3.tools import diff
from nano3.training.run.record import DataReference, save_run_config
from nano3.utils.errors import Failure, UserError


def frozen(folder: Path, lr: float = 1e-3, fingerprint: str = "content") -> Path:
    """A run folder as a start leaves it."""
    config = PretrainConfig()
    config.run.name, config.run.output_dir = folder.name, str(folder)
    config.run.data, config.optimizer.lr = "/data", lr
    config.checkpoint.save = str(folder / "checkpoints")
    save_run_config(folder, config, DataReference("Data:v1", "/data", fingerprint), [f"optimizer.lr={lr}"])
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return frozen(tmp_path / "one"), frozen(tmp_path / "two")


def told(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert diff.run(argparse.Namespace(a=str(a), b=str(b))) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_run_and_itself(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert told(runs[0], runs[0], capsys) == ["the same: configuration, data, code, packages"]


def test_places_in_the_own_folder_are_the_same(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(*runs, capsys)
    assert lines == [
        "configuration: 1 differ",
        f"what {runs[0]} {runs[1]}",
        "run.name one two",
        "the same: data, code, packages",
    ]


def test_the_newest_starts_are_compared(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs
    frozen(b, lr=0.5, fingerprint="other")
    start = b / "starts" / "0002"
    record = json.loads((start / "start.json").read_text())
    record["packages"]["torch"] = "3.0"
    del record["packages"]["numpy"]
    record["code"]["commit"] = "abc"
    (start / "start.json").write_text(json.dumps(record))
    (start / "code.diff").write_text("one\ntwo\n")
    lines = told(a, b, capsys)
    assert "optimizer.lr 0.001 0.5" in lines
    assert "fingerprint content other" in lines
    assert any(line.startswith("commit ") and line.endswith(" abc") for line in lines)
    assert any(line.endswith("2 lines (starts/*/code.diff)") for line in lines)
    assert any(line.startswith("torch ") and line.endswith(" 3.0") for line in lines)
    assert any(line.startswith("numpy ") and line.endswith(" -") for line in lines)
    assert not any(line.startswith("the same") for line in lines)


def test_what_is_no_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no start is recorded there"):
        diff.run(argparse.Namespace(a=str(runs[0]), b=str(tmp_path)))
    with pytest.raises(UserError, match="There is no run 'nowhere'"):
        diff.run(argparse.Namespace(a="nowhere", b=str(runs[0])))


@pytest.mark.parametrize("file", ["start.json", "config.yaml"])
@pytest.mark.parametrize("content", ["", "a: [", "{}"], ids=["empty", "cut", "without keys"])
def test_a_damaged_record_is_named(runs: tuple[Path, Path], file: str, content: str) -> None:
    if (file, content) == ("config.yaml", "{}"):
        pytest.skip("a configuration without keys differs in all of them")
    (runs[1] / "starts" / "0001" / file).write_text(content)
    with pytest.raises(Failure, match="two/starts/0001: the record of this start is damaged"):
        diff.run(argparse.Namespace(a=str(runs[0]), b=str(runs[1])))


def test_it_reads_what_is_frozen(runs: tuple[Path, Path]) -> None:
    """Every leaf of config.yaml is compared."""
    config = OmegaConf.to_container(OmegaConf.load(runs[0] / "config.yaml"))
    assert dict(diff.leaves(config))["optimizer.lr"] == 1e-3
