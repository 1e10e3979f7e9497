"""Whether a backend can run here is said without importing anything of it, and with how to get what is missing."""

import sys
from pathlib import Path

import pytest

from nano3.training.backend import BACKENDS, load, missing_problems, name_problems
from nano3.utils.provenance import is_installed


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose module ends the process that imports it."""
    folder = tmp_path / "heavy_of_this_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "core.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "heavier_of_this_test.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "heavy_of_this_test"


def test_is_installed_imports_nothing(package: str) -> None:
    assert is_installed(f"{package}.core") and is_installed("heavier_of_this_test")
    assert not is_installed(f"{package}.other") and not is_installed("nobody_has_this.core")
    assert f"{package}.core" not in sys.modules and "heavier_of_this_test" not in sys.modules


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_that_there_is(name: str) -> None:
    assert name_problems(name) == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("megatorn", "Did you mean 'megatron'?"),
        ("transformer", "Did you mean 'transformers'?"),
        ("nemo", "Allowed: megatron, transformers."),
        ("", "Allowed: megatron, transformers."),
    ],
)
def test_a_backend_that_there_is_not(name: str, shown: str) -> None:
    assert name_problems(name) == [f"backend={name}: no such backend. {shown}"]


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_missing_is_named_with_the_remedy(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message for all of it; what is there is not named."""
    needed = (f"{package}.core", "nobody_has_this", f"{package}.other")
    monkeypatch.setattr(load(name), "PACKAGES", needed)
    monkeypatch.setattr(load(name), "INSTALL", "the remedy")
    (problem,) = missing_problems(name)
    start = f"backend={name} needs nobody_has_this, {package}.other, not installed in this Python: the remedy"
    assert problem.startswith(start)
    assert ("+experiment=quickstart" in problem) == (name == "megatron"), "only a GPU may be what is missing"


def test_no_problem_when_nothing_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load("megatron"), "PACKAGES", (package, f"{package}.core"))
    assert missing_problems("megatron") == []
