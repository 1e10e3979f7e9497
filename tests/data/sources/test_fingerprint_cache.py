"""A rerun opens only new and changed files, and notices each of them."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec
import pytest
from data_helpers import options, pack, run, source, texts, tree, write
from faults import needs_strace
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.planning.planner import make_request
from nano3.data.sources.discovery import discover_files
from nano3.data.sources.fingerprint_cache import (
    FILE_NAME,
    OLD_FILE_NAME,
    TIMESTAMP_MARGIN_NS,
    WORTH_SAVING,
    DatasetTable,
    FingerprintCache,
    load_fingerprint_cache,
)
from nano3.data.sources.formats import COMPRESSED_SUFFIXES, inner_suffix
from nano3.data.sources.listing import FileEntry, walk_folder
from nano3.utils.errors import UserError

LATER = TIMESTAMP_MARGIN_NS + 1_000_000_000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for i in range(6):
        write(tmp_path / "in" / str(i % 2) / f"{i}.jsonl", texts(20, seed=i))
    write(tmp_path / "in" / "b.jsonl.gz", texts(20, seed=7))
    (tmp_path / "in" / "notes").write_text("a file without suffix is inspected")
    return tmp_path / "in"


def fill_cache(folder: Path, output: Path) -> None:
    """Fill the cache as in a run a few seconds after the files were written."""
    cache = FingerprintCache(created=time.time_ns() + LATER)
    discover_files(source(folder), str(output), cache)
    cache.save(output)


def count_opened(folder: Path, output: Path) -> int:
    """Return how many files a rerun opens; check that it finds the same as a first run."""
    cache = load_fingerprint_cache(output)
    found = discover_files(source(folder), str(output), cache)
    assert found == discover_files(source(folder), str(output))
    return cache.opened


def rewrite(path: Path, data: bytes, back_to: os.stat_result | None = None) -> None:
    path.write_bytes(data)
    if back_to:
        os.utime(path, ns=(back_to.st_atime_ns, back_to.st_mtime_ns))


def same_size(path: Path) -> bytes:
    return path.read_bytes().replace(b"the", b"eht").replace(b"of", b"fo")


def edit_keeping_size_and_mtime(folder: Path) -> None:
    path = folder / "1" / "1.jsonl"
    rewrite(path, same_size(path), back_to=path.stat())


def replace_by_rename(folder: Path) -> None:
    path = folder / "1" / "1.jsonl"
    before = path.stat()
    rewrite(folder / "_new", same_size(path), back_to=before)
    (folder / "_new").rename(path)


def swap(folder: Path) -> None:
    one, two = folder / "0" / "0.jsonl", folder / "0" / "2.jsonl"
    one.rename(folder / "_")
    two.rename(one)
    (folder / "_").rename(two)


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "nothing": (lambda folder: None, 0),
    "added": (lambda folder: write(folder / "new.jsonl", ["new"]), 1),
    "removed": (lambda folder: (folder / "0" / "2.jsonl").unlink(), 0),
    "longer": (lambda folder: write(folder / "1" / "1.jsonl", texts(21)), 1),
    "same_size": (lambda folder: rewrite(folder / "1" / "1.jsonl", same_size(folder / "1" / "1.jsonl")), 1),
    "same_size_and_time": (edit_keeping_size_and_mtime, 1),
    "another_inode_same_size_and_time": (replace_by_rename, 1),
    "two_swapped": (swap, 2),
    "touched": (lambda folder: os.utime(folder / "1" / "1.jsonl"), 1),
    "text_where_none_was": (
        lambda folder: (folder / "notes").write_text('{"text": "now it is a row of JSON lines"}'),
        1,
    ),
    "emptied": (lambda folder: (folder / "1" / "1.jsonl").write_bytes(b""), 0),
    "recompressed": (lambda folder: (folder / "b.jsonl.gz").write_bytes(pack(b'{"text": "x"}\n', ".xz")), 1),
    "folder_renamed": (lambda folder: (folder / "1").rename(folder / "2"), 3),
}


@pytest.mark.parametrize(("change", "opened"), CHANGES.values(), ids=CHANGES.keys())
def test_changed_files_are_opened(tmp_path: Path, corpus: Path, change: Callable, opened: int) -> None:
    fill_cache(corpus, tmp_path / "out")
    change(corpus)
    assert count_opened(corpus, tmp_path / "out") == opened


def test_a_link_that_breaks_is_reported_on_a_rerun(tmp_path: Path, corpus: Path) -> None:
    target = write(tmp_path / "elsewhere.jsonl", texts(5))
    (corpus / "link.jsonl").symlink_to(target)
    fill_cache(corpus, tmp_path / "out")
    assert count_opened(corpus, tmp_path / "out") == 0
    rewrite(target, same_size(target), back_to=target.stat())
    assert count_opened(corpus, tmp_path / "out") == 1
    target.unlink()
    with pytest.raises(UserError, match=r"link\.jsonl is a broken link to .*Repair or delete it"):
        count_opened(corpus, tmp_path / "out")


def test_recently_written_files_are_opened_again(tmp_path: Path, corpus: Path) -> None:
    """They may be edited again within one tick of the file system's clock."""
    cache = FingerprintCache()
    discover_files(source(corpus), str(tmp_path / "out"), cache)
    cache.save(tmp_path / "out")
    assert count_opened(corpus, tmp_path / "out") == 8


