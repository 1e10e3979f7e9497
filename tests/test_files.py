"""Atomic writing: whole or not at all, whatever happens in between."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.errors import Failure, UserError, did_you_mean
from nano3.files import atomic_open, read_json, write_json, write_text


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
        "import os, pathlib, sys; from nano3.files import atomic_open\n"
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
