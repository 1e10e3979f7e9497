"""Where a run writes and reads: told when it cannot be, each folder once, and nothing is left behind by the look."""

from pathlib import Path

import pytest

from nano3.config import PretrainConfig
from nano3.training.checks import run_folders


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    """A run below `tmp_path`, where `file` is a file in the way of any folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "NANO3_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    config = PretrainConfig()
    config.run.output_dir, config.checkpoint.save = str(tmp_path / "run"), str(tmp_path / "run/checkpoints")
    return config


def told(config: PretrainConfig) -> list[str]:
    """The keys of the problems; each says why and what to choose."""
    problems = run_folders.unwritable_problems(config)
    assert all(": cannot be written: " in p and p.endswith(f"Choose another {p.partition('=')[0]}.") for p in problems)
    return [problem.partition("=")[0] for problem in problems]


def test_folders_that_can_be_made_are_not_made(config: PretrainConfig, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert told(config) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_each_folder_in_the_way_of_a_file_is_told(config: PretrainConfig, tmp_path: Path) -> None:
    bad = str(tmp_path / "file/x")
    config.run.output_dir = config.checkpoint.save = config.logger.tensorboard_dir = bad
    config.checkpoint.save = str(tmp_path / "file/other")
    assert told(config) == ["run.output_dir", "checkpoint.save", "logger.tensorboard_dir"]


def test_what_lies_in_the_run_folder_is_told_once(config: PretrainConfig, tmp_path: Path) -> None:
    config.run.output_dir, config.checkpoint.save = str(tmp_path / "file/x"), str(tmp_path / "file/x/checkpoints")
    assert told(config) == ["run.output_dir"]


def test_a_run_that_never_saves_needs_no_place_for_it(config: PretrainConfig, tmp_path: Path) -> None:
    config.checkpoint.save, config.checkpoint.save_interval = str(tmp_path / "file/x"), 0
    assert told(config) == []
    config.checkpoint.save_interval = 10
    assert told(config) == ["checkpoint.save"]


@pytest.mark.parametrize(
    ("kind", "runtime", "keys"),
    [("local", "none", ["checkpoint.save"]), ("slurm", "none", []), ("slurm", "pyxis", ["checkpoint.save"])],
    ids=["here", "only on the nodes", "mounted from here"],
)
def test_what_only_the_nodes_have_is_left_to_them(
    config: PretrainConfig, tmp_path: Path, kind: str, runtime: str, keys: list[str]
) -> None:
    config.cluster.kind, config.cluster.container_runtime = kind, runtime
    config.checkpoint.save = str(tmp_path / "file/x")
    assert told(config) == keys


@pytest.mark.parametrize("section", ["text", None, 3, []], ids=str)
def test_a_section_that_is_none_names_no_weights(config: PretrainConfig, section: object) -> None:
    """It is refused by the preflight, which must not be kept from it."""
    config.megatron, config.run.data = {"checkpoint": section}, "/data"
    assert run_folders.folders_read(config) == ["/data"]
