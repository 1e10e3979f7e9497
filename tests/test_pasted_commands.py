"""Commands in messages work as they are shown, also in a folder with a space and letters beyond ASCII in its name."""

import shlex
import subprocess
from pathlib import Path

import pytest

from nano3.training.dataset import open_data
from nano3.training.evaluation import find_exports
from nano3.training.run.config_file import config_fix
from nano3.utils.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my Läufe" / "run 1"
    made.mkdir(parents=True)
    return made


def test_the_command_that_restores_a_configuration(folder: Path) -> None:
    (folder / "starts" / "0001").mkdir(parents=True)
    (folder / "starts" / "0001" / "config.yaml").write_text("run: {}\n")
    command = config_fix(folder / "config.yaml").removeprefix("Restore it: ")
    subprocess.run(command, shell=True, check=True, cwd="/")
    assert (folder / "config.yaml").read_text() == "run: {}\n"


def test_the_command_that_exports(folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        find_exports(folder, iteration=5, every=False)
    command = str(raised.value).partition("Write one with: ")[2].partition(" (during")[0]
    words = ["nano3", "export", str(folder), "--iteration", "5", "--output", str(folder / "exports" / "iter_0000005")]
    assert shlex.split(command) == words


def test_the_command_that_prepares_data(folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        open_data(folder / "data")
    words = shlex.split(str(raised.value).split("`")[1])
    assert words == ["python", "-m", "nano3.data_prep", f"output_dir={folder / 'data'}"]
