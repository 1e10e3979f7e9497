"""Files are written completely or not at all; names and contents may have any encoding."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from faults import needs_strace, with_fault
from hypothesis import given, settings
from hypothesis import strategies as st

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
# System call, fault, number of the call, expected content of the file, and file named by the error.
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
    hit, output, _ = with_fault(tmp_path / "trace", call, what, when, WRITE, path)
    assert hit
    assert path.read_text() == left
    if what.startswith("error"):
        assert [p.name for p in tmp_path.iterdir() if p.name != "trace"] == ["x"], "no temporary file is left"
        assert "done" not in output
    if named:
        assert str(tmp_path / named) in output


@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param("there", None, id="there"),
        pytest.param("there/not/yet", None, id="not yet"),
        pytest.param("file", "file is a file, not a folder", id="a file"),
        pytest.param("file/below", "file is a file, not a folder", id="below a file"),
        pytest.param("/proc/nope", "cannot create a folder in /proc: ", id="refused by the system"),
    ],
)
def test_unwritable_folders(tmp_path: Path, path: str, why: str | None) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    found = unwritable_reason(tmp_path / path)
    assert found is None if why is None else found and why in found
    assert sorted(tmp_path.rglob("*")) == before


NAMES = st.binary(max_size=20).map(os.fsdecode)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(VALUES)
def test_written_json_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    """File names may contain invalid UTF-8; the result is valid JSON nevertheless."""
    path = tmp_path_factory.mktemp("json") / "x.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text(encoding="utf-8")) == value and path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [{1, 2}, {"a": object()}, b"bytes"], ids=["set", "object", "bytes"])
def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", [b"caf\xe9", "é😀".encode(), b"-rf", b"a\nb", b" ", b"*", b"n" * 200], ids=repr)
def test_a_file_of_any_name_is_written(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name) / os.fsdecode(name)
    write_text(path, "text")
    assert [os.fsencode(p.name) for p in path.parent.iterdir()] == [name]


def test_a_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x", "\udce9")
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="x"):
        write_text(tmp_path / "x", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "inner").is_dir()


def test_the_blocks_error_is_raised_even_if_the_temporary_file_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_open(tmp_path / "x") as f:
        Path(f.name).unlink()
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("link", "path", "why"),
    [
        pytest.param("disk", "link", None, id="a link to a folder"),
        pytest.param("disk", "link/new/er", None, id="below one"),
        pytest.param("unmounted", "link", "{here}/link is a link to unmounted, which does not exist", id="to nothing"),
        pytest.param("unmounted", "link/new", "{here}/link is a link to unmounted, which", id="below one to nothing"),
        pytest.param("/nowhere/x", "link", "{here}/link is a link to /nowhere/x, which", id="to nothing elsewhere"),
        pytest.param("link", "link", "{here}/link is a link to link, which", id="to itself"),
        pytest.param("file", "link", "{here}/link is a file, not a folder", id="to a file"),
    ],
)
def test_a_folder_that_is_a_link(tmp_path: Path, link: str, path: str, why: str | None) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(link)
    found = unwritable_reason(tmp_path / path)
    assert (found is None) == (why is None)
    if found and why:
        assert found.startswith(why.format(here=tmp_path))
        with pytest.raises(OSError):  # creating it does fail
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
    else:
        (tmp_path / path).mkdir(parents=True, exist_ok=True)


def test_a_relative_path_is_reported_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert unwritable_reason(Path("file/x")) == f"{tmp_path}/file is a file, not a folder"
    assert unwritable_reason(Path("new")) is None and not (tmp_path / "new").exists()


def test_the_home_folder_is_found_by_one_function() -> None:
    """Path.expanduser raises RuntimeError for an unknown "~user", which a user can type."""
    users = [*(ROOT / "nano3").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    assert [path for path in users if ".expanduser(" in path.read_text() and path.name != "files.py"] == []
