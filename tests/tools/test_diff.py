"""nano3 diff: compare two runs."""

import argparse
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nano3.config import PretrainConfig
from nano3.data.dataset.checksum import Checksum
from nano3.tools import diff
from nano3.training.run.record import DataReference, save_run_config
from nano3.utils.errors import UserError
from nano3.utils.records import CHECKSUM, DamagedRecordError, write_record


def make_run(folder: Path, lr: float = 1e-3, fingerprint: str = "content") -> Path:
    """Write a run folder with the record of a start."""
    config = PretrainConfig()
    config.run.name, config.run.output_dir = folder.name, str(folder)
    config.run.data, config.optimizer.lr = "/data", lr
    config.checkpoint.save = str(folder / "checkpoints")
    save_run_config(folder, config, DataReference("Data:v1", "/data", fingerprint), [f"optimizer.lr={lr}"])
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return make_run(tmp_path / "one"), make_run(tmp_path / "two")


def diff_lines(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the output with single spaces."""
    assert diff.run(argparse.Namespace(a=str(a), b=str(b))) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_run_compared_with_itself(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert diff_lines(runs[0], runs[0], capsys) == ["the same: configuration, data, code, packages"]


def test_paths_in_the_own_folder_compare_equal(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lines = diff_lines(*runs, capsys)
    assert lines == [
        "configuration: 1 different",
        f"key {runs[0]} {runs[1]}",
        "run.name one two",
        "the same: data, code, packages",
    ]


def test_the_newest_starts_are_compared(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs
    make_run(b, lr=0.5, fingerprint="other")
    start = b / "starts" / "0002"
    record = json.loads((start / "start.json").read_text())
    record["packages"]["torch"] = "3.0"
    del record["packages"]["numpy"]
    record["code"]["commit"] = "abc"
    record["code"]["diff_xxh128"] = Checksum(b"one\ntwo\n").hexdigest()
    del record[CHECKSUM]
    write_record(start / "start.json", record)
    (start / "code.diff").write_text("one\ntwo\n")
    lines = diff_lines(a, b, capsys)
    assert "optimizer.lr 0.001 0.5" in lines
    assert "fingerprint content other" in lines
    assert any(line.startswith("commit ") and line.endswith(" abc") for line in lines)
    assert any(line.endswith("2 lines (starts/*/code.diff)") for line in lines)
    assert any(line.startswith("torch ") and line.endswith(" 3.0") for line in lines)
    assert any(line.startswith("numpy ") and line.endswith(" -") for line in lines)
    assert not any(line.startswith("the same") for line in lines)


def test_folders_without_a_start_are_rejected(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no start is recorded there"):
        diff.run(argparse.Namespace(a=str(runs[0]), b=str(tmp_path)))
    with pytest.raises(UserError, match="There is no run 'nowhere'"):
        diff.run(argparse.Namespace(a="nowhere", b=str(runs[0])))


@pytest.mark.parametrize("file", ["start.json", "config.yaml"])
@pytest.mark.parametrize("content", ["", "a: [", "{}"], ids=["empty", "truncated", "without keys"])
def test_a_damaged_record_is_named(runs: tuple[Path, Path], file: str, content: str) -> None:
    (runs[1] / "starts" / "0001" / file).write_text(content)
    with pytest.raises(DamagedRecordError, match=f"two/starts/0001/{file}: damaged .* Remove {runs[1]}/starts/0001"):
        diff.run(argparse.Namespace(a=str(runs[0]), b=str(runs[1])))


def test_every_setting_is_compared(runs: tuple[Path, Path]) -> None:
    """The keys are the leaves of config.yaml."""
    config = OmegaConf.to_container(OmegaConf.load(runs[0] / "config.yaml"))
    assert dict(diff.leaves(config))["optimizer.lr"] == 1e-3
