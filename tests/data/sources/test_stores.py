"""Every store gets the checks of a local path: nothing is dropped, no old and new text is mixed, no output is read."""

import base64
import contextlib
import errno
import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from data_helpers import options, plan_build, run, source, texts, tree, write
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from nano3.data.build.run import finalize, run_task
from nano3.data.sources import url_credentials
from nano3.data.sources.discovery import FileVersion, discover_files, find_changed_files
from nano3.data.sources.fingerprint_cache import FingerprintCache
from nano3.data.sources.listing import local_path, modification_time
from nano3.utils.console import message
from nano3.utils.errors import Failure, UserError


class ShelfFileSystem(LocalFileSystem):
    """A store that walks folder by folder and reports links as its own type, as sftp does."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("shelf://"))

    def unstrip_protocol(self, name: str) -> str:
        return name if name.startswith("shelf://") else f"shelf://{name}"

    def ls(self, path: str, detail: bool = False, **_: Any) -> list[Any]:
        names = os.listdir(self._strip_protocol(path))  # noqa: PTH208
        infos = [self._entry(f"{self._strip_protocol(path)}/{name}") for name in sorted(names)]
        return infos if detail else [info["name"] for info in infos]

    def _entry(self, path: str) -> dict[str, Any]:
        return {"name": path, "size": 0, "type": "link"} if Path(path).is_symlink() else self.info(path)


@pytest.fixture(autouse=True, scope="module")
def shelf() -> None:
    fsspec.register_implementation("shelf", ShelfFileSystem, clobber=True)


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def found(url: Path | str, output: Path | str = "/nowhere") -> list[str]:
    return discover_files(source(url), str(output)).keys


def versions(url: Path | str) -> tuple[str, list[FileVersion]]:
    f = discover_files(source(url), "/nowhere")
    rows = zip(f.keys, f.sizes, f.fingerprints, f.mtimes, f.ctimes, strict=True)
    return f.root, [FileVersion(*row) for row in rows]


def changed_after(url: Path | str, edit: Callable[[], object]) -> list[str]:
    """Return the names of the files that count as changed after an edit."""
    root, files = versions(url)
    assert find_changed_files(root, files) == []
    edit()
    return [path.rpartition("/")[2] for path in find_changed_files(root, files)]


def same_size(path: Path) -> None:
    """Edit a file, keeping its size and modification time."""
    before = path.stat()
    path.write_bytes(path.read_bytes().swapcase())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


PREFIXES = ("", "file://", "file://localhost", "local://", "shelf://")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_edit_of_the_same_size_and_time_is_noticed(tmp_path: Path, prefix: str) -> None:
    for name in "ab":
        write(tmp_path / "in" / f"{name}.jsonl", texts(20))
    for path in ("in", "in/*.jsonl", "in/b.jsonl"):
        url = f"{prefix}{tmp_path}/{path}"
        assert changed_after(url, lambda: same_size(tmp_path / "in" / "b.jsonl")) == ["b.jsonl"], path


@pytest.mark.parametrize("prefix", PREFIXES)
def test_links_and_folders_that_cannot_be_read_are_reported(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.jsonl", texts(5))
    write(tmp_path / "in" / "sub" / "b.jsonl", texts(5))
    (tmp_path / "in" / "c.jsonl").symlink_to("gone.jsonl")
    for path in ("in", "in/*.jsonl", "in/**/*.jsonl"):
        with pytest.raises(UserError, match=r"c\.jsonl is a broken link"):
            found(f"{prefix}{tmp_path}/{path}")
    (tmp_path / "in" / "c.jsonl").unlink()
    (tmp_path / "in" / "c.jsonl").symlink_to("a.jsonl")
    assert found(f"{prefix}{tmp_path}/in") == ["a.jsonl", "c.jsonl", "sub/b.jsonl"]
    deny_folder(monkeypatch, "/sub")
    for path in ("in", "in/**/*.jsonl", "in/*/*.jsonl"):
        with pytest.raises(UserError, match=r"(?i)sub.*permission denied|permission denied.*sub"):
            found(f"{prefix}{tmp_path}/{path}")


def deny_folder(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Make folders with this end of their path unreadable, also for root."""

    def denied[**P, R](call: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(call)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if args and isinstance(args[0], str | os.PathLike) and str(args[0]).rstrip("/").endswith(end):
                raise PermissionError(errno.EACCES, "Permission denied", str(args[0]))
            return call(*args, **kwargs)

        return checked

    access = os.access
    monkeypatch.setattr(os, "scandir", denied(os.scandir))
    monkeypatch.setattr(os, "listdir", denied(os.listdir))
    monkeypatch.setattr(os, "access", lambda path, *a, **k: not str(path).endswith(end) and access(path, *a, **k))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_own_output_and_runs_inside_the_input_are_not_read(tmp_path: Path, byte_bpe: Path, prefix: str) -> None:
    write(tmp_path / "in" / "a.jsonl", texts(40))
    run(tmp_path / "in", tmp_path / "in" / "old" / "data", byte_bpe)
    write(tmp_path / "in" / "run" / "metrics.jsonl", texts(5))
    (tmp_path / "in" / "run" / "config.yaml").write_text("{}")
    write(tmp_path / "in" / "run" / "starts" / "0001" / "start.json", texts(1))
    write(tmp_path / "in" / "own" / "b.jsonl", texts(5))
    assert found(f"{prefix}{tmp_path}/in") == ["a.jsonl", "own/b.jsonl"]
    assert found(f"{prefix}{tmp_path}/in/**/*.jsonl") == ["a.jsonl", "own/b.jsonl"]
    assert found(f"{prefix}{tmp_path}/in/*/*.json*") == ["own/b.jsonl"]


def test_a_file_url_is_the_local_path(tmp_path: Path, byte_bpe: Path) -> None:
    write(tmp_path / "in" / "a b%20.jsonl", texts(40))
    for prefix in PREFIXES[1:4]:
        files = discover_files(source(f"{prefix}{tmp_path}/in"), "/nowhere")
        assert files == discover_files(source(tmp_path / "in"), "/nowhere")
    assert local_path("s3://bucket/x") is None
    assert local_path("a/b") == "a/b"
    cache = FingerprintCache()
    discover_files(source(f"file://{tmp_path}/in"), "/nowhere", cache)
    assert cache.opened == 1
    run([source(f"file://{tmp_path}/in")], tmp_path / "in" / "out", byte_bpe)
    run(tmp_path / "in", tmp_path / "plain", byte_bpe)
    assert tree(tmp_path / "in" / "out") == tree(tmp_path / "plain")


def test_an_edit_in_memory(memory: MemoryFileSystem) -> None:
    """This store has no ETag, and only the time at which a file was created."""
    for i in range(40):  # many files are listed with one call
        memory.pipe(f"/in/{i}.jsonl", b'{"text": "x"}\n')
    memory.pipe("/in/_hidden.jsonl", b"{}")
    assert len(found("memory://in")) == 40
    assert found("memory://in/3*.jsonl") == ["3.jsonl", *(f"3{i}.jsonl" for i in range(10))]
    assert changed_after("memory://in", lambda: memory.pipe("/in/7.jsonl", b'{"text": "y"}\n')) == ["7.jsonl"]
    assert changed_after("memory://in", lambda: memory.rm("/in/7.jsonl")) == []
    assert changed_after("memory://in/8.jsonl", lambda: memory.pipe("/in/8.jsonl", b"{}\n")) == ["8.jsonl"]


def test_a_large_file_without_a_tag_is_compared_by_its_time(memory: MemoryFileSystem) -> None:
    data = bytearray(b'{"text": "x"}\n' * 300_000)
    memory.pipe("/in/a.jsonl", bytes(data))
    data[150_010:150_011] = b"y"  # the fingerprint does not cover this byte
    assert changed_after("memory://in", lambda: memory.pipe("/in/a.jsonl", bytes(data))) == ["a.jsonl"]


def test_times_of_all_stores() -> None:
    from datetime import UTC, datetime

    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for info in (
        {"mtime": time.timestamp()},
        {"LastModified": time},
        {"updated": "2026-01-02T03:04:05.000Z"},
        {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"},
    ):
        assert modification_time(info) == int(time.timestamp() * 1e9)
    for info in ({}, {"mtime": None}, {"updated": "yesterday"}):
        assert modification_time(info) == 0


# HTTP


class Web(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `headers` are sent with each of them."""

    files: dict[str, bytes] = {}
    headers_sent: dict[str, str] = {}
    ranges = sized = True

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        bounds = self.headers.get("Range")
        whole = len(data)
        if bounds and self.ranges:
            first, _, last = bounds.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last or whole) + 1]
        self.send_response(206 if bounds and self.ranges else 200)
        if bounds and self.ranges:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{whole}")
        if self.sized:
            self.send_header("Content-Length", str(len(data)))
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has seen enough
            self.wfile.write(data if body else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[tuple[type[Web], str]]:
    class Handler(Web):
        files = {"/d/a.jsonl": b'{"text": "some text"}\n' * 9}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{server.server_address[1]}/d"
    server.shutdown()
    server.server_close()


def test_a_file_of_a_web_server(web: tuple[type[Web], str], tmp_path: Path, byte_bpe: Path) -> None:
    handler, url = web
    handler.files["/d/a.jsonl?signature=x"] = handler.files["/d/a.jsonl"]
    assert found(f"{url}/a.jsonl?signature=x") == ["a.jsonl?signature=x"]
    plan = plan_build([source(f"{url}/a.jsonl")], options(tmp_path / "out", byte_bpe), "test")
    run_task(plan, 0, 1)
    handler.files["/d/a.jsonl"] = handler.files["/d/a.jsonl"].swapcase()
    with pytest.raises(Failure, match=r"a\.jsonl: was changed while the data was made; nothing is published"):
        finalize(plan)
    handler.files["/d/a.jsonl"] = handler.files["/d/a.jsonl"].swapcase()
    assert finalize(plan).datasets[0].documents == 9


class Guarded(Web):
    """Answers only requests with the user, the password and a signature."""

    files = {"/d/a.jsonl": "".join(f'{{"text": "some text {n}"}}\n' for n in range(900)).encode()}
    headers_sent = {"ETag": '"1"'}

    def answer(self, body: bool) -> None:
        path, _, query = self.path.partition("?")
        user = base64.b64decode((self.headers.get("Authorization") or "Basic ").removeprefix("Basic ")).decode()
        if user != "me:p4ssw0rd" or not query.startswith("part=1&sig=s1g"):
            self.send_error(403)
            return
        self.path = path
        super().answer(body)


def test_credentials_are_used_and_stored_nowhere(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers read with them; plan, manifest and receipts do not have them; another signature changes nothing."""
    monkeypatch.setenv(url_credentials.VARIABLE, "{}")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    public = f"http://127.0.0.1:{server.server_address[1]}/d/a.jsonl?part=1"
    signed = public.replace("://", "://me:p4ssw0rd@") + "&sig=s1g/"
    try:
        manifest = run([source(f"{signed}A")], tmp_path / "out", byte_bpe, workers=2)
        assert manifest.datasets[0].documents == 900 and manifest.datasets[0].path == public
        stored = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert stored and not any(
            word in path.read_bytes() for path in stored for word in (b"p4ssw0rd", b"s1g", b"me:")
        )
        before = tree(tmp_path / "out")
        assert run([source(f"{signed}B")], tmp_path / "out", byte_bpe, workers=2).plan_hash == manifest.plan_hash
        assert tree(tmp_path / "out") == before
        monkeypatch.setenv(url_credentials.VARIABLE, "{}")
        with pytest.raises(UserError) as error:
            run([source(f"{signed}C".replace("sig=", "token="))], tmp_path / "other", byte_bpe)
        assert not any(word in message(str(error.value)) for word in ("s1g", "p4ssw0rd"))
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("text", ["x", "[]", '{"http://host/s3cret": 1}', '{"http://host": ["s3cret"]}'])
def test_a_damaged_variable_is_reported(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(url_credentials.VARIABLE, text)
    with pytest.raises(UserError, match=f"{url_credentials.VARIABLE}: .* unset it") as error:
        url_credentials.with_credentials("http://host/a.jsonl")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("headers", [{"ETag": 'W/"1"'}, {}, {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}])
def test_weak_tags_and_seconds_hide_no_edit(web: tuple[type[Web], str], headers: dict[str, str]) -> None:
    handler, url = web
    handler.headers_sent = headers
    edited = handler.files["/d/a.jsonl"].replace(b"some", b"same")
    assert changed_after(f"{url}/a.jsonl", lambda: handler.files.update({"/d/a.jsonl": edited})) == ["a.jsonl"]


def test_a_strong_tag_decides(web: tuple[type[Web], str]) -> None:
    handler, url = web
    handler.headers_sent = {"ETag": '"1"'}
    assert changed_after(f"{url}/a.jsonl", lambda: handler.headers_sent.update(ETag='"2"')) == ["a.jsonl"]


REFUSED = {
    "glob": ("{web}/*.jsonl", r"no reliable list of its files.*wget"),
    "set": ("{web}/[ab].jsonl", "no reliable list of its files"),
    "folder": ("{web}/", "no reliable list of its files"),
    "missing": ("{web}/none.jsonl", "Not Found"),
    "zip": ("zip://*.jsonl::{web}/a.zip", r"a chain of URLs is not read\. Unpack it: unzip ARCHIVE -d FOLDER"),
    "tar": ("tar://x::file:///a.tar", r"tar -xf ARCHIVE -C FOLDER, and set path=FOLDER"),
    "cache": ("simplecache::s3://bucket/x", "Set path to the last URL alone"),
    "protocol": ("nosuch://bucket/x", "nosuch"),
}


@pytest.mark.parametrize(("path", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_urls_that_cannot_be_listed_are_refused(web: tuple[type[Web], str], path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        found(path.format(web=web[1]))


def test_servers_that_cannot_serve_a_part_or_do_not_say_the_size(web: tuple[type[Web], str]) -> None:
    handler, url = web
    handler.files["/d/a.jsonl"] = b'{"text": "some text"}\n' * 200_000
    handler.ranges = False
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read: .*range"):
        found(f"{url}/a.jsonl")
    handler.sized = False
    with pytest.raises(UserError, match="its size is unknown"):
        found(f"{url}/a.jsonl")


def test_a_zip_archive_is_refused_with_the_command(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", '{"text": "x"}\n')
    for path in (tmp_path / "a.zip", tmp_path):
        with pytest.raises(UserError, match=r"is a zip archive, which is not read\. Convert it: unzip OLD -d NEW"):
            found(path)
