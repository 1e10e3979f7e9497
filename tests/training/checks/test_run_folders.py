"""Folders that a run cannot write are reported once each, and the check creates nothing."""

from pathlib import Path

import pytest

from nano3.config import PretrainConfig
from nano3.training.checks import run_folders
from nano3.training.run.record import run_config_text


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    """A run below `tmp_path`, in which `file` is a file and no folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "NANO3_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    config = PretrainConfig()
    config.run.output_dir, config.checkpoint.save = str(tmp_path / "run"), str(tmp_path / "run/checkpoints")
    return config


def unwritable_keys(config: PretrainConfig) -> list[str]:
    """Return the keys of the problems, each of which names the reason and the key to change."""
    problems = run_folders.unwritable_problems(config)
    assert all(": cannot be written: " in p and p.endswith(f"Choose another {p.partition('=')[0]}.") for p in problems)
    return [problem.partition("=")[0] for problem in problems]


def test_folders_that_can_be_made_are_not_made(config: PretrainConfig, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert unwritable_keys(config) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_each_folder_below_a_file_is_reported(config: PretrainConfig, tmp_path: Path) -> None:
    bad = str(tmp_path / "file/x")
    config.run.output_dir = config.checkpoint.save = config.logger.tensorboard_dir = bad
    config.checkpoint.save = str(tmp_path / "file/other")
    assert unwritable_keys(config) == ["run.output_dir", "checkpoint.save", "logger.tensorboard_dir"]


def test_a_folder_in_the_run_folder_is_not_reported_again(config: PretrainConfig, tmp_path: Path) -> None:
    config.run.output_dir, config.checkpoint.save = str(tmp_path / "file/x"), str(tmp_path / "file/x/checkpoints")
    assert unwritable_keys(config) == ["run.output_dir"]


def test_a_run_that_never_saves_needs_no_checkpoint_folder(config: PretrainConfig, tmp_path: Path) -> None:
    config.checkpoint.save, config.checkpoint.save_interval = str(tmp_path / "file/x"), 0
    assert unwritable_keys(config) == []
    config.checkpoint.save_interval = 10
    assert unwritable_keys(config) == ["checkpoint.save"]


@pytest.mark.parametrize(
    ("kind", "runtime", "keys"),
    [("local", "none", ["checkpoint.save"]), ("slurm", "none", []), ("slurm", "pyxis", ["checkpoint.save"])],
    ids=["here", "only on the nodes", "mounted from here"],
)
def test_folders_of_the_nodes_are_left_to_the_ranks(
    config: PretrainConfig, tmp_path: Path, kind: str, runtime: str, keys: list[str]
) -> None:
    config.cluster.kind, config.cluster.container_runtime = kind, runtime
    config.checkpoint.save = str(tmp_path / "file/x")
    assert unwritable_keys(config) == keys


@pytest.mark.parametrize("section", ["text", None, 3, []], ids=str)
def test_an_invalid_section_names_no_weights(config: PretrainConfig, section: object) -> None:
    """The preflight reports the section."""
    config.megatron, config.run.data = {"checkpoint": section}, "/data"
    assert run_folders.folders_read(config) == ["/data"]


@pytest.mark.parametrize("name", ["config.yaml", "loss.png", "samples.txt"])
def test_files_of_a_user_are_not_replaced(tmp_path: Path, name: str) -> None:
    """Before the first start; afterwards the files of these names are the run's."""
    assert run_folders.foreign_file_problems(tmp_path) == []
    (tmp_path / name).write_text("mine: 1\n")
    (problem,) = run_folders.foreign_file_problems(tmp_path)
    assert f"did not write and that the run would replace: {name}. Move" in problem
    (tmp_path / "starts/0001").mkdir(parents=True)
    (tmp_path / "starts/0001/start.json").write_text("{}")
    assert run_folders.foreign_file_problems(tmp_path) == []


def test_a_run_whose_starts_were_removed_is_still_a_run(tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"x")
    (tmp_path / "config.yaml").write_text(run_config_text(PretrainConfig()))
    assert run_folders.foreign_file_problems(tmp_path) == []
