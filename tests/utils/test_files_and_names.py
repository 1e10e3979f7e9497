"""Files with names and contents of any encoding, places that only seem to be there, and a git that is not well."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.utils.files import atomic_open, read_json, unwritable_reason, write_json, write_text
from nano3.utils.provenance import commit_of, git, git_bytes, installed_versions

NAMES = st.binary(max_size=20).map(os.fsdecode)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(VALUES)
def test_whatever_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    """Names of files may hold bytes of no encoding; what is written is JSON for everybody all the same."""
    path = tmp_path_factory.mktemp("json") / "x.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text(encoding="utf-8")) == value and path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [{1, 2}, {"a": object()}, b"bytes"], ids=["set", "object", "bytes"])
def test_what_is_no_json_leaves_the_old_file(tmp_path: Path, value: Any) -> None:
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


def test_where_a_folder_stands_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "x" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="x"):
        write_text(tmp_path / "x", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "inner").is_dir()


def test_the_error_of_the_block_is_told_when_the_temporary_file_is_gone_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_open(tmp_path / "x") as f:
        Path(f.name).unlink()
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("link", "place", "why"),
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
def test_a_folder_that_is_a_link(tmp_path: Path, link: str, place: str, why: str | None) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(link)
    found = unwritable_reason(tmp_path / place)
    assert (found is None) == (why is None)
    if found and why:
        assert found.startswith(why.format(here=tmp_path))
        with pytest.raises(OSError):  # and so it is
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
    else:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)


def test_a_relative_place_is_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert unwritable_reason(Path("file/x")) == f"{tmp_path}/file is a file, not a folder"
    assert unwritable_reason(Path("new")) is None and not (tmp_path / "new").exists()


@pytest.mark.parametrize("mode", [None, 0o644], ids=["no git", "one that must not be run"])
def test_without_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None) -> None:
    if mode:
        (tmp_path / "git").write_text("#!/bin/sh\necho deadbeef\n")
        (tmp_path / "git").chmod(mode)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(tmp_path, "status") == "" and git_bytes(tmp_path, "status") == b"" and commit_of(tmp_path) is None


def test_a_folder_that_is_gone_has_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path / "gone") is None


def test_names_in_a_working_copy_come_as_they_are(tmp_path: Path) -> None:
    """Every file can be opened by what git says, whatever its name."""
    names = sorted([b"caf\xe9", b"a\nb", "é😀".encode(), b"-x", b"$(id)"])
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    listed = git(tmp_path, "ls-files", "-z", "--others", ".").split("\0")[:-1]
    assert sorted((tmp_path / name).read_bytes() for name in listed) == names


def test_a_working_copy_without_a_commit_has_none(tmp_path: Path) -> None:
    (tmp_path / "nano3").mkdir()
    (tmp_path / "nano3" / "__init__.py").touch()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    assert commit_of(tmp_path) is None


def test_versions_are_those_of_pip() -> None:
    assert installed_versions([]) == {}
    found = installed_versions(["no-such-package", "PyArrow", "numpy"])
    assert list(found) == ["PyArrow", "numpy"] and all(text[0].isdigit() for text in found.values())
