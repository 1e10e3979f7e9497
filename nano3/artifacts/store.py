"""The local artifact store: plain JSON under $NANO3_HOME (default ./artifacts). It needs no service.

    <home>/DataBlendsArtifact-pretrain/v1.json      one file per version, never changed
    <home>/DataBlendsArtifact-pretrain/math.alias   the version of an alias; replaced atomically
    <home>/DataBlendsArtifact-pretrain/places/…     the newest version at one path; named by the path's hash

A version file gets its name by a hard link, which fails if the name exists. Concurrent writers on a shared file system
therefore each get their own version, and a reader never sees a partial file.
"""

import hashlib
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import xxhash

from nano3.artifacts.names import alias_problem, name_problem
from nano3.utils.disk_errors import reason
from nano3.utils.errors import Failure, UserError, did_you_mean
from nano3.utils.files import (
    expand_user,
    folder_content,
    fsync_dir,
    normalize_path,
    temp_name,
    unwritable_reason,
    write_text,
)
from nano3.utils.provenance import user_name
from nano3.utils.records import damaged, read_record, write_record

# What the content of an alias begins with, before its checksum and the number.
_NUMBER_MARK = "xxh128:"


class UnknownReferenceError(UserError):
    """No artifact of this name, or no such version or alias.

    `tag` is the requested version or alias.
    """

    tag = ""


@dataclass(frozen=True)
class Artifact:
    """One version of a named result on disk."""

    name: str
    version: Annotated[int, msgspec.Meta(ge=0)]
    path: str
    # Identity of the content. Registering the same content at the same path again makes no new version.
    fingerprint: str
    metadata: dict[str, Any] = field(default_factory=dict)
    # References ("name:v3") of the artifacts that this one was made from.
    inputs: list[str] = field(default_factory=list)
    created: str = ""
    creator: str = ""

    @property
    def reference(self) -> str:
        """The permanent reference of this version."""
        return f"{self.name}:v{self.version}"


def home() -> Path:
    """Return the store's folder: $NANO3_HOME or, if it is not set or empty, ./artifacts."""
    return normalize_path(expand_user(os.environ.get("NANO3_HOME") or "artifacts"))


def names() -> list[str]:
    """Return the names that have at least one version, sorted."""
    return sorted(
        folder.name for folder in folder_content(home()) if any(p.match("v*.json") for p in folder_content(folder))
    )


def versions(name: str) -> list[int]:
    """Return the version numbers of `name`, ascending."""
    found = (re.fullmatch(r"v([1-9][0-9]*)\.json", path.name) for path in folder_content(home() / name))
    return sorted(int(m[1]) for m in found if m)


def _alias_files(name: str) -> list[Path]:
    return sorted(path for path in folder_content(home() / name) if path.suffix == ".alias")


def aliases(name: str) -> dict[str, int]:
    """Return the version of each undamaged alias; `latest` is the highest version and is not stored."""
    have = versions(name)
    found = {path.stem: number for path in _alias_files(name) if (number := _number_in(path)) in have}
    return {**found, "latest": have[-1]} if have else found


def damaged_aliases(name: str) -> list[str]:
    """Return a message for each alias of `name` whose file names no existing version."""
    have = versions(name)
    return [_damaged(path) for path in _alias_files(name) if _number_in(path) not in have]


def load(name: str, version: int) -> Artifact:
    """Read one version.

    Raises:
        FileNotFoundError: If there is no such version.
        DamagedRecordError: If its file is damaged.
    """
    path = home() / name / f"v{version}.json"
    fix = "Remove it. The same nano3.data_prep command, or the run's next checkpoint, registers its artifact again."
    artifact = read_record(path, Artifact, fix)
    if (artifact.name, artifact.version) != (name, version):
        raise damaged(path, f"it is the record of {artifact.reference}", fix)
    return artifact


def register(
    name: str,
    path: Path,
    fingerprint: str,
    *,
    metadata: dict[str, Any] | None = None,
    inputs: Iterable[str] = (),
    alias: str | None = None,
) -> Artifact:
    """Record `path` as the newest version of `name`, or return the existing version of this content at this path.

    Only the newest version of a path counts. Content that returns to a path after other content was there makes a new
    version, because `latest` means the other version by then.

    Args:
        name: The artifact's name.
        path: The folder that holds it.
        fingerprint: The identity of its content.
        metadata: JSON values to record with it.
        inputs: References of the artifacts that it was made from.
        alias: Another name for this version.

    Raises:
        UserError: If `registration_problems` finds any.
        Failure: If the store cannot be written.
    """
    if found := registration_problems(name, alias):
        raise UserError(found)
    location = str(Path(path).absolute())
    version = find_by_path(name, location)
    try:
        if version is None or version.fingerprint != fingerprint:
            version = _append(
                Artifact(name, 0, location, fingerprint, metadata or {}, list(inputs), _now(), _creator())
            )
        if alias and aliases(name).get(alias) != version.version:
            _write_number(home() / name / f"{alias}.alias", version.version)
    except OSError as error:
        raise Failure(f"{location} cannot be registered in the artifact store {home()}: {reason(error)}") from error
    return version


