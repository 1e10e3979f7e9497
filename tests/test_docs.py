"""The documentation is run. Fenced blocks marked `bash` run here, `bash slow` and `bash slurm` with those markers.

Blocks of one page run in order in one folder, with `set -e`, as a reader would type them. `text` blocks do not run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```bash ?(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


def scripts(mark: str) -> list[Path]:
    return [page for page in PAGES if script(page, mark)]


def script(page: Path, mark: str) -> str:
    """The page's commands with this mark; `make` is left to .ci/run, which runs those commands in a fresh clone."""
    blocks = [text for found, text in BLOCK.findall(page.read_text()) if found == mark]
    return "".join(line for block in blocks for line in block.splitlines(True) if not line.startswith("make "))


def run(page: Path, mark: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NANO3_HOME": str(folder / "artifacts"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-ec", script(page, mark)], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", scripts(""), ids=lambda p: p.name)
def test_commands(page: Path, tmp_path: Path) -> None:
    run(page, "", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", scripts("slow"), ids=lambda p: p.name)
def test_slow_commands(page: Path, tmp_path: Path) -> None:
    run(page, "slow", tmp_path)


@pytest.mark.slurm
@pytest.mark.parametrize("page", scripts("slurm"), ids=lambda p: p.name)
def test_slurm_commands(page: Path, tmp_path: Path) -> None:
    run(page, "slurm", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link.strip()).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_test_files_exist_and_are_not_ignored(page: Path) -> None:
    """A pattern of .gitignore that matches a folder of tests leaves its new files out of every commit."""
    named = set(re.findall(r"\btests/[\w/]+\.py\b", page.read_text()))
    assert [name for name in named if not (ROOT / name).is_file()] == []
    if named and shutil.which("git"):
        ignored = subprocess.run(
            ["git", "check-ignore", "--no-index", *named], cwd=ROOT, capture_output=True, text=True
        )
        assert ignored.stdout == ""


def test_pages_that_the_code_names_exist() -> None:
    """Messages and help send readers there."""
    files = [path for folder in ("nano3", "launch", "conf") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".yaml")}
    named = {(name, str(path)) for path, text in texts.items() for name in re.findall(r"\bdocs/[\w-]+\.md", text)}
    assert len(named) > 5
    assert [pair for pair in sorted(named) if not (ROOT / pair[0]).is_file()] == []


def test_every_make_target_in_the_documentation_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        t
        for page in PAGES
        for t in re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`[^`\n]+`|^make.*", page.read_text(), re.M)))
    }
    assert named <= targets
