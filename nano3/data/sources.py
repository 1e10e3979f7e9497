"""From a dataset's `path` to its list of files: local files, folders, globs, fsspec URLs and the Hugging Face hub.

A file is known by its path relative to the dataset's root, its size and a fingerprint of its content, never by where
the root is or when it was touched; so moving a dataset does not make it another one.
"""

import glob
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from nano3.config import SourceConfig
from nano3.console import warn
from nano3.data.formats import ALLOWED, HEAD, JSON_NAMES, detect
from nano3.errors import Failure, Nano3Error, UserError

REMOTE_THREADS = 16


@dataclass
class Found:
    """The files of one dataset, sorted by name. Lists of equal length, since there may be many.

    `root` is a local folder or a URL; `keys` are paths relative to it; `prints` identify the content.
    """

    root: str
    revision: str | None = None
    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    prints: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)


def find(source: SourceConfig) -> Found:
    """List and identify the files of a dataset. Raises `UserError` when there are none or a named one is of no known
    format.
    """
    label = f"dataset {source.name!r}: path={source.path}"
    if source.path.startswith("hf://"):
        from nano3.data.hub import list_dataset

        root, revision, entries = list_dataset(source)
        found = identify(Found(root, revision), entries, strict=False, label=label)
    elif "://" in source.path:
        root, entries, strict = list_url(source.path, label)
        found = identify(Found(root), entries, strict, label)
    else:
        root, entries, strict = list_local(source.path, label)
        found = identify(Found(root), entries, strict, label)
    if not found.keys:
        raise UserError(f"{label}: no file with text in it. Formats: {ALLOWED}.")
    return found


Entry = tuple[str, int, str | None]  # key, size, fingerprint when the place that stores it has one


def list_local(path: str, label: str) -> tuple[str, list[Entry], bool]:
    """Root, entries, and whether each was named by the user (a file or a glob, not a folder)."""
    full = Path(path).expanduser().absolute()
    entries: list[Entry]
    if full.is_file():
        return str(full.parent), [(full.name, full.stat().st_size, None)], True
    if full.is_dir():
        return str(full), walk(str(full)), False
    if glob.has_magic(path):
        fixed = full
        while glob.has_magic(str(fixed)):
            fixed = fixed.parent
        pattern = os.path.relpath(full, fixed)
        entries = [(str(p.relative_to(fixed)), p.stat().st_size, None) for p in fixed.glob(pattern) if p.is_file()]
        if entries:
            return str(fixed), entries, True
        raise UserError(f"{label}: no file matches (looked under {fixed}).")
    near = full.parent
    while not near.exists():
        near = near.parent
    raise UserError(f"{label}: no such file or folder; {near} is the part of it that exists.")


def walk(folder: str) -> list[Entry]:
    """All visible files under a folder; names that begin with "." or "_" are bookkeeping of other tools."""
    entries: list[Entry] = []
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as items:
            for item in items:
                if item.name[0] in "._":
                    continue
                if item.is_dir():
                    pending.append(item.path)
                elif item.is_file():
                    entries.append((os.path.relpath(item.path, folder), item.stat().st_size, None))
    return entries


