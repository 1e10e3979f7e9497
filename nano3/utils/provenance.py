"""Which code runs and for whom: Git commit, installed packages and how to add some, user name."""

import getpass
import importlib.util
import os
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of installed packages


def git(folder: Path, *words: str) -> str:
    """Return the output of a git command in `folder`, or "" if git is missing or fails."""
    return git_bytes(folder, *words).decode(errors="surrogateescape")


def git_bytes(folder: Path, *words: str) -> bytes:
    """Return the output of a git command as bytes: a diff has the encodings of its files."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    except OSError:  # git is missing or not executable
        return b""
    return done.stdout if done.returncode == 0 else b""


def commit_of(root: Path) -> str | None:
    """Return the commit of the working copy `root` that nano3 runs from, or None for an installed package.

    An installed package may be inside another project's repository (in its .venv), whose commit is not nano3's.
    """
    if not git(root, "ls-files", "--", "nano3/__init__.py"):
        return None
    return git(root, "rev-parse", "HEAD").strip() or None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each installed package; packages that are not installed are omitted."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def is_installed(name: str) -> bool:
    """Return whether module `name` can be imported, without importing more than its parent packages."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def missing_modules(names: Iterable[str]) -> list[str]:
    """Return the modules that cannot be imported, without importing more than their parent packages."""
    return [name for name in names if not is_installed(name)]


def install_command(*extras: str) -> str:
    """Return the command that adds extras of nano3 to this installation: uv's in a checkout, otherwise pip's.

    Without --inexact, uv would remove the extras that are not named. pip takes the extras of the installed package.
    """
    if (ROOT / "pyproject.toml").is_file():
        return " ".join(["uv sync --inexact", *(f"--extra {name}" for name in extras)])
    return f"pip install 'nano3[{','.join(extras)}]'"


def user_name() -> str:
    """Return the login name, or "uid NUMBER" if the user has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
