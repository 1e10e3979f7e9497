"""launch.snapshot and launch.bootstrap: the copy of the code that a job runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_helpers import ROOT

from launch import snapshot


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small Git working copy with this code, one edit and one new file."""
    root = tmp_path / "checkout"
    for name in ("nano3", "launch", "hydra_plugins", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "sample"))
    (root / ".gitignore").write_text("*.secret\n__pycache__/\n")
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (root / "nano3" / "utils" / "files.py").write_text(
        (root / "nano3" / "utils" / "files.py").read_text() + "EDITED = True\n"
    )
    (root / "launch" / "new_module.py").write_text("NEW = 1\n")
    (root / "nano3" / "key.secret").write_text("token")
    return root


def take(code: Path, parent: Path, *entries: str) -> Path:
    """Write a snapshot in a process that runs the code in `code`, and return its folder."""
    program = f"""
from pathlib import Path
from launch import snapshot
plan = snapshot.plan_snapshot(Path({str(parent)!r}), set({entries!r}))
plan.write()
print(plan.folder)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": f"{code}:{os.environ['PYTHONPATH']}"},
        cwd=parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Path(done.stdout.strip())


def test_working_copy_with_edits(checkout: Path, tmp_path: Path) -> None:
    folder = take(checkout, tmp_path, "nano3.x:y", "launch_entries:count")
    assert (folder / "nano3" / "utils" / "files.py").read_text().endswith("EDITED = True\n")
    assert (folder / "launch" / "new_module.py").exists() and (folder / "conf" / "pretrain.yaml").exists()
    assert (folder / "launch_entries.py").exists() and (folder / "spare" / "submitit" / "__init__.py").exists()
    assert not (folder / "nano3" / "key.secret").exists(), "ignored files stay out"
    assert not list(folder.rglob("*.pyc"))
    version = json.loads((folder / "code.json").read_text())
    assert version["edited"] is True and len(version["commit"]) == 40
    assert "+EDITED = True" in (folder / "code.diff").read_text()


def test_edits_in_any_encoding(checkout: Path, tmp_path: Path) -> None:
    with (checkout / "conf" / "pretrain.yaml").open("ab") as f:
        f.write(b"# caf\xe9\n")
    (checkout / "conf" / os.fsdecode(b"caf\xe9.yaml")).write_text("")
    folder = take(checkout, tmp_path)
    assert b"+# caf\xe9\n" in (folder / "code.diff").read_bytes()
    assert (folder / "conf" / os.fsdecode(b"caf\xe9.yaml")).exists()


def test_equal_code_has_one_snapshot(checkout: Path, tmp_path: Path) -> None:
    first = take(checkout, tmp_path)
    assert take(checkout, tmp_path) == first
    (checkout / "launch" / "new_module.py").write_text("NEW = 2\n")
    assert take(checkout, tmp_path) != first
    assert (first / "launch" / "new_module.py").read_text() == "NEW = 1\n"


def test_installed_packages(checkout: Path, tmp_path: Path) -> None:
    """As installed from a wheel: no Git, and conf/ is inside the package."""
    installed = tmp_path / "lib" / "site-packages"
    for name in ("nano3", "launch"):
        shutil.copytree(checkout / name, installed / name)
    shutil.copytree(checkout / "conf", installed / "nano3" / "conf")
    folder = take(installed, tmp_path, "nano3.x:y")
    assert (folder / "nano3" / "conf" / "pretrain.yaml").exists() and (folder / "boot.py").exists()
    assert json.loads((folder / "code.json").read_text())["commit"] is None
    assert not (folder / "code.diff").exists()


def test_plan_snapshot_writes_nothing(tmp_path: Path) -> None:
    plan = snapshot.plan_snapshot(tmp_path / "slurm", {"launch_entries:count"})
    assert plan.boot.parent == plan.folder and not (tmp_path / "slurm").exists()


def test_bootstrap_puts_the_snapshot_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before the working folder and PYTHONPATH, in child processes too."""
    code, work = tmp_path / "code", tmp_path / "work"
    for path, word in ((code, "snapshot"), (work, "edited")):
        path.mkdir()
        (path / "thing.py").write_text(f"WORD = {word!r}\n")
    (code / "start.py").write_text(
        "import subprocess, sys, thing\nprint(thing.WORD, sys.argv[1:], flush=True)\n"
        "subprocess.run([sys.executable, '-c', 'import thing; print(thing.WORD)'])\n"
    )
    shutil.copy(ROOT / "launch" / "bootstrap.py", code / "boot.py")
    done = subprocess.run(
        [sys.executable, str(code / "boot.py"), "-u", "-m", "start", "a b"], cwd=work, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(work)}, check=True,
    )  # fmt: skip
    assert done.stdout == "snapshot ['a b']\nsnapshot\n"


def test_two_submissions_write_one_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two submissions share a slurm folder and write the same snapshot at the same time."""
    plan, describe = snapshot.plan_snapshot(tmp_path, {"launch_entries:count"}), snapshot.code_version

    def meanwhile(root: Path) -> dict[str, object]:
        monkeypatch.setattr(snapshot, "code_version", describe)
        plan.write()
        return describe(root)

    monkeypatch.setattr(snapshot, "code_version", meanwhile)
    plan.write()
    assert [p.name for p in tmp_path.iterdir()] == [plan.folder.name], "the copy that came second is gone"
    assert all((plan.folder / path).read_bytes() == source.read_bytes() for path, source in plan.files.items())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_copy_that_is_cut_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    plan = snapshot.plan_snapshot(tmp_path / "slurm", set())
    copied: list[object] = []

    def copy(source: Path, target: Path) -> None:
        if len(copied) > 3:
            raise error
        copied.append(target.write_bytes(source.read_bytes()))

    monkeypatch.setattr("shutil.copyfile", copy)
    with pytest.raises(type(error)):
        plan.write()
    assert len(copied) == 4 and not list((tmp_path / "slurm").iterdir())


def test_a_failed_snapshot_leaves_nothing(tmp_path: Path) -> None:
    plan = snapshot.plan_snapshot(tmp_path / "slurm", set())
    (tmp_path / "slurm").write_text("a file")
    with pytest.raises(OSError, match="slurm"):
        plan.write()
    assert not plan.folder.exists()


@pytest.mark.parametrize(
    ("entry", "module"),
    [
        pytest.param("my_entry:main", "my_entry.py", id="a module"),
        pytest.param("my_entry.deep.one:main", "my_entry/deep/one.py", id="a package"),
        pytest.param("my_entry.one:main", "my_entry/one.py", id="a package without __init__"),
    ],
)
def test_the_snapshot_has_the_code_of_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, module: str
) -> None:
    file = tmp_path / "code" / module
    file.parent.mkdir(parents=True)
    file.write_text("def main(): pass\n")
    if "deep" in entry:
        for folder in (file.parent, file.parent.parent):
            (folder / "__init__.py").touch()
    (tmp_path / "code" / "bystander.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "code")
    plan = snapshot.plan_snapshot(tmp_path / "slurm", {entry})
    assert plan.files[module] == file
    assert not [path for path in plan.files if "bystander" in path or path.endswith(".pyc")]
    file.write_text("def main(): return 1\n")
    assert snapshot.plan_snapshot(tmp_path / "slurm", {entry}).folder != plan.folder, "named after its bytes"


def test_an_entry_that_is_not_importable_here_is_left_to_the_ranks(tmp_path: Path) -> None:
    """It may be in the container image."""
    assert (
        snapshot.plan_snapshot(tmp_path, {"not_here.at_all:main"}).files
        == snapshot.plan_snapshot(tmp_path, set()).files
    )
