"""List the files that a dataset's `path` selects, locally or on an fsspec file system, without opening them."""

import contextlib
import errno
import glob
import os
import stat
import sys
from collections.abc import Callable, Collection
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nano3.data.sources.formats import may_hold_text
from nano3.data.sources.own_files import PREP, non_text_names, own_file_names
from nano3.data.sources.url_credentials import has_credentials, with_credentials
from nano3.utils.disk_errors import reason
from nano3.utils.errors import UserError
from nano3.utils.files import expand_user
from nano3.utils.provenance import install_command
from nano3.utils.redaction import split_url_secrets

MAX_REPORTED = 20  # files named in one error
DRIVER_EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}  # extra by protocol
HIDDEN_PREFIXES = ("/.", "/_")  # other tools keep their own files under such names
TIME_FIELDS = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")  # of fsspec


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
    full = expand_user(path).absolute()
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
            problems.append(unreadable_message(path, error, label))
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
    """Return the message for a file or folder that cannot be read: a broken link, permissions, a failing disk."""
    if isinstance(error, PermissionError):
        return f"{label}: {path}: {reason(error, path)}"
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
        UserError: The pattern is malformed, no file matches, or one cannot be read.
    """
    if any("**" in part and part != "**" for part in full.parts):  # before Python 3.13 an error, since then a `*`
        raise UserError(f"{label}: ** is not a whole name between slashes. For all folders, write **/*.jsonl.")
    if full.name == "**":  # before Python 3.13 folders only
        full /= "*"
    root = full
    while glob.has_magic(str(root)):
        root = root.parent
    own = tuple(f"{output}/{name}/" for name in (*own_file_names(output), PREP))
    key_start = len(f"{str(root).rstrip('/')}/")
    pattern = os.path.relpath(full, root)
    entries, problems = [], unreadable_folders(root, pattern, label)

    @cache
    def names(folder: str) -> Collection[str]:
        try:
            return non_text_names(os.listdir(folder))  # noqa: PTH208  only names are needed
        except OSError as error:  # a pattern may name a file in a folder that cannot be listed
            problems.append(unreadable_message(folder, error, label))
            return ()

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
        raise UserError(list(dict.fromkeys(problems))[:MAX_REPORTED])
    if not entries:
        raise UserError(f"{label}: no file matches under {root}.{pattern_hint(full)}")
    return Listing(str(root), entries, True)


def unreadable_folders(root: Path, pattern: str, label: str) -> list[str]:
    """Return a problem for each folder that a pattern would search but cannot: `Path.glob` leaves it out.

    Args:
        root: Folder without wildcards in its path.
        pattern: Pattern below it.
        label: Start of error messages.
    """
    problems = []
    parts = Path(pattern).parts
    for count in range(len(parts)):
        prefix = "/".join(parts[:count])
        for folder in root.glob(prefix) if prefix else [root]:
            readable = not folder.is_dir() or os.access(folder, os.R_OK | os.X_OK)
            if not readable and (folder == root or not is_hidden(str(folder.relative_to(root)), pattern)):
                error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                problems.append(unreadable_message(str(folder), error, label))
    return list(dict.fromkeys(problems))


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

    The common mistake is a folder with brackets in its name, which a pattern reads as a set of characters.
    """
    literal = next((p for p in full.parents if glob.has_magic(p.name) and p.exists()), None)
    if literal is None:
        return ""
    escaped = str(full).replace(str(literal), glob.escape(str(literal)), 1)
    return f" In a pattern, [, ? and * are special. For the folder {literal}, write {escaped}"


# fsspec


