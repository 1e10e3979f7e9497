"""The code that runs is named rightly: nano3's own commit, never that of a repository it was installed into."""

import subprocess
from pathlib import Path

import pytest

from nano3.utils.provenance import commit_of, git, installed_versions


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


def test_a_package_inside_somebody_elses_repository_has_none(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").touch()
    commit(tmp_path, "theirs.py")
    site = tmp_path / ".venv" / "site-packages"
    (site / "nano3").mkdir(parents=True)
    (site / "nano3" / "__init__.py").touch()
    assert git(site, "rev-parse", "HEAD") and commit_of(site) is None


@pytest.mark.parametrize("words", [["no-such-command"], ["rev-parse", "no-such-name"]], ids=" ".join)
def test_what_git_refuses_is_empty(repository: Path, words: list[str]) -> None:
    assert git(repository, *words) == ""


def test_only_installed_packages_have_a_version() -> None:
    assert list(installed_versions(["numpy", "no-such-package"])) == ["numpy"]