def test_a_dataset_at_another_root_is_opened(tmp_path: Path, corpus: Path) -> None:
    fill_cache(corpus, tmp_path / "out")
    corpus.rename(tmp_path / "moved")
    assert count_opened(tmp_path / "moved", tmp_path / "out") == 8


GOOD = msgspec.msgpack.encode({"d": DatasetTable("/in", ["a"], [1], [1], [1], ["x"], ["txt"])})
DAMAGE = {
    "empty": b"",
    "cut": GOOD[:-3],
    "no_msgpack": b"\xc1" * 40,
    "another_thing": msgspec.msgpack.encode([1, 2, 3]),
    "uneven": msgspec.msgpack.encode({"d": DatasetTable("/in", ["a", "b"], [1], [1], [1], ["x"], ["txt"])}),
    "wrong_types": GOOD.replace(b"\xa1x", b"\x01"),
}


def test_the_columns_are_stored_under_their_first_names() -> None:
    """So that caches of earlier versions are read."""
    columns = {"keys": ["a"], "sizes": [1], "times": [2], "inode_times": [3], "prints": ["x"], "formats": ["txt"]}
    stored = {"d": {"root": "/in", **columns}}
    table = DatasetTable("/in", ["a"], [1], [2], [3], ["x"], ["txt"])
    assert msgspec.to_builtins({"d": table}) == stored
    assert msgspec.convert(stored, dict[str, DatasetTable]) == {"d": table}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_is_empty(tmp_path: Path, corpus: Path, data: bytes) -> None:
    (tmp_path / "out" / ".prep").mkdir(parents=True)
    for name, stored in ((OLD_FILE_NAME, data), (FILE_NAME, data), (FILE_NAME, sealed(data))):
        (tmp_path / "out" / ".prep" / name).write_bytes(stored)
        assert load_fingerprint_cache(tmp_path / "out").stored == {}
    assert load_fingerprint_cache(tmp_path / "out").stored == {}
    assert count_opened(corpus, tmp_path / "out") == 8


