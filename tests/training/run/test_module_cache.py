"""Compiled modules are kept under $NANO3_CACHE when the installation cannot keep them."""

import compileall
import json
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import json, os, sys
from pathlib import Path
from nano3.training.run.module_cache import keep_compiled_modules
folder = keep_compiled_modules("stack", Path(os.environ["NANO3_CACHE"]) / "modules")
import stack.part
child = f"import stack.part, json; print(json.dumps(stack.part.__cached__))"
import subprocess
seen = json.loads(subprocess.check_output([sys.executable, "-c", child], text=True))
print(json.dumps([folder and str(folder), stack.part.__cached__, seen]))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An installation of the package `stack`."""
    folder = tmp_path / "site" / "stack"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "part.py"):
        (folder / name).write_text("VALUE = 1\n")
    return folder.parent


def start(site: Path, cache: Path, **env: str) -> list[str | None]:
    """Return the folder that was chosen, and where this process and its child look for the compiled module."""
    path = f"{Path(__file__).parents[3]}:{site}"
    done = subprocess.run(
        [sys.executable, "-c", START], env={"PYTHONPATH": path, "NANO3_CACHE": str(cache), **env}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_they_are_kept_if_python_may_not_write_them(site: Path, tmp_path: Path) -> None:
    folder, own, child = start(site, tmp_path / "cache", PYTHONDONTWRITEBYTECODE="1")
    assert folder == str(tmp_path / "cache/modules")
    assert own == child and own is not None and Path(own).is_relative_to(folder)
    first = Path(own).stat()
    assert start(site, tmp_path / "cache", PYTHONDONTWRITEBYTECODE="1") == [folder, own, child]
    assert Path(own).stat().st_mtime_ns == first.st_mtime_ns, "read, not compiled again"
    assert not (site / "stack/__pycache__").exists()
    (site / "stack/part.py").write_text("VALUE = 1000\n")
    start(site, tmp_path / "cache", PYTHONDONTWRITEBYTECODE="1")
    assert Path(own).stat().st_mtime_ns != first.st_mtime_ns, "compiled for the new source"


@pytest.mark.parametrize("how", ["compiled", "writable", "own folder"])
def test_nothing_is_changed_if_they_are_kept_already(site: Path, tmp_path: Path, how: str) -> None:
    env = {"PYTHONDONTWRITEBYTECODE": "1"} if how != "writable" else {}
    if how == "compiled":
        compileall.compile_dir(str(site), quiet=1)
    if how == "own folder":
        env = {"PYTHONPYCACHEPREFIX": str(tmp_path / "own"), "PYTHONDONTWRITEBYTECODE": "1"}
    folder, _, _ = start(site, tmp_path / "cache", **env)
    assert folder is None
    assert not (tmp_path / "cache").exists()
