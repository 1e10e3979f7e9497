"""A W&B server on the loopback interface: as much of GraphQL and of the file stream as the real client needs for a run.

It takes metrics and artifacts by reference, and has one account, of `API_KEY`.
"""

import base64
import contextlib
import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "me"


@dataclass
class Run:
    """What the server has of a run."""

    name: str
    project: str
    display_name: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    logged: list[str] = field(default_factory=list)  # artifacts, as NAME:vN
    used: list[str] = field(default_factory=list)


@dataclass
class Artifact:
    """An artifact of the server."""

    id: str
    name: str
    kind: str
    digest: str
    aliases: list[str]
    metadata: dict[str, Any]
    client_id: str
    committed: bool = False
    manifest: dict[str, Any] | None = None


class WandbServer:
    """A server that can go away (`stop`), come back at the same port (`start`), and `hang`: accept and not answer.

    With `refuse` it has a page at its address, as a proxy does, and answers everything else with that status, or never
    if it is 0.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.unknown: list[str] = []  # operations that it could not answer
        self.requests = 0
        self.hang = False
        self.refuse: int | None = None
        self._lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """The value of WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def stopped(self) -> bool:
        """Whether it is away."""
        return self._server is None

    @property
    def env(self) -> dict[str, str]:
        """Environment of a client. Without the variables the client would ask the machine about itself."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY, "WANDB_DISABLE_GIT": "true"}

    def start(self) -> None:
        """Listen, at the port of the first time."""

        class Server(ThreadingHTTPServer):
            allow_reuse_address, daemon_threads = True, True

            def handle_error(self, *_: object) -> None:
                """Be silent about clients that did not wait for an answer."""

        self._server = Server(("127.0.0.1", self.port), type("Answers", (Handler,), {"owner": self}))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL operation."""
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation[1] if operation else "").lower()
        method = getattr(self, f"answer_{name}", None)
        with self._lock:
            if method is None:
                self.unknown.append(query)
                return {}
            found: dict[str, Any] = method(variables)
            return found

    def answer_viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "me@here", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    def answer_server_features_query(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def answer_organization_core_weave_organization_id(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def answer_xxhash_digests_enabled(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def answer_fetch_artifact_digest_algorithm(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def answer_artifact_type(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def answer_run_resume_status(self, v: dict[str, Any]) -> dict[str, Any]:
        run, model = self.runs.get(v["name"]), {"id": "p", "name": v["project"], "entity": {"id": "e", "name": ENTITY}}
        return {"model": model | {"bucket": run and self._bucket(run, resume=True)}}

    def answer_upsert_bucket(self, v: dict[str, Any]) -> dict[str, Any]:
        inserted = v["name"] not in self.runs
        run = self.runs.setdefault(v["name"], Run(v["name"], v.get("project") or "uncategorized"))
        run.display_name = v.get("displayName") or run.display_name
        run.group = v.get("groupName") or run.group
        run.config |= json.loads(v.get("config") or "{}")
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def _bucket(self, run: Run, resume: bool = False) -> dict[str, Any]:
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        bucket = {
            "id": f"run-{run.name}",
            "name": run.name,
            "displayName": run.display_name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.history),
        }
        if resume:
            last = json.dumps(run.history[-1] if run.history else {})
            bucket |= {
                "summaryMetrics": last,
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([last] if run.history else []),
                "eventsTail": "[]",
                "tags": [],
                "notes": None,
                "wandbConfig": "{}",
            }
        return bucket

    def answer_create_run_files(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/files/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def answer_mark_run_files_uploaded(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def answer_create_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        i = v["input"]
        name = i["artifactCollectionNames"][0] if i.get("artifactCollectionNames") else i["artifactCollectionName"]
        found = next((a for a in self.artifacts.values() if (a.name, a.digest) == (name, i["digest"])), None)
        if found is None:
            version = sum(a.name == name for a in self.artifacts.values())
            aliases = [a["alias"] for a in i.get("aliases") or []]
            metadata = json.loads(i.get("metadata") or "{}")
            found = Artifact(
                f"artifact-{len(self.artifacts)}", name, i["artifactTypeName"], i["digest"], aliases, metadata,
                i.get("clientID") or "",
            )  # fmt: skip
            found.metadata["version"] = version
            self.artifacts[found.id] = found
        if i.get("runName") in self.runs:
            self.runs[i["runName"]].logged.append(name)
        return {"createArtifact": {"artifact": self._artifact(found)}}

    def _artifact(self, a: Artifact) -> dict[str, Any]:
        state = "COMMITTED" if a.committed else "PENDING"
        sequence = {"id": f"sequence-{a.name}", "name": a.name, "latestArtifact": None}
        return {"id": a.id, "state": state, "artifactSequence": sequence, "digest": a.digest}

    def answer_artifact_by_id(self, v: dict[str, Any]) -> dict[str, Any]:
        a = self.artifacts[v["id"]]
        project = {"id": "p", "internalId": "p", "name": "p", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": a.name, "project": project}
        aliases = [
            {"__typename": "ArtifactAlias", "id": n, "alias": n, "artifactCollection": sequence} for n in a.aliases
        ]
        return {
            "artifact": self._artifact(a)
            | {
                "__typename": "Artifact", "artifactSequence": sequence, "versionIndex": a.metadata["version"],
                "artifactType": {"name": a.kind}, "description": None, "metadata": json.dumps(a.metadata),
                "ttlDurationSeconds": 0, "ttlIsInherited": True, "tags": [], "historyStep": None, "size": 0,
                "commitHash": "c", "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None,
                "aliases": aliases,
            }
        }  # fmt: skip

    def answer_create_artifact_manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(v["artifactID"])}}

    def answer_update_artifact_manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(v["artifactManifestID"])}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        file = {"id": "f", "uploadUrl": f"{self.url}/upload/manifest/{artifact}", "uploadHeaders": []}
        return {"id": artifact, "file": file}

    def answer_commit_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self.artifacts[v["artifactID"]]
        found.committed = True
        return {"commitArtifact": {"artifact": {"id": found.id, "digest": found.digest}}}

    def answer_use_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self.artifacts[v["input"]["artifactID"]]
        self.runs[v["input"]["runName"]].used.append(found.name)
        return {"useArtifact": {"artifact": {"id": found.id}}}

    def answer_client_idmapping(self, v: dict[str, Any]) -> dict[str, Any]:
        found = next((a.id for a in self.artifacts.values() if a.client_id == v["clientID"]), None)
        return {"clientIDMapping": found and {"serverID": found}}

    def stream(self, run_name: str, body: dict[str, Any]) -> None:
        """Take a request of the file stream: lines of history from an offset, and the exit."""
        with self._lock:
            run = self.runs[run_name]
            history = body.get("files", {}).get("wandb-history.jsonl")
            if history:
                run.history[history["offset"] :] = [json.loads(line) for line in history["content"]]
            if body.get("complete"):
                run.exit_code = body.get("exitcode")

    def upload(self, path: str, body: bytes) -> None:
        """Take an uploaded file; manifests are kept."""
        kind, _, name = path.partition("/")
        if kind == "manifest":
            with self._lock:
                self.artifacts[name].manifest = json.loads(body)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of a server."""

    protocol_version = "HTTP/1.1"
    owner: WandbServer

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def body(self) -> bytes:
        """Return the request's body."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def reply(self, value: object) -> None:
        """Send a JSON value."""
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answers(self) -> bool:
        """Count the request; return whether the server is still there to answer it."""
        self.owner.requests += 1
        while self.owner.hang:
            time.sleep(0.05)
        self.close_connection = self.owner.stopped
        return not self.owner.stopped

    def do_GET(self) -> None:
        """Answer the question whether the server is there."""
        if self.answers():
            self.reply({})

    def do_POST(self) -> None:
        """Answer GraphQL and the file stream."""
        content = self.body()
        if not self.answers():
            return
        credentials = base64.b64decode(self.headers.get("Authorization", "").partition(" ")[2]).decode()
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        while self.owner.refuse == 0:
            time.sleep(0.05)
        if self.owner.refuse:
            self.send_error(self.owner.refuse)
        elif credentials != f"api:{API_KEY}":
            self.send_error(401)
        elif self.path == "/graphql":
            sent = json.loads(content)
            self.reply({"data": self.owner.answer(sent["query"], sent.get("variables") or {})})
        elif stream:
            self.owner.stream(stream[1], json.loads(content))
            self.reply({"exitcode": None, "limits": {}})
        else:
            self.owner.unknown.append(self.path)
            self.send_error(404)

    def do_PUT(self) -> None:
        """Take a file."""
        content = self.body()
        if self.answers():
            self.owner.upload(self.path.removeprefix("/upload/"), content)
            self.reply({})


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Run a server."""
    server = WandbServer()
    try:
        yield server
    finally:
        server.hang, server.refuse = False, None
        server.stop()
