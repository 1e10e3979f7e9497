"""The local artifact store: plain JSON under $NANO3_HOME (default ./artifacts), always written, no service needed.

    <home>/DataBlendsArtifact-pretrain/v1.json      one file per version, never changed once written
    <home>/DataBlendsArtifact-pretrain/math.alias   the version an alias points to; replaced atomically

A version file appears under its name by a hard link, which fails if the name exists: many writers on a shared file
system each get a version of their own, and nobody ever reads half of one.
"""

import getpass
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nano3.errors import UserError, did_you_mean
from nano3.files import fsync_dir, read_json, temp_name, write_json, write_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Artifact:
    """One version of a named result on disk."""

    name: str
    version: int
    path: str
    # Identity of the content (for data its plan hash): registering the same content again makes no new version.
    fingerprint: str
    metadata: dict[str, Any] = field(default_factory=dict)
    # References ("name:v3") of the artifacts this one was made from.
    inputs: list[str] = field(default_factory=list)
    created: str = ""
    creator: str = ""

    @property
    def reference(self) -> str:
        """The reference that always means this version."""
        return f"{self.name}:v{self.version}"


def home() -> Path:
    """The store's folder: $NANO3_HOME or ./artifacts."""
    return Path(os.environ.get("NANO3_HOME", "artifacts")).absolute()


def names() -> list[str]:
    """Names with at least one version, sorted."""
    return sorted(folder.name for folder in home().glob("*") if any(folder.glob("v*.json")))


def versions(name: str) -> list[int]:
    """Version numbers of `name`, ascending."""
    found = (re.fullmatch(r"v(\d+)\.json", path.name) for path in (home() / name).glob("v*.json"))
    return sorted(int(m[1]) for m in found if m)


def aliases(name: str) -> dict[str, int]:
    """Alias to version; `latest` is the highest version and is not stored."""
    found = {path.stem: int(path.read_text()) for path in (home() / name).glob("*.alias")}
    have = versions(name)
    return {**found, "latest": have[-1]} if have else found


def load(name: str, version: int) -> Artifact:
    """Read one version."""
    return Artifact(**read_json(home() / name / f"v{version}.json"))


def register(
    name: str,
    path: Path,
    fingerprint: str,
    *,
    metadata: dict[str, Any] | None = None,
    inputs: Iterable[str] = (),
    alias: str | None = None,
) -> Artifact:
    """Record `path` as the newest version of `name`, or return the newest when it is this very content at this place.

    Raises `UserError` for a name or alias that is no plain file name.
    """
    for word in filter(None, (name, alias)):
        if not NAME.fullmatch(word) or word == "latest":
            raise UserError(f"{word!r} cannot name an artifact: letters, digits, '.', '_' and '-', and not 'latest'")
    have = versions(name)
    newest = load(name, have[-1]) if have else None
    place = str(Path(path).absolute())
    if newest is None or (newest.fingerprint, newest.path) != (fingerprint, place):
        newest = _append(Artifact(name, 0, place, fingerprint, metadata or {}, list(inputs), _now(), _creator()))
    if alias and aliases(name).get(alias) != newest.version:
        write_text(home() / name / f"{alias}.alias", str(newest.version))
    return newest


def resolve(reference: str) -> Artifact:
    """Find `name`, `name:latest`, `name:v3` or `name:<alias>`. Raises `UserError` that lists what there is."""
    name, _, tag = reference.partition(":")
    tag = tag or "latest"
    if not versions(name):
        known = names()
        hint = did_you_mean(name, known) if known else " The store is empty; run python -m nano3.data_prep first."
        raise UserError(f"no artifact {name!r} in {home()}.{hint}\n  Another store: set NANO3_HOME.")
    tags = {**aliases(name), **{f"v{v}": v for v in versions(name)}}
    if tag not in tags:
        made = f"\n  To make it: python -m nano3.data_prep data_blend={tag}" if name.startswith("DataBlends") else ""
        raise UserError(f"artifact {name!r} has no version or alias {tag!r}.{did_you_mean(tag, list(tags))}{made}")
    artifact = load(name, tags[tag])
    if not Path(artifact.path).exists():
        raise UserError(
            f"{artifact.reference} was at {artifact.path}, which is gone. "
            "Make it again, or point at the place: run.data=DIR"
        )
    return artifact


def _append(artifact: Artifact) -> Artifact:
    folder = home() / artifact.name
    folder.mkdir(parents=True, exist_ok=True)
    number = (versions(artifact.name) or [0])[-1] + 1
    while True:
        numbered = Artifact(**{**asdict(artifact), "version": number})
        target = folder / f"v{number}.json"
        temp = temp_name(target)
        write_json(temp, asdict(numbered))
        try:
            os.link(temp, target)
            fsync_dir(folder)
            return numbered
        except FileExistsError:
            number += 1
        finally:
            temp.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _creator() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
