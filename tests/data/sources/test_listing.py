"""Which files a path selects; unreadable files are reported, never silently left out."""

import errno
import fcntl
import gzip
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_helpers import documents, pack, reference, run, source, texts, tree, write

from nano3.data.sources.discovery import WHOLE_FILE_LIMIT, WINDOW_COUNT, WINDOW_SIZE, discover_files
from nano3.data.sources.formats import may_hold_text
from nano3.data.sources.listing import list_local
from nano3.utils.errors import Failure, UserError
from nano3.utils.provenance import install_command


def names(path: Path | str, output: Path | str = "/nowhere") -> list[str]:
    return discover_files(source(path), str(output)).keys


def test_broken_links_are_reported(tmp_path: Path, byte_bpe: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", texts(10))
    (tmp_path / "in" / "b.jsonl").symlink_to("/nonexistent")
    (tmp_path / "in" / "c.jsonl").symlink_to("c.jsonl")
    for path in ("in", "in/*.jsonl"):
        with pytest.raises(UserError) as caught:
            run([source(tmp_path / path)], tmp_path / "out", byte_bpe)
        assert len(caught.value.problems) == 2
        assert "b.jsonl is a broken link to /nonexistent (No such file or directory)" in str(caught.value)
        assert "c.jsonl is a broken link to c.jsonl" in str(caught.value)
    for name in "bc":
        (tmp_path / "in" / f"{name}.jsonl").rename(
            tmp_path / "in" / f"{name}.md"
        )  # of no known format, so left out anyway
    assert names(tmp_path / "in") == ["a.jsonl"]


def test_folders_are_read_once(tmp_path: Path) -> None:
    write(tmp_path / "in" / "x" / "a.jsonl", ["a"])
    write(tmp_path / "elsewhere" / "b.jsonl", ["b"])
    (tmp_path / "in" / "x" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "first").symlink_to(tmp_path / "in" / "x")  # the real folder's name counts
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "twice").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "in") == ["link/b.jsonl", "x/a.jsonl"]


def test_an_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", ["a"])
    (tmp_path / "in" / "secret").mkdir()
    scan = os.scandir

    def deny(path: str) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)  # root can read everything
    with pytest.raises(UserError, match=r"secret: Permission denied\. Check its owner"):
        names(tmp_path / "in")


@pytest.mark.parametrize("where", ["in", "in/*.jsonl", "in/{name}"])
def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path, where: str) -> None:
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"bad\xff.jsonl")
    try:
        (tmp_path / "in" / name).write_bytes(b'{"text": "x"}\n')
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    with pytest.raises(UserError, match=r"bad\\xff\.jsonl' is not UTF-8. Rename it") as caught:
        names(f"{tmp_path}/{where.format(name=name)}")
    str(caught.value).encode()  # can be printed


def test_the_output_may_be_inside_the_input(tmp_path: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for out, path in (("in/out", "in"), ("in", "in"), ("in/out2", "in/**/*.json*")):
        path = str(tmp_path / path)
        write(tmp_path / "in" / "a.jsonl", texts(100))
        first = run([source(path)], tmp_path / out, byte_bpe)
        assert run([source(path)], tmp_path / out, byte_bpe) == first
        assert "nothing to do" in capfd.readouterr().out
        shutil.rmtree(tmp_path / "in")


def test_a_user_folder_named_like_an_output_is_read(tmp_path: Path, byte_bpe: Path) -> None:
    write(tmp_path / "in" / "train" / "a.jsonl", texts(10))
    assert names(tmp_path / "in", tmp_path / "in") == ["train/a.jsonl"]
    with pytest.raises(UserError, match="has train but no manifest"):
        run(tmp_path / "in", tmp_path / "in", byte_bpe)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.jsonl", True),
        ("A.JSONL.GZ", True),
        ("part-00000", True),
        ("part-00000.gz", True),
        ("x.001", True),
        ("c.snappy.parquet", True),
        ("README.md", False),
        ("backup.tar.gz", False),
        ("x.zip", False),
        ("script.py", False),
    ],
)
def test_the_suffix_decides_in_a_folder(name: str, wanted: bool) -> None:
    assert may_hold_text(name) == wanted


def test_files_of_other_formats_are_left_out_with_one_warning(
    tmp_path: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.jsonl", texts(50))
    (tmp_path / "in" / "README.md").write_text("[![Build](x)](y) [data]")
    (tmp_path / "in" / "backup.tar.gz").write_bytes(gzip.compress(b"tar"))
    (tmp_path / "in" / "notes").write_text("not data")
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe)
    assert manifest.datasets[0].files == 1
    warnings = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
    assert len(warnings) == 1
    assert "3 file(s) of no known format left out: README.md, backup.tar.gz, notes" in warnings[0]
    with pytest.raises(UserError, match=r"README\.md is not of a known format"):
        names(tmp_path / "in" / "*.md")


def test_a_real_folder_with_brackets(tmp_path: Path) -> None:
    write(tmp_path / "q[1]" / "a.jsonl", ["a"])
    with pytest.raises(UserError, match=r"no file matches.*write .*/q\[\[\]1\]/\*\.jsonl"):
        names(tmp_path / "q[1]" / "*.jsonl")
    assert names(tmp_path / "q[[]1]" / "*.jsonl") == ["q[1]/a.jsonl"]
    assert names(tmp_path / "q[1]") == ["a.jsonl"]


