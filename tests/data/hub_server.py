"""A loopback server that answers like the Hugging Face hub."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub with some repositories.

    Args:
        repos: {"datasets/org/name" or "org/name": {path: content}}.
        card: Metadata of the dataset card.
        token: If set, every request needs it.

    Attributes:
        commit: The commit of `main`.
        breaks: {file name: how many of its next answers break off after `whole` bytes}.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]], card: dict | None = None, token: str | None = None) -> None:
        self.repos, self.card, self.token = repos, card, token
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.breaks: dict[str, int] = {}
        self.whole = 0
        self.commit = COMMIT
        self.closed = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                if hub.closed:  # a client may have kept its connection
                    self.close_connection = True
                    return
                status, headers, data = hub.reply(self.command, self.path, dict(self.headers))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                name = unquote(self.path).rpartition("/")[2]
                if body and hub.breaks.get(name, 0) > 0:
                    hub.breaks[name] -= 1
                    self.wfile.write(data[: hub.whole])
                    self.close_connection = True
                elif body:
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Shut the server down. May be called again."""
        self.closed = True
        self.server.shutdown()
        self.server.server_close()

    def reply(self, method: str, raw: str, headers: dict) -> tuple[int, dict, bytes]:
        url = urlparse(raw)
        path = unquote(url.path).lstrip("/")
        self.requests.append(f"{method} {raw}")
        if self.token and headers.get("Authorization", headers.get("authorization")) != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if path.startswith("api/"):
            return self.api(path.removeprefix("api/"), parse_qs(url.query))
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in ("main", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if name not in self.repos[repo]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, b"{}"
        data = self.repos[repo][name]
        meta = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        wanted = headers.get("Range", headers.get("range"))
        if wanted:
            self.ranges.append(f"{name} {wanted}")
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high) if high else len(data) - 1, len(data) - 1)
            meta["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return 206, meta, data[first : last + 1]
        return 200, meta, data

    def api(self, path: str, query: dict) -> tuple[int, dict, bytes]:
        kind, _, rest = path.partition("/")
        words = rest.split("/")
        repo = "/".join(words[:2]) if kind == "models" else f"datasets/{'/'.join(words[:2])}"
        action, revision = (words[2], words[3]) if len(words) > 3 else ("revision", "main")
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in ("main", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.repos[repo]
        if action == "tree":
            items = [{"type": "file", "path": n, "size": len(d), "oid": oid(d)} for n, d in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(items).encode()
        if action == "paths-info":
            items = [{"type": "file", "path": n, "size": len(d), "oid": oid(d)} for n, d in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(items).encode()
        info = {
            "id": repo.removeprefix("datasets/"),
            "sha": self.commit,
            "private": False,
            "downloads": 0,
            "tags": [],
            "siblings": [{"rfilename": n} for n in files],
            "cardData": self.card,
        }
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()


def oid(data: bytes) -> str:
    """Return the Git hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubEnv(Protocol):
    """Type of the fixture `hub_env`."""

    def __call__(self, hub: Hub, token: str | None = None) -> None:
        """Point the hub's client at a server."""
