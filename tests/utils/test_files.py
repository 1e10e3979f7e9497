"""Atomic writing: whole or not at all, whatever happens in between."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import needs_strace, with_fault

from nano3.utils.errors import Failure, UserError, did_you_mean
from nano3.utils.files import atomic_open, read_json, unwritable_reason, write_json, write_text


def test_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "ü": "\u0000\u2028"}
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value


def test_an_error_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(ValueError, match="halfway"), atomic_open(path) as f:
        f.write(b"new")
        raise ValueError("halfway")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "old")
    code = (
        "import os, pathlib, sys; from nano3.utils.files import atomic_open\n"
        "with atomic_open(pathlib.Path(sys.argv[1])) as f:\n"
        "    f.write(b'new'); f.flush(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with atomic_open(path) as one, atomic_open(path) as two:
        one.write(b"1" * 10_000)
        two.write(b"2" * 10_000)
    assert set(path.read_bytes()) in ({ord("1")}, {ord("2")})


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (Failure, 1)])
def test_errors_keep_all_problems_across_processes(kind: type, code: int) -> None:
    import pickle

    error = pickle.loads(pickle.dumps(kind(["one", "two"])))
    assert (error.problems, error.exit_code) == (["one", "two"], code)


@pytest.mark.parametrize(
    ("word", "told"), [("slrum", " Did you mean 'slurm'?"), ("zzz", " Allowed: local, slurm.")], ids=["near", "far"]
)
def test_did_you_mean(word: str, told: str) -> None:
    assert did_you_mean(word, ["slurm", "local"]) == told


WRITE = """
import sys
from pathlib import Path
from nano3.utils.files import write_text
try:
    write_text(Path(sys.argv[1]), "new")
    print("done")
except OSError as error:
    print(error.strerror, error.filename)
"""
# The n-th system call of a kind, what becomes of it, what is then in the file, and the name that the error has.
FAULTS = {
    "write_full": ("write", "error=ENOSPC", 1, "old", "x"),
    "write_broken": ("write", "error=EIO", 1, "old", "x"),
    "file_not_synced": ("fsync", "error=EIO", 1, "old", "x"),
    "not_renamed": ("rename", "error=EROFS", 1, "old", None),
    "folder_not_synced": ("fsync", "error=EIO", 2, "new", "x"),
    "killed_writing": ("write", "signal=KILL", 1, "old", None),
    "killed_syncing": ("fsync", "signal=KILL", 1, "old", None),
    "killed_renaming": ("rename", "signal=KILL", 1, "old", None),
    "killed_at_the_end": ("fsync", "signal=KILL", 2, "new", None),
}


@needs_strace
@pytest.mark.parametrize(("call", "what", "when", "left", "named"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, call: str, what: str, when: int, left: str, named: str | None
) -> None:
    path = tmp_path / "x"
    write_text(path, "old")
    hit, told, _ = with_fault(tmp_path / "trace", call, what, when, WRITE, path)
    assert hit
    assert path.read_text() == left
    if what.startswith("error"):
        assert [p.name for p in tmp_path.iterdir() if p.name != "trace"] == ["x"], "no temporary file stays"
        assert "done" not in told
    if named:
        assert str(tmp_path / named) in told


@pytest.mark.parametrize(
    ("place", "why"),
    [
        pytest.param("there", None, id="there"),
        pytest.param("there/not/yet", None, id="not yet"),
        pytest.param("file", "file is a file, not a folder", id="a file"),
        pytest.param("file/below", "file is a file, not a folder", id="below a file"),
        pytest.param("/proc/nope", "cannot create a folder in /proc: ", id="refused by the system"),
    ],
)
def test_where_nothing_can_be_written(tmp_path: Path, place: str, why: str | None) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    found = unwritable_reason(tmp_path / place)
    assert found is None if why is None else found and why in found
    assert sorted(tmp_path.rglob("*")) == before