def test_large_files_are_fingerprinted_by_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    data = bytearray(b"x" * 3 * WHOLE_FILE_LIMIT)
    path.write_bytes(data)
    before = discover_files(source(path), "").fingerprints
    for position in (
        0,
        len(data) - 1,
        *(i * (len(data) - WINDOW_SIZE) // (WINDOW_COUNT - 1) for i in range(1, WINDOW_COUNT - 1)),
    ):
        data[position] ^= 1
        path.write_bytes(data)
        data[position] ^= 1
        assert discover_files(source(path), "").fingerprints != before


def test_list_local_returns_times_and_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a"])
    os.utime(path, ns=(5, 123456789))
    (entry,) = list_local(str(tmp_path), "", "label").entries
    info = path.stat()
    assert entry == ("a.jsonl", info.st_size, None, 123456789, info.st_ctime_ns)


def test_truncation_is_reported_with_the_size_that_was_read(tmp_path: Path, byte_bpe: Path) -> None:
    rng = random.Random(0)
    text = "".join(
        f'{{"text": "{rng.random()}"}}\n' for _ in range(60_000)
    ).encode()  # bzip2 compresses blocks of 900 KB
    for suffix in (".gz", ".bz2", ".xz"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(pack(text, suffix)[:-20_000])
        with pytest.raises(Failure, match=r"truncated after [1-9][\d,]{4,} bytes of text"):
            run(path, tmp_path / "out", byte_bpe)


# Locks


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    tmp_path: Path, byte_bpe: Path, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "No locks available")

    path = write(tmp_path / "a.jsonl", texts(100))
    monkeypatch.setattr(fcntl, "flock", fail)
    run(path, tmp_path / "out", byte_bpe)
    assert "no locks on this file system" in capfd.readouterr().err
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, texts(100)))


def test_a_lock_that_cannot_be_opened(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(10))
    (tmp_path / "out" / ".prep" / "lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"its lock .* cannot be opened: Is a directory"):
        run(path, tmp_path / "out", byte_bpe)


def test_a_lock_of_another_user_can_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nano3.data.dataset import output_dir

    with output_dir.hold_output_lock(tmp_path / "out"):
        pass
    lock = tmp_path / "out" / ".prep" / "lock"
    lock.chmod(0o444)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != lock and access(path, mode))  # root can write
    with (
        output_dir.hold_output_lock(tmp_path / "out"),
        pytest.raises(UserError, match="another run"),
        output_dir.hold_output_lock(tmp_path / "out"),
    ):
        pass


# Remote


@pytest.fixture
def no_server() -> str:
    """A local address without a server."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def test_an_unreachable_host_is_reported(no_server: str) -> None:
    with pytest.raises(UserError, match=r"Connect call failed \('127\.0\.0\.1'"):
        names(f"http://{no_server}/a.jsonl")


def test_a_missing_driver_names_the_command_that_installs_it() -> None:
    """In a process of its own, because fsspec keeps the drivers that it has imported."""
    code = """
import sys
sys.modules |= dict.fromkeys(["aiohttp", "s3fs", "gcsfs"])
from nano3.data.sources.listing import list_url
from nano3.utils.errors import UserError
for url in ("https://127.0.0.1/a.jsonl", "s3://bucket/a.jsonl", "gs://bucket/a.jsonl"):
    try:
        list_url(url, url)
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    https, s3, gs = done.stdout.splitlines()
    assert "aiohttp" in https and https.endswith(f"Install it with: {install_command('http')}")
    assert "s3fs" in s3 and s3.endswith(f"Install it with: {install_command('s3')}")
    assert "gcsfs" in gs


@pytest.mark.parametrize("case", ["no_credentials", "no_endpoint"])
def test_s3_errors_say_what_to_set(tmp_path: Path, no_server: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{no_server}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if case == "no_endpoint":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    message = {"no_credentials": "credentials.*AWS_ACCESS_KEY_ID", "no_endpoint": "AWS_ENDPOINT_URL"}[case]
    with pytest.raises(UserError, match=message):
        names("s3://bucket/data")
    s3fs.S3FileSystem.clear_instance_cache()


def test_two_stars_mean_the_same_on_every_python(tmp_path: Path) -> None:
    for name in ("a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "_z/d.jsonl"):
        write(tmp_path / "in" / name, texts(2))
    assert names(tmp_path / "in" / "**") == ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl"]
    assert names(tmp_path / "in" / "**" / "y" / "**") == ["x/y/c.jsonl"]
    for pattern in ("**.jsonl", "x**/b.jsonl"):
        with pytest.raises(UserError, match="is not a whole name between slashes"):
            names(tmp_path / "in" / pattern)


def test_a_dataset_behind_a_link_keeps_its_identity(tmp_path: Path, byte_bpe: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", texts(100))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    run(tmp_path / "in", tmp_path / "one", byte_bpe)
    run(tmp_path / "link", tmp_path / "two", byte_bpe)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
