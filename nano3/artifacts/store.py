"""The local artifact store: plain JSON under $NANO3_HOME (default ./artifacts), always written, no service needed.

    <home>/DataBlendsArtifact-pretrain/v1.json      one file per version, never changed once written
    <home>/DataBlendsArtifact-pretrain/math.alias   the version an alias points to; replaced atomically
    <home>/DataBlendsArtifact-pretrain/places/…     the newest version at one path, named by the path's hash

A version file appears under its name by a hard link, which fails if the name exists: many writers on a shared file
system each get a version of their own, and nobody ever reads half of one.
"""

import hashlib
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nano3.artifacts.names import alias_problem, name_problem
from nano3.utils.errors import Failure, UserError, did_you_mean
from nano3.utils.files import (
    expand_user,
    fsync_dir,
    normalize_path,
    read_json,
    temp_name,
    unwritable_reason,
    write_json,
    write_text,
)
from nano3.utils.provenance import user_name


class UnknownReference(UserError):
    """There is no such artifact, or it has no such version or alias."""

    # What was asked for after the colon.
    tag = ""


@dataclass(frozen=True)
class Artifact:
    """One version of a named result on disk."""

    name: str
    version: int
    path: str
    # Identity of the content: registering the same content at the same path again makes no new version.
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
    return normalize_path(expand_user(os.environ.get("NANO3_HOME", "artifacts")))


def names() -> list[str]:
    """Names with at least one version, sorted."""
    return sorted(folder.name for folder in home().glob("*") if any(folder.glob("v*.json")))


def versions(name: str) -> list[int]:
    """Version numbers of `name`, ascending."""
    found = (re.fullmatch(r"v([1-9][0-9]*)\.json", path.name) for path in (home() / name).glob("v*.json"))
    return sorted(int(m[1]) for m in found if m)


def aliases(name: str) -> dict[str, int]:
    """Alias to version; `latest` is the highest version and is not stored. Damaged ones are left out."""
    have = versions(name)
    found = {path.stem: number for path in (home() / name).glob("*.alias") if (number := _number_in(path)) in have}
    return {**found, "latest": have[-1]} if have else found


def damaged_aliases(name: str) -> list[str]:
    """One sentence for each alias of `name` whose file names no version that is there."""
    have = versions(name)
    return [_damaged(path) for path in sorted((home() / name).glob("*.alias")) if _number_in(path) not in have]


def load(name: str, version: int) -> Artifact:
    """Read one version. Raises `FileNotFoundError` when there is none, `Failure` when its file is damaged."""
    path = home() / name / f"v{version}.json"
    try:
        return Artifact(**read_json(path))
    except (ValueError, TypeError) as error:
        raise Failure(
            f"{path}: damaged ({error}). Remove it: the same nano3.data_prep, or the run's next checkpoint, registers "
            "again what it stood for."
        ) from error


def register(
    name: str,
    path: Path,
    fingerprint: str,
    *,
    metadata: dict[str, Any] | None = None,
    inputs: Iterable[str] = (),
    alias: str | None = None,
) -> Artifact:
    """Record `path` as the newest version of `name`, or return the version that is this content at this place already.

    Only the newest version of a place counts: content that comes back after other content was there is a new version,
    because the other's version is what `latest` means by then. Raises `UserError` as `registration_problems` has them.
    """
    if found := registration_problems(name, alias):
        raise UserError(found)
    place = str(Path(path).absolute())
    version = find_by_path(name, place)
    try:
        if version is None or version.fingerprint != fingerprint:
            version = _append(Artifact(name, 0, place, fingerprint, metadata or {}, list(inputs), _now(), _creator()))
        if alias and aliases(name).get(alias) != version.version:
            write_text(home() / name / f"{alias}.alias", str(version.version))
    except OSError as error:
        raise Failure(f"{place} could not be registered in the artifact store {home()}: {error.strerror}") from error
    return version


def registration_problems(name: str, alias: str | None = None, write: bool = False) -> list[str]:
    """Everything that `register` would refuse. With `write` also a store that cannot be written, tried if need be."""
    found = [p for p in (name_problem(name), alias_problem(alias) if alias else None) if p]
    if write and (why := unwritable_reason(home())):
        found.append(
            f"the artifact store {home()} cannot be written: {why}. Set NANO3_HOME to a folder of yours that every "
            f"machine of the run can see."
        )
    return found


def find_by_path(name: str, place: str) -> Artifact | None:
    """The newest version of `name` at a path; None when there is none."""
    try:
        return load(name, _number_in(_place_file(name, place)) or 0)
    except FileNotFoundError:
        have = versions(name)  # a store of before there were place files
        newest = load(name, have[-1]) if have else None
        return newest if newest and newest.path == place else None


def find_by_folder(folder: str) -> Artifact | None:
    """The newest version of any artifact that is this folder."""
    return next((found for name in names() if (found := find_by_path(name, folder))), None)


def find_artifact(reference: str) -> Artifact:
    """What is recorded of `name`, `name:latest`, `name:v3` or `name:<alias>`, whatever lies at its path by now.

    Raises `UserError` that lists what there is.
    """
    name, _, tag = reference.partition(":")
    tag = tag or "latest"
    if not versions(name):
        known = names()
        hint = did_you_mean(name, known) if known else " The store is empty; run python -m nano3.data_prep first."
        raise _no_such(tag, f"no artifact {name!r} in {home()}.{hint}\n  Another store: set NANO3_HOME.")
    tags = {**aliases(name), **{f"v{v}": v for v in versions(name)}}
    if tag not in tags:
        if (alias := home() / name / f"{tag}.alias").exists():
            raise Failure(_damaged(alias))
        raise _no_such(tag, f"artifact {name!r} has no version or alias {tag!r}.{did_you_mean(tag, list(tags))}")
    return load(name, tags[tag])


def _no_such(tag: str, text: str) -> UnknownReference:
    error = UnknownReference(text)
    error.tag = tag
    return error


def _number_in(path: Path) -> int | None:
    """The version number that a file of the store holds; None when there is no such file, or it holds none."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _damaged(alias: Path) -> str:
    have = ", ".join(map(str, versions(alias.parent.name))) or "none"
    return (
        f"{alias}: names no version that is there. Write the number of one into it (there are: {have}), remove it, or "
        "make it anew: the same nano3.data_prep or run does."
    )


def resolve(reference: str) -> Artifact:
    """`find_artifact` for use: the artifact is where it was, and still what it was. Raises `UserError`."""
    artifact = find_artifact(reference)
    if not Path(artifact.path).exists():
        raise UserError(
            f"{artifact.reference} was at {artifact.path}, which is gone. "
            "Make it again, or name the folder where it is now."
        )
    newest = find_by_path(artifact.name, artifact.path)
    if newest and newest.version > artifact.version and newest.fingerprint != artifact.fingerprint:
        raise UserError(
            f"{artifact.reference} was at {artifact.path}, which now holds other content: {newest.reference}. "
            f"Use that, or make the old one again (for data: with the weights and options it had)."
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
            write_text(_place_file(artifact.name, artifact.path), str(number))
            return numbered
        except FileExistsError:
            number += 1
        finally:
            temp.unlink()


def _place_file(name: str, place: str) -> Path:
    """Finding a path's version must not mean reading every version: there is one for each checkpoint ever saved."""
    return home() / name / "places" / hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _creator() -> str:
    return f"{user_name()}@{socket.gethostname()}"