def list_url(url: str, label: str) -> Listing:
    """List a file, folder, or glob on any fsspec file system, without the files that nano3 wrote.

    Args:
        url: The URL to list.
        label: Start of error messages.

    Raises:
        UserError: There is nothing at the URL, its protocol is unknown, the store cannot be reached, or something
            cannot be read.
    """
    import fsspec

    check_url(url, label)
    try:
        fs, path = fsspec.core.url_to_fs(with_credentials(url))
        root, infos, strict = select_remote(fs, path)
        if not infos:
            raise_hidden_error(fs, path)
        entries = visible_entries(fs, path, root, infos, strict)
    except ImportError as error:
        extra = DRIVER_EXTRAS.get(url.partition(":")[0])
        advice = f" Install it with: {install_command(extra)}" if extra else ""
        raise UserError(f"{label}: {str(error).rstrip('.')}.{advice}") from error
    except ValueError as error:
        raise UserError(f"{label}: {describe_driver_error(error)}") from error
    except driver_errors() as error:
        raise UserError(f"{label}: {describe_driver_error(error)}") from error
    if not entries:
        raise UserError(f"{label}: no file or folder at this URL.")
    if has_credentials() and split_url_secrets(path) != (path, "", ""):
        if strict and list(infos) == [path]:  # a signature may contain slashes
            root, _, key = url.rpartition("/")
            return Listing(root, [entries[0]._replace(key=key)], strict)
        return Listing(split_url_secrets(fs.unstrip_protocol(root))[0], entries, strict)
    return Listing(fs.unstrip_protocol(root), entries, strict)


def check_url(url: str, label: str) -> None:
    """Raise UserError for a URL that cannot be listed reliably.

    Args:
        url: The URL.
        label: Start of error messages.
    """
    if "::" in url:
        kind = url.partition(":")[0]
        unpack = {"zip": "unzip ARCHIVE -d FOLDER", "tar": "mkdir FOLDER && tar -xf ARCHIVE -C FOLDER"}
        advice = (
            f"Unpack it: {unpack[kind]}, and set path=FOLDER" if kind in unpack else "Set path to the last URL alone"
        )
        raise UserError(f"{label}: a chain of URLs is not read. {advice}.")
    if url.startswith(("http://", "https://")):
        where = url.partition("?")[0]
        if where.endswith("/") or "*" in where or "[" in where:
            raise UserError(
                f"{label}: a web server has no reliable list of its files. Give the URL of one file, or download "
                f"them: wget -r -np -nH -P FOLDER {where.partition('*')[0].rpartition('/')[0]}/, and set path=FOLDER."
            )


def local_path(path: str) -> str | None:
    """Return a path or file:// URL as a local path, or None for any other URL."""
    for prefix in ("file://localhost/", "file://", "local://"):
        if path.startswith(prefix):
            return path.removeprefix(prefix.rstrip("/") if prefix.count("/") == 3 else prefix)
    return None if "://" in path else path


def select_remote(fs: Any, path: str) -> tuple[str, dict[str, dict[str, Any]], bool]:
    """Return the root, fsspec's `info` of each file by path, and whether the user named each file.

    Args:
        fs: The fsspec file system.
        path: Path or pattern on it.

    Raises:
        OSError: A folder cannot be read. fsspec's own `find` and `glob` leave such folders out.
    """
    is_http = "http" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    try:
        if glob.has_magic(path) and not is_http:
            root = path[: glob.magic_check.search(path).start()].rpartition("/")[0]  # type: ignore[attr-defined]
            if not has_flat_listing(fs):
                parts = path[len(root) :].strip("/").split("/")
                walk_store(fs, root, None if "**" in path else len(parts))
            return root, fs.glob(path, detail=True), True
        if fs.isfile(path):
            return path.rpartition("/")[0], {path: fs.info(path)}, True
        infos = fs.find(path, detail=True) if has_flat_listing(fs) else walk_store(fs, path)
        return path.rstrip("/"), infos, False
    except FileNotFoundError:
        return path, {}, False


def walk_store(fs: Any, path: str, depth: int | None = None) -> dict[str, dict[str, Any]]:
    """Return fsspec's `info` of all files and hidden folders below a folder, by path. Hidden folders are not searched.

    Args:
        fs: The fsspec file system.
        path: The folder.
        depth: Levels of folders to search; None for all.

    Raises:
        OSError: A folder cannot be read.
    """
    infos: dict[str, dict[str, Any]] = {}
    folders = [(path, 1)]
    while folders:
        folder, level = folders.pop()
        for info in fs.ls(folder, detail=True):
            name = info["name"].rstrip("/")
            if info["type"] != "directory" or basename(name).startswith((".", "_")):
                infos[name] = info
            elif name != folder.rstrip("/") and level != depth:
                folders.append((name, level + 1))
    return infos


