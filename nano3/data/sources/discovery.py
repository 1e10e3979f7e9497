"""Find and identify the files of a dataset, and open a file wherever it is stored.

A file is identified by its path relative to the dataset's root, its size, and a fingerprint of its content; not by the
root or its modification time. So a dataset can be moved or copied without becoming a different one.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, cast

from nano3.config import SourceConfig
from nano3.data.sources.fingerprint_cache import FileIdentity, FingerprintCache
from nano3.data.sources.formats import (
    FORMATS,
    HEAD_SIZE,
    NEVER_EMPTY,
    REFUSED,
    REFUSED_SUFFIXES,
    SUPPORTED,
    detect_format,
    inner_suffix,
    may_hold_text,
    refusal,
)
from nano3.data.sources.listing import (
    MAX_REPORTED,
    FileEntry,
    Listing,
    driver_errors,
    list_local,
    list_url,
    local_path,
    remote_entry,
)
from nano3.data.sources.saved_dataset import select_saved
from nano3.data.sources.url_credentials import has_credentials, with_credentials
from nano3.utils.console import warn
from nano3.utils.disk_errors import reason
from nano3.utils.errors import Failure, Nano3Error, UserError, list_some

THREADS = 16
WHOLE_FILE_LIMIT = 2 << 20  # files up to this size are fingerprinted whole
WINDOW_COUNT, WINDOW_SIZE = 16, 16 << 10  # larger ones by this many windows of this many bytes, spread evenly
BLOCK = 8 << 20  # bytes per request over the network
MANY_FILES = 32  # files of a store that are not asked for one by one


class FileVersion(NamedTuple):
    """A file as it was when it was identified.

    Attributes:
        key: Path relative to the root of its dataset.
        size: Bytes.
        fingerprint: Identifies the content.
        mtime: Modification time in nanoseconds, 0 if unknown.
        ctime: Change time of the inode in nanoseconds, 0 if unknown.
    """

    key: str
    size: int
    fingerprint: str
    mtime: int
    ctime: int = 0


@dataclass
class DiscoveredFiles:
    """The files of one dataset, sorted by name: lists of equal length, since there may be 10^5 files.

    Attributes:
        root: Local folder or URL.
        revision: Commit of a hub dataset.
        keys: Paths relative to `root`.
        sizes: Bytes.
        fingerprints: Identify the content.
        formats: Keys of `formats.FORMATS`.
        mtimes: Modification times in nanoseconds, 0 if unknown.
        ctimes: Change times of the inodes in nanoseconds, 0 if unknown.
    """

    root: str
    revision: str | None = None
    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    fingerprints: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    mtimes: list[int] = field(default_factory=list)
    ctimes: list[int] = field(default_factory=list)


def discover_files(
    source: SourceConfig, output: str, cache: FingerprintCache | None = None, save_list: bool = False
) -> DiscoveredFiles:
    """List and identify the files of a dataset.

    Args:
        source: The dataset.
        output: Output folder; the files that nano3 wrote there are left out.
        cache: Identities of unchanged files, which are not opened. Updated with those of all files.
        save_list: Whether to save the list of a hub dataset's files for runs without a network.

    Raises:
        UserError: There are no files with text, one cannot be read, or one that the user named has no known format.
    """
    label = f"dataset {source.name!r}: path={source.path}"
    cache = cache or FingerprintCache()
    snapshot = None
    if source.path.startswith("hf://"):
        from nano3.data.sources.hub import list_dataset

        snapshot, listing = list_dataset(source)
    elif (path := local_path(source.path)) is not None:
        listing = list_local(path, output, label)
    else:
        listing = list_url(source.path, label)
    if not snapshot:
        listing = select_saved(listing, source.split, label, lambda key: read_file(listing.root, key))
    found = identify_files(listing, label, source.name, cache)
    if snapshot:
        from nano3.data.sources.hub import save_listing

        found.revision = snapshot.commit
        if save_list:
            save_listing(source, snapshot, cache.formats(source.name))
    if not found.keys:
        raise UserError(f"{label}: no file with text in it. Formats: {SUPPORTED}.")
    return found


def identify_files(listing: Listing, label: str, dataset: str, cache: FingerprintCache) -> DiscoveredFiles:
    """Detect the format of each listed file, and return the files that hold text, sorted by name.

    Empty files hold no documents and are left out, unless their format is never empty.

    Args:
        listing: The files to identify.
        label: Start of error messages.
        dataset: Name of the dataset in `cache`.
        cache: Used and updated.

    Raises:
        UserError: A file is empty or unreadable, or has no known format although the user named it.
    """
    if empty := [e.key for e in listing.entries if not e.size and e.key.lower().endswith(NEVER_EMPTY)]:
        advice = "has no bytes at all, possibly an interrupted copy. Copy it again or delete it."
        raise UserError([f"{label}: {key} {advice}" for key in empty[:MAX_REPORTED]])
    entries = sorted(e for e in listing.entries if e.size > 0)
    skipped = [] if listing.strict else [e.key for e in entries if not may_hold_text(e.key)]
    if skipped:
        entries = [e for e in entries if may_hold_text(e.key)]
    known = cache.get(dataset, listing.root, entries)
    if listed := listing.formats:
        pairs = zip(entries, known, strict=True)
        known = [
            was or ((e.store_fingerprint, listed[e.key]) if e.store_fingerprint and e.key in listed else None)
            for e, was in pairs
        ]
    new = iter(inspect_files(listing.root, [e for e, was in zip(entries, known, strict=True) if was is None]))
    identities = [was or next(new) for was in known]
    cache.put(dataset, listing.root, entries, identities, opened=known.count(None))
    kinds = {entry.key: kind for entry, (_, kind) in zip(entries, identities, strict=True)}
    wrong = check_formats(listing, label, kinds, skipped)
    if skipped := sorted(skipped + wrong):
        warn(f"{label}: {len(skipped)} file(s) of no known format left out: {list_some(skipped, 3)}")
    left_out = set(wrong)
    good = [(e, identity) for e, identity in zip(entries, identities, strict=True) if e.key not in left_out]
    return DiscoveredFiles(
        listing.root,
        keys=[e.key for e, _ in good],
        sizes=[e.size for e, _ in good],
        fingerprints=[fingerprint for _, (fingerprint, _) in good],
        formats=[kind or "" for _, (_, kind) in good],
        mtimes=[e.mtime for e, _ in good],
        ctimes=[e.ctime for e, _ in good],
    )


def check_formats(listing: Listing, label: str, kinds: dict[str, str | None], skipped: list[str]) -> list[str]:
    """Return the files that have no format that is read and may be left out.

    Args:
        listing: The listing of the files.
        label: Start of error messages.
        kinds: Format of each file.
        skipped: Files that were not opened because of their names.

    Raises:
        UserError: A file must not be left out, or all files have formats that can be converted.
    """
    # A leading `[` alone does not make a file JSON: many a README.md starts with one.
    wrong = [key for key, kind in kinds.items() if kind not in FORMATS or (kind == "json" and not may_hold_text(key))]
    known_suffixes = tuple(suffix for f in FORMATS.values() for suffix in f.suffixes)
    problems = {}
    if wrong and (listing.strict or any(key.lower().endswith(known_suffixes) for key in wrong)):
        problems = {key: kinds[key] for key in wrong}
    elif len(wrong) == len(kinds):
        problems = {key: kind for key in skipped if (kind := REFUSED_SUFFIXES.get(inner_suffix(key)))}
    if problems:
        unknown = f"is not of a known format. Formats: {SUPPORTED}."
        raise UserError(
            f"{label}: {key} {refusal(kind) if kind in REFUSED else unknown}"
            for key, kind in list(problems.items())[:MAX_REPORTED]
        )
    return wrong


def inspect_files(root: str, entries: list[FileEntry]) -> list[FileIdentity]:
    """Return `inspect_file` of each file.

    Threads hide the latency of a network. Local files are grouped, because a task for each would cost more than it
    saves.
    """
    step = 64 if is_local(root) else 1

    def inspect_group(first: int) -> list[FileIdentity]:
        return [inspect_file(root, entry) for entry in entries[first : first + step]]

    with ThreadPoolExecutor(THREADS) as pool:
        return [result for group in pool.map(inspect_group, range(0, len(entries), step)) for result in group]


def inspect_file(root: str, entry: FileEntry) -> FileIdentity:
    """Return the fingerprint and the format of a file.

    The fingerprint is the one that the store provides (ETag, Git or LFS hash), or else one of the content.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        if entry.size <= HEAD_SIZE and is_local(root) and (data := read_small_file(join(root, entry.key), entry.size)):
            return fingerprint_bytes(data), detect_format(data, entry.key)
        with open_file(root, entry.key, block=HEAD_SIZE) as f:
            head = f.read(HEAD_SIZE)
            fingerprint = entry.store_fingerprint or fingerprint_file(f, head, entry.size)
    except read_errors(root) as error:
        path = join(root, entry.key)
        raise UserError(f"{path}: cannot be read: {unreadable_reason(error, path)}") from error
    return fingerprint, detect_format(head, entry.key)


