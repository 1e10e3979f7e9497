"""A full disk gives one message with the file, and the next start resumes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMALL, Commands, losses

from nano3.utils.disk_errors import permission_problem


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    cli = Commands(tmp_path_factory.mktemp("full"))
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "workers=1")
    return cli


def bash(cli: Commands, line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell. Under a limit of the file size, Python would leave compiled modules that are cut off."""
    env = {**cli.env, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(["bash", "-c", line], cwd=cli.folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [
        "nano3.data_prep --help",
        "nano3.data_prep --version",
        "nano3.pretrain --cfg job",
        f"nano3.pretrain {' '.join(SMALL)} dry_run=true",
        "nano3 artifacts list",
        "nano3 inspect data",
    ],
    ids=["help", "version", "configuration", "dry run", "artifacts", "inspect"],
)
def test_output_to_a_full_device(cli: Commands, words: str) -> None:
    done = bash(cli, f"{sys.executable} -m {words} > /dev/full")
    assert done.stderr.startswith("error: standard output: no space left on the device.")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


@pytest.mark.parametrize(
    "kilobytes", [16, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 4, 64, 256, 1024, 4096))]
)
def test_a_run_with_a_file_size_limit(cli: Commands, kilobytes: int) -> None:
    """A file size limit (ulimit -f) makes the first larger file fail, wherever in the run it is written."""
    name = f"limit{kilobytes}"
    words = [*SMALL, f"run.name={name}", f"run.data={cli.folder}/data"]
    done = bash(cli, f"ulimit -f {kilobytes}; {sys.executable} -m nano3.pretrain {' '.join(words)}")
    assert "Traceback" not in done.stderr, done.stderr
    if kilobytes <= 1024:
        assert done.returncode == 1
        assert f"{cli.folder}/" in done.stderr.rpartition("error: ")[2]
    cli("-m", "nano3.pretrain", *words)
    assert sorted(losses(cli.run_dir(name))) == [1, 2, 3, 4, 5, 6]


def test_a_preparation_with_a_file_size_limit(cli: Commands) -> None:
    """A preparation under such a limit fails too and names the file."""
    words = f"nano3.data_prep data_blend=sample output_dir={Path('other')} workers=1"
    done = bash(cli, f"ulimit -f 64; {sys.executable} -m {words}")
    assert "Traceback" not in done.stderr, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert done.returncode == 1


def test_of_two_names_the_one_that_lacks_permissions_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a rename; the second name is often a new file in a folder that may be written."""
    (tmp_path / "theirs").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, *a, **kw: Path(path).name != "theirs" and allowed(path, *a, **kw))
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "theirs"), None, str(tmp_path / "new"))
    assert permission_problem(error).startswith(f"{tmp_path}/theirs: permission denied. It belongs to ")
    assert "may not read or write or search it" in permission_problem(error)
