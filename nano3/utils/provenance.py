"""Which code runs: the Git commit and edits of a working copy, and the versions of installed packages; and for whom."""

import getpass
import importlib.util
import os
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def git(folder: Path, *words: str) -> str:
    """Output of git in `folder`; "" when git is missing or refuses."""
    return git_bytes(folder, *words).decode(errors="surrogateescape")


def git_bytes(folder: Path, *words: str) -> bytes:
    """The same as bytes: a diff has the encodings of the files it is of."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    except OSError:  # no git, or one that must not be run
        return b""
    return done.stdout if done.returncode == 0 else b""


def commit_of(root: Path) -> str | None:
    """Commit of the working copy `root` that nano3 runs from; None for an installed package.

    An installed package may lie inside somebody else's repository (.venv): its commit is not nano3's.
    """
    if not git(root, "ls-files", "--", "nano3/__init__.py"):
        return None
    return git(root, "rev-parse", "HEAD").strip() or None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of each package; those not installed are left out."""
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


def user_name() -> str:
    """The login name; the number when this machine has no name for it, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
