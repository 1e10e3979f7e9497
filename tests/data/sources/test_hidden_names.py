"""Hidden files are listed only if the path names them, both locally and on other file systems."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from nano3.data.sources.listing import Listing, is_hidden, list_local, list_url
from nano3.utils.errors import UserError

NAMES = [
    "a.jsonl", "b.parquet", "_c.jsonl", "._a.jsonl", "x/d.jsonl", "x/_e/f.jsonl", "x/.g/h.jsonl", "_x/i.jsonl",
    ".ipynb_checkpoints/a-checkpoint.jsonl", "x.y/j_k.jsonl",
]  # fmt: skip


@pytest.fixture(params=["local", "memory"])
def listed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Listing]]:
    """Return a function that lists a path below a folder with the files of NAMES."""
    if request.param == "local":
        for name in NAMES:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")
        yield lambda path: list_local(str(tmp_path / "in" / path), str(tmp_path / "out"), "label")
        return
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/folder/in/{name}": b"{}\n" for name in NAMES})
    yield lambda path: list_url(f"memory://folder/in/{path}".rstrip("/"), "label")
    fs.rm("/folder", recursive=True)


WANTED: dict[str, tuple[str, list[str]]] = {
    "the_folder": ("", ["a.jsonl", "b.parquet", "x.y/j_k.jsonl", "x/d.jsonl"]),
    "a_hidden_folder_by_its_name": ("_x", ["i.jsonl"]),
    "a_glob": ("*.jsonl", ["a.jsonl"]),
    "a_glob_of_everything_below": ("**/*.jsonl", ["a.jsonl", "x.y/j_k.jsonl", "x/d.jsonl"]),
    "a_glob_of_hidden_files": ("_*.jsonl", ["_c.jsonl"]),
    "a_glob_below_a_hidden_folder": ("_x/*.jsonl", ["i.jsonl"]),
    "one_file": ("a.jsonl", ["a.jsonl"]),
    "one_hidden_file": ("_c.jsonl", ["_c.jsonl"]),
    "one_file_with_a_dot": ("._a.jsonl", ["._a.jsonl"]),
    "one_file_in_a_hidden_folder": ("x/_e/f.jsonl", ["f.jsonl"]),
}


@pytest.mark.parametrize(("path", "wanted"), WANTED.values(), ids=WANTED.keys())
def test_hidden_files_are_listed_only_if_named(listed: Callable[[str], Listing], path: str, wanted: list[str]) -> None:
    """Notebook checkpoints duplicate text, and `._a.jsonl` of macOS contains none."""
    listing = listed(path)
    assert sorted(entry.key for entry in listing.entries) == wanted
    assert {entry.size for entry in listing.entries} == {3}
    assert listing.strict == (path not in ("", "_x"))


def test_root_and_key_form_the_path(listed: Callable[[str], Listing]) -> None:
    for path in ("", "*.jsonl", "x/*.jsonl", "a.jsonl"):
        listing = listed(path)
        for entry in listing.entries:
            with fsspec.open(f"{listing.root}/{entry.key}") as f:
                assert f.read() == b"{}\n"


@pytest.mark.parametrize(
    "path",
    ["nothing", "*.txt", "x/.g/*.txt", "no/such/*.jsonl"],
    ids=["name", "glob", "hidden_glob", "glob_nowhere"],
)
def test_a_path_without_files_is_reported(listed: Callable[[str], Listing], path: str) -> None:
    with pytest.raises(UserError, match=r"^label: .*(no such file|no file matches|no file or folder at this URL)"):
        listed(path)


@pytest.mark.parametrize(
    ("key", "pattern", "hidden"),
    [
        ("a.jsonl", "", False),
        ("a_b/c.d/e_.jsonl", "", False),
        ("_a", "", True),
        ("a/.b/c", "", True),
        ("a/.b/c", "a/.*/c", False),
        ("a/.b/_c", "a/.*/*", True),
        ("_a/.b", "_a/*", True),
    ],
)
def test_each_hidden_prefix_has_to_be_named(key: str, pattern: str, hidden: bool) -> None:
    assert is_hidden(key, pattern) is hidden


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    """Opening a pipe without a writer would block forever."""
    (tmp_path / "a.jsonl").write_text("{}")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        assert [entry.key for entry in list_local(str(path), "", "label").entries] == ["a.jsonl"]
    with pytest.raises(UserError, match="label: neither a file nor a folder"):
        list_local(str(tmp_path / "pipe.jsonl"), "", "label")


def test_a_link_to_itself_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(UserError, match=r"a\.jsonl is a broken link to .*a\.jsonl .*Repair or delete it"):
            list_local(str(path), "", "label")


def test_an_unknown_protocol_is_reported() -> None:
    with pytest.raises(UserError, match=r"^label: Protocol not known: nosuch"):
        list_url("nosuch://a/b", "label")
