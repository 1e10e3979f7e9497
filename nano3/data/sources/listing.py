"""List the files that a dataset's `path` selects, locally or on an fsspec file system, without opening them."""

import glob
import os
import stat
import sys
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nano3.data.sources.formats import may_hold_text
from nano3.data.sources.own_files import PREP, non_text_names, own_file_names
from nano3.utils.errors import UserError

MAX_REPORTED = 20  # files named in one error
HIDDEN_PREFIXES = ("/.", "/_")  # other tools keep their own files under such names


class FileEntry(NamedTuple):
    """A listed file.

    Attributes:
        key: Path relative to the root of the listing.
        size: Bytes.
        store_fingerprint: ETag or hash provided by the store, or None.
        mtime: Modification time in nanoseconds, 0 if unknown. Anybody may set it.
        ctime: Change time of the inode in nanoseconds, 0 if unknown. Only the operating system sets it.
    """

    key: str
    size: int
    store_fingerprint: str | None = None
    mtime: int = 0
    ctime: int = 0


class Listing(NamedTuple):
    """The files that a path selects.

    Attributes:
        root: Local folder or URL.
        entries: The files.
        strict: Whether the user named each file (by a file name or a glob, not a folder), so that none may be skipped.
        formats: Formats that are already known, by key; None for a file without text.
    """

    root: str
    entries: list[FileEntry]
    strict: bool
    formats: dict[str, str | None] = {}


def list_local(path: str, output: str, label: str) -> Listing:
    """List a local file, folder, or glob, without the files that nano3 wrote.

    Args:
        path: The path to list.
        output: Output folder of this preparation.
        label: Start of error messages.

    Raises:
        UserError: There is nothing at the path, something cannot be read, or a name is not UTF-8.
    """
    full = Path(path).expanduser().absolute()
    check_name(str(full.parent if full.is_file() else full), label)
    if full.is_file():
        listing = Listing(str(full.parent), [local_entry(full.name, full.stat())], True)
    elif full.is_dir():
        listing = Listing(str(full), walk_folder(str(full), os.path.realpath(output), label), False)
    elif glob.has_magic(path):
        listing = list_glob(full, Path(output).absolute(), label)
    else:
        if full.exists():
            raise UserError(
                f"{label}: neither a file nor a folder. Text is read more than once, so write it into a file."
            )
        parent = full.parent
        while not parent.exists():
            parent = parent.parent
        raise UserError(f"{label}: no such file or folder; the path exists up to {parent}.")
    try:
        "".join([entry.key for entry in listing.entries]).encode()
    except UnicodeEncodeError:
        for entry in listing.entries:
            check_name(entry.key, label)
    return listing


def local_entry(key: str, info: os.stat_result) -> FileEntry:
    """Return the entry of a local file."""
    return FileEntry(key, info.st_size, None, info.st_mtime_ns, info.st_ctime_ns)


def is_hidden(key: str, pattern: str = "") -> bool:
    """Return whether a file, or a folder above it, is hidden by its name.

    Args:
        key: Path relative to the root.
        pattern: What the user typed; a prefix that occurs in it does not hide anything.
    """
    return any(prefix in f"/{key}" and prefix not in f"/{pattern}" for prefix in HIDDEN_PREFIXES)