def list_url(url: str, label: str) -> tuple[str, list[Entry], bool]:
    """Entries of a file, folder or glob on any fsspec file system."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
        strict = True
        if glob.has_magic(path):
            infos = fs.glob(path, detail=True)
            root = path[: glob.magic_check.search(path).start()].rpartition("/")[0]  # type: ignore[attr-defined]
        elif fs.isfile(path):
            infos = {path: fs.info(path)}
            root = path.rpartition("/")[0]
        else:
            infos, root, strict = fs.find(path, detail=True), path.rstrip("/"), False
    except ImportError as error:
        extra = " Install it with: pip install 'nano3[s3]'" if url.startswith("s3:") else ""
        raise UserError(f"{label}: {error}.{extra}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{label}: {error or type(error).__name__}") from error
    entries: list[Entry] = []
    for name, info in infos.items():
        key = name[len(root) :].lstrip("/")
        if info.get("type", "file") == "file" and not any(part[:1] in "._" for part in key.split("/")):
            tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("checksum")
            entries.append((key, int(info["size"] or 0), str(tag).strip('"') if tag else None))
    if not entries:
        raise UserError(f"{label}: nothing there.")
    return fs.unstrip_protocol(root), entries, strict


def identify(found: Found, entries: list[Entry], strict: bool, label: str) -> Found:
    """Sort by name, look at each file's bytes, keep the ones that hold text. Empty files have no document and are
    left out.
    """
    entries = sorted((key.replace(os.sep, "/"), size, tag) for key, size, tag in entries)

    def look(entry: Entry) -> tuple[str, str | None]:
        return inspect_file(found.root, *entry)

    solid = [e for e in entries if e[1] > 0]
    if "://" in found.root:
        with ThreadPoolExecutor(REMOTE_THREADS) as pool:
            looks = list(pool.map(look, solid))
    else:
        looks = [look(e) for e in solid]
    strange = []
    for (key, size, _), (fingerprint, kind) in zip(solid, looks, strict=True):
        if kind is None:
            strange.append(key)
            continue
        found.keys.append(key)
        found.sizes.append(size)
        found.prints.append(fingerprint)
        found.formats.append(kind)
    if strange and (strict or any(k.endswith(JSON_NAMES) for k in strange)):
        raise UserError([f"{label}: {key} is not of a known format. Formats: {ALLOWED}." for key in strange[:20]])
    if strange:
        more = ", ..." if len(strange) > 3 else ""
        warn(f"{label}: {len(strange)} file(s) of no known format left out: {', '.join(strange[:3])}{more}")
    return found


def inspect_file(root: str, key: str, size: int, tag: str | None) -> tuple[str, str | None]:
    """Fingerprint and format. The fingerprint is the store's own (ETag, git or LFS hash), else taken of start,
    middle and end.
    """
    try:
        with open_file(root, key) as f:
            head = f.read(HEAD)
            if tag is None:
                digest = hashlib.blake2b(head, digest_size=16)
                for place in (size // 2, size - HEAD) if size > HEAD else ():
                    f.seek(max(place, HEAD))
                    digest.update(f.read(HEAD))
                tag = digest.hexdigest()
    except read_errors(root) as error:
        raise UserError(f"{join(root, key)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return tag, detect(head, key)


def join(root: str, key: str) -> str:
    """Path or URL of a file, for opening and for messages."""
    return f"{root.rstrip('/')}/{key}"


def is_local(root: str) -> bool:
    """Whether files under `root` are opened as local files."""
    return "://" not in root


def open_file(root: str, key: str) -> IO[bytes]:
    """Open a file for reading, wherever it is."""
    if is_local(root):
        return Path(join(root, key)).open("rb")
    if root.startswith("hf://"):
        from nano3.data.hub import open_remote

        return open_remote(join(root, key))
    import fsspec

    fs, path = fsspec.core.url_to_fs(join(root, key))
    return cast(IO[bytes], fs.open(path, "rb", block_size=8 << 20))


def read_errors(root: str) -> tuple[type[Exception], ...]:
    """What reading a file under `root` may raise."""
    if root.startswith("hf://"):
        from nano3.data.hub import unreachable

        return (EOFError, *unreachable())
    return (EOFError, OSError)


def size_of(f: IO[Any]) -> int:
    """Bytes in an open file; its position is kept."""
    here = f.tell()
    size = f.seek(0, os.SEEK_END)
    f.seek(here)
    return size


def changed(path: str, expected: int, size: int) -> Nano3Error:
    """A file is no longer the one that was planned."""
    return Failure(f"{path}: {size:,} bytes now, {expected:,} when the plan was made. Run again with force=true.")