def unreadable_reason(error: Exception, path: str) -> str:
    """Return why a file cannot be read, as the end of a message; whose it is if permissions for a local file lack.

    Args:
        error: The error of a disk or a store.
        path: The file.
    """
    if isinstance(error, PermissionError) and os.path.lexists(path):
        return reason(error, path)
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def read_small_file(path: str, size: int) -> bytes | None:
    """Return the content of a local file, or None if it is no longer `size` bytes long.

    Three system calls: with file objects, threads would spend most of their time waiting for each other.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, size + 1)
    finally:
        os.close(fd)
    return data if len(data) == size else None


def fingerprint_bytes(data: bytes) -> str:
    """Return the fingerprint of a file with this content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fingerprint_file(f: IO[bytes], head: bytes, size: int) -> str:
    """Return the fingerprint of all bytes of a small file, or of evenly spread windows of a large one.

    Args:
        f: The file, positioned after `head`.
        head: The bytes already read.
        size: Bytes in the file.
    """
    digest = hashlib.blake2b(head, digest_size=16)
    if size <= WHOLE_FILE_LIMIT:
        digest.update(f.read())
    else:
        for i in range(1, WINDOW_COUNT):
            f.seek(i * (size - WINDOW_SIZE) // (WINDOW_COUNT - 1))
            digest.update(f.read(WINDOW_SIZE))
    return digest.hexdigest()


def find_changed_files(root: str, files: Iterable[FileVersion]) -> list[str]:
    """Return the paths or URLs of files that changed.

    A small file changed if its content did. A large one is assumed changed if its modification time is different,
    because its fingerprint does not cover all of it. A deleted file cannot be compared and is not returned, nor is one
    of the hub, as the commit is fixed.

    Args:
        root: Root of the dataset.
        files: The files as they were.

    Raises:
        Failure: The store of the files cannot be read.
    """
    if root.startswith("hf://"):
        return []
    if not is_local(root):
        return find_changed_remote_files(root, list(files))
    changed = []
    for key, size, fingerprint, mtime, ctime in files:
        path = join(root, key)
        try:
            info = os.stat(path)  # noqa: PTH116  there may be 10^5
            same_times = info.st_mtime_ns == mtime and ctime in (0, info.st_ctime_ns)
            if info.st_size == size and same_times:
                continue
            comparable = info.st_size == size and (size <= WHOLE_FILE_LIMIT or info.st_mtime_ns == mtime)
            same = comparable and inspect_file(root, FileEntry(key, size))[0] == fingerprint
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not same:
            changed.append(path)
    return changed


def find_changed_remote_files(root: str, files: list[FileVersion]) -> list[str]:
    """Return the URLs of files that changed on their store.

    A fingerprint of the store decides, such as an ETag. Without one, size, modification time and content are compared.

    Args:
        root: URL of the dataset's root.
        files: The files as they were.

    Raises:
        Failure: The store cannot be read.
    """
    try:
        now = current_entries(root, [file.key for file in files])
        pairs = [(file, now[file.key]) for file in files if file.key in now]
        untagged = [entry for _, entry in pairs if not entry.store_fingerprint]
        content = dict(zip([e.key for e in untagged], inspect_files(root, untagged), strict=True))
    except (*read_errors(root), UserError) as error:  # type: ignore[misc]
        why = getattr(error, "strerror", None) or error
        raise Failure(
            f"{root}: its files cannot be compared with what was read: {why}. Nothing is published. Run the same "
            f"command again."
        ) from error
    return [
        join(root, file.key)
        for file, entry in pairs
        if entry.size != file.size
        or (entry.store_fingerprint or content[file.key][0]) != file.fingerprint
        or (entry.size > WHOLE_FILE_LIMIT and entry.mtime != file.mtime)
    ]


def current_entries(root: str, keys: list[str]) -> dict[str, FileEntry]:
    """Return the entries of files as they are now, by key, without those that are gone.

    Args:
        root: URL of the dataset's root.
        keys: Paths relative to it. If there are many, they are listed with one call.
    """
    import fsspec

    fs, base = fsspec.core.url_to_fs(with_credentials(root))
    fs.invalidate_cache()
    found = {}
    listed: dict[str, Any] = fs.find(base, detail=True) if len(keys) > MANY_FILES else {}
    for key in keys:
        path = join(base, key)
        if has_credentials():
            path = fsspec.core.url_to_fs(with_credentials(join(root, key)))[1]
        try:
            info = listed.get(path) or fs.info(path)
        except FileNotFoundError:
            continue
        if info.get("size") is not None:
            found[key] = remote_entry(key, info)
    return found


def join(root: str, key: str) -> str:
    """Return the path or URL of a file."""
    return f"{root.rstrip('/')}/{key}"


def is_local(root: str) -> bool:
    """Return whether files under `root` are opened as local files."""
    return "://" not in root


def open_file(root: str, key: str, block: int = BLOCK) -> IO[bytes]:
    """Open a local file, a hub file, or a file of any other fsspec file system for reading.

    Args:
        root: Root of the dataset.
        key: Path relative to `root`.
        block: Bytes to request at once over the network.
    """
    if is_local(root):
        return open(join(root, key), "rb")  # noqa: PTH123  a Path for each of 10^5 files takes a second
    if root.startswith("hf://"):
        from nano3.data.sources.hub import open_remote

        return open_remote(join(root, key))
    import fsspec

    fs, path = fsspec.core.url_to_fs(with_credentials(join(root, key)))
    return cast(IO[bytes], fs.open(path, "rb", block_size=block))


def read_file(root: str, key: str) -> bytes:
    """Return the content of a small file.

    Args:
        root: Root of the dataset.
        key: Path relative to `root`.
    """
    with open_file(root, key) as f:
        return f.read()


def read_errors(root: str) -> tuple[type[Exception], ...]:
    """Return the exceptions that reading a file under `root` may raise."""
    if root.startswith("hf://"):
        from nano3.data.sources.hub_cache import network_errors

        return (EOFError, *network_errors())
    # fsspec raises ValueError if a web server cannot send a part of a file
    return (EOFError, *((ValueError,) if root.startswith("http") else ()), *driver_errors())


def size_of(f: IO[Any]) -> int:
    """Return the size of an open file in bytes, without moving its position."""
    position = f.tell()
    size = f.seek(0, os.SEEK_END)
    f.seek(position)
    return size


def size_changed_error(path: str, expected: int, size: int) -> Nano3Error:
    """Return the error for a file whose size differs from the plan's."""
    return Failure(f"{path}: {size:,} bytes now, {expected:,} when the plan was made. Run the same command again.")