def registration_problems(name: str, alias: str | None = None, write: bool = False) -> list[str]:
    """Return everything that `register` would refuse; with `write` also whether the store cannot be written."""
    found = [p for p in (name_problem(name), alias_problem(alias) if alias else None) if p]
    if write and (why := unwritable_reason(home())):
        found.append(
            f"the artifact store {home()} cannot be written: {why}. Set NANO3_HOME to a folder that you can write and "
            f"that every machine of the run can read."
        )
    return found


def find_by_path(name: str, path: str) -> Artifact | None:
    """Return the newest version of `name` at an absolute path, or None.

    Raises:
        DamagedRecordError: A record of the store is damaged.
    """
    place = _path_file(name, path)
    number = _number_in(place)
    have = versions(name)
    if number in have:
        found = load(name, number)
        if found.path == path:
            return found
    # A damaged file is not trusted: look for the path. A missing one is that of a store written before places/ existed.
    candidates = (load(name, version) for version in reversed(have if place.exists() else have[-1:]))
    return next((version for version in candidates if version.path == path), None)


def find_by_folder(folder: str) -> Artifact | None:
    """Return the newest version of any artifact in this folder, or None."""
    return next((found for name in names() if (found := find_by_path(name, folder))), None)


def find_artifact(reference: str) -> Artifact:
    """Return the record of `name`, `name:latest`, `name:v3` or `name:<alias>`, without checking its path.

    Raises:
        UnknownReferenceError: If there is none; the message lists the existing ones.
        Failure: If the alias is damaged.
        DamagedRecordError: If the record is damaged.
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


def _no_such(tag: str, text: str) -> UnknownReferenceError:
    error = UnknownReferenceError(text)
    error.tag = tag
    return error


def _number_in(path: Path) -> int | None:
    """Return the version number in a file of the store; None without such a file or number.

    Files of earlier versions, and those written by hand, hold nothing but the number.
    """
    try:
        text = path.read_text()
        if not text.startswith(_NUMBER_MARK):
            return int(text)
        return int(text.split()[-1]) if text == _number_text(path, int(text.split()[-1])) else None
    except (FileNotFoundError, ValueError):
        return None


def _write_number(path: Path, number: int) -> None:
    write_text(path, _number_text(path, number))


def _number_text(path: Path, number: int) -> str:
    """Return the content of a file that holds a version number: a checksum of its name and the number, then that."""
    return f"{_NUMBER_MARK}{xxhash.xxh3_128_hexdigest(f'{path.name} {number}'.encode())} {number}\n"


def _damaged(alias: Path) -> str:
    have = ", ".join(map(str, versions(alias.parent.name))) or "none"
    return (
        f"{alias}: names no existing version. Write the number of one into it (existing: {have}), remove it, or "
        "run the same nano3.data_prep or nano3.pretrain command again, which writes it."
    )


def resolve(reference: str) -> Artifact:
    """Return an artifact like `find_artifact`, and check that its path still holds its content.

    Raises:
        UserError: If the path is gone or holds other content now.
    """
    artifact = find_artifact(reference)
    if not Path(artifact.path).exists():
        raise UserError(
            f"{artifact.reference} was at {artifact.path}, which no longer exists. "
            "Make it again, or name the folder where it is now."
        )
    newest = find_by_path(artifact.name, artifact.path)
    if newest and newest.version > artifact.version and newest.fingerprint != artifact.fingerprint:
        raise UserError(
            f"{artifact.reference} was at {artifact.path}, which now holds other content: {newest.reference}. "
            f"Use that, or make the old one again (for data: with its weights and options)."
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
        write_record(temp, numbered)
        try:
            os.link(temp, target)
            fsync_dir(folder)
            _write_number(_path_file(artifact.name, artifact.path), number)
            return numbered
        except FileExistsError:
            number += 1
        finally:
            temp.unlink()


def _path_file(name: str, path: str) -> Path:
    """Return the file with the newest version at a path, so that nothing has to read every version ever saved."""
    return home() / name / "places" / hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _creator() -> str:
    return f"{user_name()}@{socket.gethostname()}"
