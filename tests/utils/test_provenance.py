"""The commit is nano3's own, never that of a repository that nano3 is installed into."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from commands import ROOT

from nano3.data.sources.listing import DRIVER_EXTRAS
from nano3.utils import provenance
from nano3.utils.provenance import commit_of, git, git_bytes, install_command, installed_versions, is_installed


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A working copy with one commit that holds nano3/__init__.py."""
    (tmp_path / "nano3").mkdir()
    (tmp_path / "nano3" / "__init__.py").touch()
    commit(tmp_path, "nano3")
    return tmp_path


def commit(root: Path, what: str) -> None:
    words = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for more in (["init", "-q"], ["add", what], ["commit", "-qm", "first"]):
        subprocess.run([*words, *more], check=True)


def test_a_working_copy_has_commit_and_edits(repository: Path) -> None:
    assert len(commit_of(repository) or "") == 40
    assert git(repository, "diff", "HEAD") == ""
    (repository / "nano3" / "__init__.py").write_text("EDITED = 1\n")
    assert "+EDITED = 1" in git(repository, "diff", "HEAD")


def test_a_package_in_another_repository_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").touch()
    commit(tmp_path, "theirs.py")
    site = tmp_path / ".venv" / "site-packages"
    (site / "nano3").mkdir(parents=True)
    (site / "nano3" / "__init__.py").touch()
    assert git(site, "rev-parse", "HEAD") and commit_of(site) is None


@pytest.mark.parametrize("words", [["no-such-command"], ["rev-parse", "no-such-name"]], ids=" ".join)
def test_a_failing_git_command_gives_no_output(repository: Path, words: list[str]) -> None:
    assert git(repository, *words) == ""


def test_only_installed_packages_have_a_version() -> None:
    assert list(installed_versions(["numpy", "no-such-package"])) == ["numpy"]


@pytest.mark.parametrize("mode", [None, 0o644], ids=["no git", "not executable"])
def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None) -> None:
    if mode:
        (tmp_path / "git").write_text("#!/bin/sh\necho deadbeef\n")
        (tmp_path / "git").chmod(mode)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(tmp_path, "status") == "" and git_bytes(tmp_path, "status") == b"" and commit_of(tmp_path) is None


def test_a_missing_folder_has_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path / "gone") is None


def test_file_names_of_any_encoding(tmp_path: Path) -> None:
    """Every file can be opened by the name that git prints."""
    names = sorted([b"caf\xe9", b"a\nb", "é😀".encode(), b"-x", b"$(id)"])
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    listed = git(tmp_path, "ls-files", "-z", "--others", ".").split("\0")[:-1]
    assert sorted((tmp_path / name).read_bytes() for name in listed) == names


def test_a_working_copy_without_a_commit_has_none(tmp_path: Path) -> None:
    (tmp_path / "nano3").mkdir()
    (tmp_path / "nano3" / "__init__.py").touch()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    assert commit_of(tmp_path) is None


def test_versions_of_installed_packages() -> None:
    assert installed_versions([]) == {}
    found = installed_versions(["no-such-package", "PyArrow", "numpy"])
    assert list(found) == ["PyArrow", "numpy"] and all(text[0].isdigit() for text in found.values())


def test_is_installed() -> None:
    assert is_installed("json") and not is_installed("no_such_package_of_this_test")


def test_the_install_command_suits_a_checkout_and_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert install_command("train", "eval") == "pip install 'nano3[train,eval]'"
    (tmp_path / "pyproject.toml").touch()
    assert install_command("train", "eval") == "uv sync --inexact --extra train --extra eval"


def test_every_extra_that_a_message_names_exists() -> None:
    """In the source: install_command("NAME"), and the table of the drivers' extras."""
    package = Path(provenance.__file__).parents[1]
    named = set(DRIVER_EXTRAS.values())
    for path in package.rglob("*.py"):
        for words in re.findall(r"install_command\(([^)]*['\"])\)", path.read_text()):
            named |= set(re.findall(r"['\"]([\w-]+)['\"]", words))
    assert named >= {"train", "wandb", "eval", "s3", "http"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert named <= project["optional-dependencies"].keys()