def sealed(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest() + data


def test_every_flipped_bit_of_the_cache_is_seen(tmp_path: Path) -> None:
    """Such as one in a fingerprint, which would be taken for the file's."""
    path = tmp_path / ".prep" / FILE_NAME
    path.parent.mkdir()
    good = sealed(GOOD)
    for at in range(len(good) * 8):
        path.write_bytes(good[: at // 8] + bytes([good[at // 8] ^ 1 << at % 8]) + good[at // 8 + 1 :])
        assert load_fingerprint_cache(tmp_path).stored == {}
    path.write_bytes(good)
    assert list(load_fingerprint_cache(tmp_path).stored) == ["d"]


def test_a_cache_without_a_checksum_of_an_earlier_version_is_read_and_replaced(tmp_path: Path) -> None:
    old = tmp_path / ".prep" / OLD_FILE_NAME
    old.parent.mkdir()
    old.write_bytes(GOOD)
    cache = load_fingerprint_cache(tmp_path)
    assert list(cache.stored) == ["d"]
    cache.save(tmp_path)
    assert [path.name for path in old.parent.iterdir()] == [FILE_NAME]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_no_bytes_break_the_cache(tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int) -> None:
    out = tmp_path_factory.mktemp("out")
    (out / ".prep").mkdir()
    (out / ".prep" / FILE_NAME).write_bytes(sealed(GOOD[:at] + data))
    cache = load_fingerprint_cache(out)
    assert len(cache.get("d", "/in", [FileEntry("a", 1), FileEntry("b", 2)])) == 2


STORED = DatasetTable("s3://b/in", ["a"], [5], [7], [0], ["etag"], ["jsonl"])
REMOTE = {
    "same": (FileEntry("a", 5, "etag", 7), ("etag", "jsonl")),
    "other_content": (FileEntry("a", 5, "other", 7), None),
    "other_size": (FileEntry("a", 6, "etag", 7), None),
    "other_time": (FileEntry("a", 5, "etag", 8), None),
    "other_name": (FileEntry("b", 5, "etag", 7), None),
}


@pytest.mark.parametrize(("entry", "identity"), REMOTE.values(), ids=REMOTE.keys())
def test_the_fingerprint_of_a_store_must_match(entry: FileEntry, identity: tuple | None) -> None:
    cache = FingerprintCache({"d": STORED})
    assert cache.get("d", "s3://b/in", [entry]) == [identity]
    assert cache.get("d", "s3://b/other", [entry]) == cache.get("e", "s3://b/in", [entry]) == [None]


def test_files_without_hash_and_ctime_are_not_cached() -> None:
    cache = FingerprintCache(created=time.time_ns())
    entries = [FileEntry("a", 5, "etag", 7), FileEntry("b", 5, None, 7), FileEntry("c", 5, None, 7, 9)]
    cache.put("d", "s3://b/in", entries, [("etag", "txt"), ("x", "txt"), ("y", None)], opened=3)
    assert cache.tables()["d"] == DatasetTable(
        "s3://b/in", ["a", "c"], [5, 5], [7, 7], [0, 9], ["etag", "y"], ["txt", None]
    )


def test_a_rerun_over_many_files_saves_the_cache_and_nothing_else(tmp_path: Path, byte_bpe: Path) -> None:
    """Such recent files are not cached by the first run; a later run over many of them saves the cache."""
    (tmp_path / "in").mkdir()
    for i in range(WORTH_SAVING):
        (tmp_path / "in" / f"{i}.txt").write_text(f"document {i}")
    request = make_request([source(tmp_path / "in")], options(tmp_path / "out", byte_bpe), "test")
    run(tmp_path / "in", tmp_path / "out", byte_bpe)
    assert load_fingerprint_cache(tmp_path / "out").get("d", str(tmp_path / "in"), []) == []
    before = tree(tmp_path / "out")
    late = request.cache
    late.created += LATER
    late.save_if_many(tmp_path / "out")
    assert count_opened(tmp_path / "in", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == before
    (tmp_path / "out" / ".prep").rename(tmp_path / "out" / "was")
    (tmp_path / "out" / ".prep").write_text("in the way: nothing can be written")
    late.save_if_many(tmp_path / "out")
    run(tmp_path / "in", tmp_path / "out", byte_bpe)


@given(st.text(alphabet="aB./ 1é", max_size=12), st.sampled_from(["", ".txt", ".JSONL", ".gz", ".jsonl.gz", ".", ".é"]))
def test_inner_suffix_agrees_with_pathlib(start: str, end: str) -> None:
    name = (start + end).rstrip("/")
    suffixes = [s.lower() for s in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    last = name.rpartition("/")[2]
    if last != ".":  # pathlib drops it
        assert inner_suffix(name) == (suffixes[-1] if suffixes else "")


NAMES = st.sampled_from(["a.jsonl", "b.txt", ".hidden", "_SUCCESS", "c", "x y.txt", "ü.txt"])
TREES = st.recursive(
    NAMES.map(lambda name: {name: None}), lambda t: st.dictionaries(st.sampled_from("mnop_"), t), max_leaves=12
)


@settings(max_examples=30, deadline=None)
@given(TREES)
def test_walk_finds_what_os_walk_finds(tmp_path_factory: pytest.TempPathFactory, made: dict) -> None:
    root = tmp_path_factory.mktemp("walk")

    def build(folder: Path, items: dict) -> None:
        for name, inside in items.items():
            if inside is None:
                (folder / name).write_text(name)
            else:
                (folder / name).mkdir()
                build(folder / name, inside)

    build(root, made)
    wanted = set()
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f[0] not in "._"]
        for name in (f for f in files if f[0] not in "._"):
            path = Path(folder, name)
            wanted.add((str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns))
    found = walk_folder(str(root), "/nowhere", "label")
    assert {(e.key, e.size, e.mtime) for e in found} == wanted
    assert len(found) == len(wanted)


@needs_strace
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rerun_over_many_files_opens_none_of_them(tmp_path: Path, byte_bpe: Path) -> None:
    """The whole command, over 10^5 files; the rerun takes 1.8 seconds on an idle machine with two cores."""
    for i in range(100_000):
        folder = tmp_path / "in" / str(i // 1000)
        if i % 1000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{i}.txt").write_text(f"document {i}")
    time.sleep(2.1)  # more recent files would be opened again
    (tmp_path / "b.json").write_text(json.dumps({"datasets": [{"name": "d", "path": str(tmp_path / "in")}]}))
    words = [f"blend_path={tmp_path}/b.json", f"tokenizer_model={byte_bpe}", f"output_dir={tmp_path}/out"]
    env = {**os.environ, "NANO3_HOME": str(tmp_path / "artifacts")}
    command, log = [sys.executable, "-m", "nano3.data_prep", *words], tmp_path / "trace"
    subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=openat,open", "-o", str(log)]
    done = subprocess.run([*trace, *command], env=env, capture_output=True, text=True, check=True)
    assert "nothing to do" in done.stdout
    opened = re.findall(r'"([^"]*)"', log.read_text())
    assert f"{tmp_path}/out/manifest.json" in opened
    assert not [path for path in opened if re.search(r"(^|/in/\d+/)\d+\.txt$", path)]
