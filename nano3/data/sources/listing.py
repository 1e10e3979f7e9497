"""Which files a dataset's `path` names, in a local folder or on an fsspec file system. Opens none of them."""

import glob
import os
import stat
import sys
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nano3.data.sources.formats import may_hold_text
from nano3.data.sources.own_files import non_text_names, own_file_names
from nano3.utils.errors import UserError

MAX_REPORTED = 20  # files named in one error
HIDDEN_PREFIXES = ("/.", "/_")  # names that begin so are bookkeeping of other tools


class FileEntry(NamedTuple):
    """A file: its path relative to the root, bytes, the store's own fingerprint if it has one, and when it was changed.

    `time` is when its content was changed, as anybody may set it, `inode_time` when anything about it was, as the
    system alone sets it; in nanoseconds, 0 where the place does not tell it.
    """

    key: str
    size: int
    tag: str | None = None
    time: int = 0
    inode_time: int = 0


class Listing(NamedTuple):
    """`strict`: each file was named by the user (a file or a glob, not a folder), so none may be left out. `formats`
    are those that are known without a look, by key; None for a file without text.
    """

    root: str
    entries: list[FileEntry]
    strict: bool
    formats: dict[str, str | None] = {}


def list_local(path: str, output: str, label: str) -> Listing:
    """A local file, folder or glob, without what nano3 itself has put into the folder `output`."""
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
            raise UserError(f"{label}: neither a file nor a folder, and text is read more than once. Make it a file.")
        near = full.parent
        while not near.exists():
            near = near.parent
        raise UserError(f"{label}: no such file or folder; {near} is the part of it that exists.")
    try:
        "".join([entry.key for entry in listing.entries]).encode()
    except UnicodeEncodeError:
        for entry in listing.entries:
            check_name(entry.key, label)
    return listing


def local_entry(key: str, info: os.stat_result) -> FileEntry:
    return FileEntry(key, info.st_size, None, info.st_mtime_ns, info.st_ctime_ns)


def is_hidden(key: str, pattern: str = "") -> bool:
    """Whether a file is to be left out for its name, or a folder's on the way to it; not if the pattern has such names
    in it.
    """
    return any(sign in f"/{key}" and sign not in f"/{pattern}" for sign in HIDDEN_PREFIXES)


def check_name(name: str, label: str) -> None:
    """Names go into JSON files, so they must be text."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        where = label.encode(errors="backslashreplace").decode()
        raise UserError(f"{where}: the name {os.fsencode(name)!r} is not UTF-8. Rename it.") from error


def walk_folder(folder: str, output: str, label: str) -> list[FileEntry]:
    """All visible files under a folder; names that begin with "." or "_" are bookkeeping of other tools.

    Links to folders are followed, but each real folder is read once; real paths win over links to them. What cannot
    be read is an error: text that is silently missing would be noticed months later, if ever.
    """
    entries: list[FileEntry] = []
    problems: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Folders as the text before their files' names, relative to `folder`: there may be 10^5 files, so nothing is done
    # for each of them that can be done once.
    folders, links = [""], list[str]()
    while folders or links:
        prefix = folders.pop() if folders else links.pop(0)
        place = f"{folder.rstrip('/')}/{prefix}".rstrip("/") or "/"
        try:
            info = Path(place).stat()
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(place) as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError as error:
            problems.append(f"{label}: {place}: {error.strerror}. Make it readable, or move it away.")
            continue
        here = os.path.realpath(place) == output
        own = own_file_names(Path(output)) if here else non_text_names([item.name for item in items])
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
    """What is wrong with an entry that cannot be looked at; mostly a link to nowhere."""
    if Path(path).is_symlink():
        return f"{label}: {path} is a broken link to {Path(path).readlink()} ({error.strerror}). Mend or remove it."
    return f"{label}: {path}: {error.strerror}. Make it readable, or move it away."


def list_glob(full: Path, output: Path, label: str) -> Listing:
    """Files that match a pattern."""
    fixed = full
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    own = tuple(f"{output}/{name}/" for name in (*own_file_names(output), ".prep"))
    names = cache(lambda folder: non_text_names(os.listdir(folder)))  # noqa: PTH208  names alone
    start = len(f"{str(fixed).rstrip('/')}/")
    entries, problems = [], []
    pattern = os.path.relpath(full, fixed)
    for path in map(str, fixed.glob(pattern)):
        if f"{path}/".startswith(own) or is_hidden(path[start:], pattern) or is_written_by_nano3(path, start, names):
            continue
        try:
            info = os.stat(path)  # noqa: PTH116  a Path again for each of 10^5 files takes a second
        except OSError as error:
            problems.append(unreadable_message(path, error, label))
            continue
        if stat.S_ISREG(info.st_mode):
            entries.append(local_entry(path[start:], info))
    if problems:
        raise UserError(problems[:MAX_REPORTED])
    if not entries:
        raise UserError(f"{label}: no file matches (looked under {fixed}).{bracket_hint(full)}")
    return Listing(str(fixed), entries, True)


def is_written_by_nano3(path: str, start: int, names: Callable[[str], Collection[str]]) -> bool:
    """Whether nano3 has put a file, or a folder on the way to it, where it is; `names` are those of a folder's."""
    place = path[: start - 1] or "/"
    for part in path[start:].split("/"):
        if part in names(place):
            return True
        place = f"{place.rstrip('/')}/{part}"
    return False


def bracket_hint(full: Path) -> str:
    """What to type when a real folder's name has brackets in it, which a pattern reads as a choice of letters, or when
    a pattern ends in **, which stands for folders."""
    if full.name == "**":
        return f" ** stands for folders alone; for all files below write {full.parent}"
    literal = next((p for p in full.parents if glob.has_magic(p.name) and p.exists()), None)
    if literal is None:
        return ""
    escaped = str(full).replace(str(literal), glob.escape(str(literal)), 1)
    return f" [, ? and * are signs of a pattern; to mean the folder {literal}, write {escaped}"


# fsspec


def list_url(url: str, label: str) -> Listing:
    """A file, folder or glob on any fsspec file system."""
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
        named = path[len(root) :].lstrip("/") if strict else ""
        entries = [entry for entry in entries if entry.key and not is_hidden(entry.key, named)]
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
        raise UserError(f"{label}: nothing there.")
    return Listing(fs.unstrip_protocol(root), entries, strict)


def is_file(info: dict[str, Any]) -> bool:
    return bool(info.get("type", "file") == "file")


def remote_entry(key: str, info: dict[str, Any]) -> FileEntry:
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("checksum")
    time = info.get("mtime")
    nanoseconds = int(time * 1e9) if isinstance(time, int | float) else 0
    return FileEntry(key, int(info["size"] or 0), str(tag).strip('"') if tag else None, nanoseconds)


def raise_hidden_error(fs: Any, path: str) -> None:
    """Raise what the network said: file systems turn it into "no such file" when they are asked for a list."""
    try:
        fs.info(path)
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, driver_errors()):
            raise cause from error


def driver_errors() -> tuple[type[Exception], ...]:
    """What the drivers of file systems raise; those that are not loaded raise nothing."""
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
    """An error of a driver in words, with what helps."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    hint = ""
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        hint = " Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if type(error).__name__ in ("EndpointConnectionError", "ConnectTimeoutError"):
        hint = " Is AWS_ENDPOINT_URL right, and the network up?"
    return f"{str(text).rstrip('.')}.{hint}"