def check_name(name: str, label: str) -> None:
    """Raise UserError if a name is not UTF-8, since names are written to JSON files."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        where = label.encode(errors="backslashreplace").decode()
        raise UserError(f"{where}: the name {os.fsencode(name)!r} is not UTF-8. Rename it.") from error


def walk_folder(folder: str, output: str, label: str) -> list[FileEntry]:
    """List all visible files under a folder, without the files that nano3 wrote.

    Links to folders are followed, but each folder is read once, under its real path if that is below `folder`.
    Anything unreadable is an error, because missing text would go unnoticed.

    Args:
        folder: Absolute path.
        output: Real path of the output folder.
        label: Start of error messages.

    Raises:
        UserError: A folder or a file cannot be read.
    """
    entries: list[FileEntry] = []
    problems: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Folders as prefixes of their files' keys. Work per folder instead of per file: there may be 10^5 files.
    folders, links = [""], list[str]()
    while folders or links:
        prefix = folders.pop() if folders else links.pop(0)
        path = f"{folder.rstrip('/')}/{prefix}".rstrip("/") or "/"
        try:
            info = Path(path).stat()
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(path) as scan:
                items = sorted(scan, key=lambda item: item.name)
        except OSError as error:
            problems.append(f"{label}: {path}: {error.strerror}. Make it readable, or move it away.")
            continue
        is_output = os.path.realpath(path) == output
        own = own_file_names(Path(output)) if is_output else non_text_names([item.name for item in items])
        for item in items:
            name = item.name
            if name[0] in "._" or name in own:
                continue
            try:
                status = item.stat()
            except OSError as error:
                if may_hold_text(name):
                    problems.append(unreadable_message(item.path, error, label))
                continue
            if stat.S_ISREG(status.st_mode):
                entries.append(local_entry(prefix + name, status))
            elif stat.S_ISDIR(status.st_mode):
                (links if item.is_symlink() else folders).append(f"{prefix}{name}/")
    if problems:
        raise UserError(problems[:MAX_REPORTED])
    return entries


def unreadable_message(path: str, error: OSError, label: str) -> str:
    """Return the message for a file whose status cannot be read, usually a broken link."""
    if Path(path).is_symlink():
        return f"{label}: {path} is a broken link to {Path(path).readlink()} ({error.strerror}). Repair or delete it."
    return f"{label}: {path}: {error.strerror}. Make it readable, or move it away."


def list_glob(full: Path, output: Path, label: str) -> Listing:
    """List the files that match a pattern, without the files that nano3 wrote.

    Args:
        full: Absolute path with the pattern.
        output: Absolute path of the output folder.
        label: Start of error messages.

    Raises:
        UserError: No file matches, or one cannot be read.
    """
    root = full
    while glob.has_magic(str(root)):
        root = root.parent
    own = tuple(f"{output}/{name}/" for name in (*own_file_names(output), PREP))
    names = cache(lambda folder: non_text_names(os.listdir(folder)))  # noqa: PTH208  only names are needed
    key_start = len(f"{str(root).rstrip('/')}/")
    entries, problems = [], []
    pattern = os.path.relpath(full, root)
    for path in map(str, root.glob(pattern)):
        key = path[key_start:]
        if f"{path}/".startswith(own) or is_hidden(key, pattern) or is_written_by_nano3(path, key_start, names):
            continue
        try:
            info = os.stat(path)  # noqa: PTH116  another Path for each of 10^5 files takes a second
        except OSError as error:
            problems.append(unreadable_message(path, error, label))
            continue
        if stat.S_ISREG(info.st_mode):
            entries.append(local_entry(key, info))
    if problems:
        raise UserError(problems[:MAX_REPORTED])
    if not entries:
        raise UserError(f"{label}: no file matches under {root}.{pattern_hint(full)}")
    return Listing(str(root), entries, True)


def is_written_by_nano3(path: str, key_start: int, names: Callable[[str], Collection[str]]) -> bool:
    """Return whether nano3 wrote a file or a folder above it.

    Args:
        path: Absolute path of the file.
        key_start: Index in `path` after the root, where to start checking.
        names: Function from a folder to the names in it that nano3 wrote.
    """
    folder = path[: key_start - 1] or "/"
    for name in path[key_start:].split("/"):
        if name in names(folder):
            return True
        folder = f"{folder.rstrip('/')}/{name}"
    return False


def pattern_hint(full: Path) -> str:
    """Return what to type instead of a pattern without matches, or "".

    There are two common mistakes: a pattern that ends in **, which matches only folders, and a folder with brackets in
    its name, which a pattern reads as a set of characters.
    """
    if full.name == "**":
        return f" ** matches only folders. For all files below, write {full.parent}"
    literal = next((p for p in full.parents if glob.has_magic(p.name) and p.exists()), None)
    if literal is None:
        return ""
    escaped = str(full).replace(str(literal), glob.escape(str(literal)), 1)
    return f" In a pattern, [, ? and * are special. For the folder {literal}, write {escaped}"


# fsspec


def list_url(url: str, label: str) -> Listing:
    """List a file, folder, or glob on any fsspec file system.

    Args:
        url: The URL to list.
        label: Start of error messages.

    Raises:
        UserError: There is nothing at the URL, its protocol is unknown, or the store cannot be reached.
    """
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
        entries = [remote_entry(name[len(root) :].lstrip("/"), info) for name, info in infos.items() if is_file(info)]
        pattern = path[len(root) :].lstrip("/") if strict else ""
        entries = [entry for entry in entries if entry.key and not is_hidden(entry.key, pattern)]
        if not entries:
            raise_hidden_error(fs, path)
    except ImportError as error:
        extra = " Install it with: pip install 'nano3[s3]'" if url.startswith("s3:") else ""
        raise UserError(f"{label}: {error}.{extra}") from error
    except ValueError as error:
        raise UserError(f"{label}: {describe_driver_error(error)}") from error
    except driver_errors() as error:
        raise UserError(f"{label}: {describe_driver_error(error)}") from error
    if not entries:
        raise UserError(f"{label}: no file or folder at this URL.")
    return Listing(fs.unstrip_protocol(root), entries, strict)


def is_file(info: dict[str, Any]) -> bool:
    """Return whether fsspec's `info` describes a file."""
    return bool(info.get("type", "file") == "file")


def remote_entry(key: str, info: dict[str, Any]) -> FileEntry:
    """Return the entry of a file that fsspec's `info` describes."""
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("checksum")
    time = info.get("mtime")
    nanoseconds = int(time * 1e9) if isinstance(time, int | float) else 0
    return FileEntry(key, int(info["size"] or 0), str(tag).strip('"') if tag else None, nanoseconds)


def raise_hidden_error(fs: Any, path: str) -> None:
    """Raise the network error behind an empty listing, if there is one.

    When listing, file systems turn network errors into "no such file".
    """
    try:
        fs.info(path)
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, driver_errors()):
            raise cause from error


def driver_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of all file system drivers that are loaded."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp.client_exceptions", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("azure.core.exceptions", "AzureError"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]
    return (OSError, *loaded)


def describe_driver_error(error: Exception) -> str:
    """Return the message of a driver's error, and a hint what to set."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    hint = ""
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        hint = " Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if type(error).__name__ in ("EndpointConnectionError", "ConnectTimeoutError"):
        hint = " Check AWS_ENDPOINT_URL and the network."
    return f"{str(text).rstrip('.')}.{hint}"