def has_flat_listing(fs: Any) -> bool:
    """Return whether a file system lists all files below a folder by itself, as object stores do.

    The others walk the folders one by one.
    """
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is not AsyncFileSystem._find
    return type(fs).find is not AbstractFileSystem.find


def visible_entries(fs: Any, path: str, root: str, infos: dict[str, dict[str, Any]], strict: bool) -> list[FileEntry]:
    """Return the entries of files that are neither hidden nor written by nano3.

    Args:
        fs: The fsspec file system.
        path: Path or pattern that was listed.
        root: Root of the listing.
        infos: fsspec's `info` of each file by path.
        strict: Whether the user named each file.

    Raises:
        UserError: The size of a file is unknown, or a link cannot be followed.
    """
    pattern = path[len(root) :].lstrip("/") if strict else ""
    key_start = len(root) + 1 if root else 0
    names = names_by_ls(fs) if strict else names_by_folder(infos)
    entries = []
    for name, info in infos.items():
        key = name[len(root) :].lstrip("/")
        if info.get("type") == "directory" or not key or is_hidden(key, pattern):
            continue
        if len(infos) > 1 and root and is_written_by_nano3(name, key_start, names):
            continue
        if info.get("type", "file") != "file" or "size" not in info:
            if not strict and not may_hold_text(key):
                continue
            info = follow_link(fs, name)
        if info.get("size") is None:
            raise UserError(
                f"{fs.unstrip_protocol(name)}: its size is unknown, so a broken transfer would go unnoticed. Download "
                f"it, and set path to the local file."
            )
        entries.append(remote_entry(key, info))
    return entries


def basename(path: str) -> str:
    """Return the last name of a path on a store."""
    return path.rstrip("/").rpartition("/")[2]


def names_by_ls(fs: Any) -> Callable[[str], Collection[str]]:
    """Return a function from a folder to the names in it that nano3 wrote; it lists the folder."""
    return cache(lambda folder: non_text_names([basename(name) for name in fs.ls(folder, detail=False)]))


def names_by_folder(paths: Collection[str]) -> Callable[[str], Collection[str]]:
    """Return a function from a folder to the names in it that nano3 wrote.

    Args:
        paths: All files, so that the names in each folder are known without asking the store.
    """
    children: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        while name and name not in (known := children.setdefault(folder, set())):
            known.add(name)
            folder, _, name = folder.rpartition("/")
    return cache(lambda folder: non_text_names(children.get(folder, ())))


def follow_link(fs: Any, name: str) -> dict[str, Any]:
    """Return fsspec's `info` of what a link points to.

    Args:
        fs: The fsspec file system.
        name: Path of the link.

    Raises:
        UserError: It is broken, or points to anything but a file.
    """
    url = fs.unstrip_protocol(name)
    try:
        info: dict[str, Any] = fs.info(name)
    except FileNotFoundError as error:
        raise UserError(f"{url} is a broken link. Repair or delete it.") from error
    if info.get("type") != "file":
        raise UserError(f"{url} is a link that is not followed. Replace it by the files, or give their own URL.")
    return info


def remote_entry(key: str, info: dict[str, Any]) -> FileEntry:
    """Return the entry of a file that fsspec's `info` describes.

    The modification time is left out if the store identifies the content. A weak ETag of HTTP does not.
    """
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("checksum")
    if str(tag).startswith("W/"):
        tag = None
    time = 0 if tag else modification_time(info)
    return FileEntry(key, int(info["size"]), str(tag).strip('"') if tag else None, time)


def modification_time(info: dict[str, Any]) -> int:
    """Return the modification time in fsspec's `info` in nanoseconds since the epoch, or 0 if it is unknown."""
    value: Any = next((info[name] for name in TIME_FIELDS if info.get(name)), None)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = parsedate_to_datetime(value) if "," in value else datetime.fromisoformat(value)
    if isinstance(value, datetime):
        value = value.timestamp()
    return int(value * 1e9) if isinstance(value, int | float) else 0


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
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {text}"
    hint = ""
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        hint = " Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if type(error).__name__ in ("EndpointConnectionError", "ConnectTimeoutError"):
        hint = " Check AWS_ENDPOINT_URL and the network."
    return f"{str(text).rstrip('.')}.{hint}"
