"""From a dataset's `path` to its files, each with format and fingerprint; and how a file is opened, wherever it is.

A file is known by its path relative to the dataset's root, its size and a fingerprint of its content, never by where
the root is or when it was touched; so moving a dataset does not make it another one.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any, cast

from nano3.config import SourceConfig
from nano3.data.sources.fingerprint_cache import FileIdentity, FingerprintCache
from nano3.data.sources.formats import HEAD_SIZE, JSON_SUFFIXES, NEVER_EMPTY, SUPPORTED, detect_format, may_hold_text
from nano3.data.sources.listing import FileEntry, Listing, driver_errors, list_local, list_url
from nano3.utils.console import warn
from nano3.utils.errors import Failure, Nano3Error, UserError

THREADS = 16
WHOLE_FILE_LIMIT = 2 << 20  # a file up to this size is fingerprinted whole
WINDOW_COUNT, WINDOW_SIZE = 16, 16 << 10  # of a larger one so many pieces are, spread evenly, of so many bytes
BLOCK = 8 << 20  # read over the network at a time


@dataclass
class DiscoveredFiles:
    """The files of one dataset, sorted by name. Lists of equal length, since there may be many.

    `root` is a local folder or a URL; `keys` are paths relative to it; `fingerprints` identify the content; `mtimes` are
    nanoseconds, 0 where unknown.
    """

    root: str
    revision: str | None = None
    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    fingerprints: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    mtimes: list[int] = field(default_factory=list)


def discover_files(
    source: SourceConfig, output: str, memory: FingerprintCache | None = None, save_list: bool = False
) -> DiscoveredFiles:
    """List and identify the files of a dataset, without those that nano3 has put into `output`. Files that `memory`
    knows are not opened. `save_list` keeps the list of a hub's files for runs without a network.

    Raises `UserError` when there are none, when one cannot be read, or when a named one is of no known format.
    """
    label = f"dataset {source.name!r}: path={source.path}"
    memory = memory or FingerprintCache()
    listed = None
    if source.path.startswith("hf://"):
        from nano3.data.sources.hub import list_dataset

        listed, listing = list_dataset(source)
    elif "://" in source.path:
        listing = list_url(source.path, label)
    else:
        listing = list_local(source.path, output, label)
    found = identify_files(listing, label, source.name, memory)
    if listed:
        from nano3.data.sources.hub import save_listing

        found.revision = listed.commit
        if save_list:
            save_listing(source, listed, memory.formats(source.name))
    if not found.keys:
        raise UserError(f"{label}: no file with text in it. Formats: {SUPPORTED}.")
    return found


def identify_files(listing: Listing, label: str, dataset: str, memory: FingerprintCache) -> DiscoveredFiles:
    """Sort by name, look at each file's bytes, keep the ones that hold text. Empty files have no document and are
    left out.
    """
    if cut := [e.key for e in listing.entries if not e.size and e.key.lower().endswith(NEVER_EMPTY)]:
        raise UserError(
            [f"{label}: {key} has no bytes at all: a copy that broke off? Mend or remove it." for key in cut[:20]]
        )
    solid = sorted(e for e in listing.entries if e.size > 0)
    strange = [] if listing.strict else [e.key for e in solid if not may_hold_text(e.key)]
    if strange:
        solid = [e for e in solid if may_hold_text(e.key)]
    known = memory.get(dataset, listing.root, solid)
    if told := listing.formats:
        pairs = zip(solid, known, strict=True)
        known = [look or ((e.tag, told[e.key]) if e.tag and e.key in told else None) for e, look in pairs]
    new = iter(inspect_files(listing.root, [e for e, look in zip(solid, known, strict=True) if look is None]))
    looks = [look or next(new) for look in known]
    memory.put(dataset, listing.root, solid, looks, opened=known.count(None))
    # `[` alone says little: so begins many a README.md.
    wrong = [
        entry.key
        for entry, (_, kind) in zip(solid, looks, strict=True)
        if kind is None or (kind == "json" and not may_hold_text(entry.key))
    ]
    if wrong and (listing.strict or any(k.lower().endswith((*JSON_SUFFIXES, *NEVER_EMPTY)) for k in wrong)):
        raise UserError([f"{label}: {key} is not of a known format. Formats: {SUPPORTED}." for key in wrong[:20]])
    if strange := sorted(strange + wrong):
        more = ", ..." if len(strange) > 3 else ""
        warn(f"{label}: {len(strange)} file(s) of no known format left out: {', '.join(strange[:3])}{more}")
    left_out = set(wrong)
    good = [(e, look) for e, look in zip(solid, looks, strict=True) if e.key not in left_out]
    return DiscoveredFiles(
        listing.root,
        keys=[e.key for e, _ in good],
        sizes=[e.size for e, _ in good],
        fingerprints=[fingerprint_file for _, (fingerprint_file, _) in good],
        formats=[kind or "" for _, (_, kind) in good],
        mtimes=[e.time for e, _ in good],
    )


def inspect_files(root: str, entries: list[FileEntry]) -> list[FileIdentity]:
    """`inspect_file` of each. Threads hide the latency of a network; a task for each local file would cost more than
    it saves.
    """
    step = 64 if is_local(root) else 1

    def look(first: int) -> list[FileIdentity]:
        return [inspect_file(root, entry) for entry in entries[first : first + step]]

    with ThreadPoolExecutor(THREADS) as pool:
        return [result for part in pool.map(look, range(0, len(entries), step)) for result in part]


def inspect_file(root: str, entry: FileEntry) -> FileIdentity:
    """Fingerprint and format. The fingerprint is the store's own (ETag, git or LFS hash), else that of the content."""
    try:
        if entry.size <= HEAD_SIZE and is_local(root) and (data := read_small_file(join(root, entry.key), entry.size)):
            return fingerprint_bytes(data), detect_format(data, entry.key)
        with open_file(root, entry.key, block=HEAD_SIZE) as f:
            head = f.read(HEAD_SIZE)
            tag = entry.tag or fingerprint_file(f, head, entry.size)
    except read_errors(root) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{join(root, entry.key)}: cannot be read: {reason}") from error
    return tag, detect_format(head, entry.key)


def read_small_file(path: str, size: int) -> bytes | None:
    """All bytes of a local file of `size` bytes; None when it has another size now.

    Three system calls: of 10^5 files as file objects most of the time goes into threads waiting for each other.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, size + 1)
    finally:
        os.close(fd)
    return data if len(data) == size else None


def fingerprint_bytes(data: bytes) -> str:
    """Of all bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fingerprint_file(f: IO[bytes], head: bytes, size: int) -> str:
    """Of all bytes of a small file, of pieces of a large one. `head` has been read already."""
    digest = hashlib.blake2b(head, digest_size=16)
    if size <= WHOLE_FILE_LIMIT:
        digest.update(f.read())
    else:
        for i in range(1, WINDOW_COUNT):
            f.seek(i * (size - WINDOW_SIZE) // (WINDOW_COUNT - 1))
            digest.update(f.read(WINDOW_SIZE))
    return digest.hexdigest()


def find_changed_files(root: str, files: Iterator[tuple[str, int, str, int]]) -> list[str]:
    """Paths of the local files (key, size, fingerprint, time) that are no longer what they were.

    A small file is changed when its content is; a large one already when its time is, since not all of it is in its
    fingerprint. A file that is gone cannot be compared.
    """
    size_changed_error = []
    for key, size, was, time in files if is_local(root) else ():
        path = join(root, key)
        try:
            info = os.stat(path)  # noqa: PTH116  there may be 10^5
            if (info.st_size, info.st_mtime_ns) == (size, time):
                continue
            same = info.st_size == size <= WHOLE_FILE_LIMIT and inspect_file(root, FileEntry(key, size))[0] == was
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not same:
            size_changed_error.append(path)
    return size_changed_error


def join(root: str, key: str) -> str:
    """Path or URL of a file, for opening and for messages."""
    return f"{root.rstrip('/')}/{key}"


def is_local(root: str) -> bool:
    """Whether files under `root` are opened as local files."""
    return "://" not in root


def open_file(root: str, key: str, block: int = BLOCK) -> IO[bytes]:
    """Open a file for reading, wherever it is."""
    if is_local(root):
        return open(join(root, key), "rb")  # noqa: PTH123  a Path for each of 10^5 files takes a second
    if root.startswith("hf://"):
        from nano3.data.sources.hub import open_remote

        return open_remote(join(root, key))
    import fsspec

    fs, path = fsspec.core.url_to_fs(join(root, key))
    return cast(IO[bytes], fs.open(path, "rb", block_size=block))


def read_errors(root: str) -> tuple[type[Exception], ...]:
    """What reading a file under `root` may raise."""
    if root.startswith("hf://"):
        from nano3.data.sources.hub import network_errors

        return (EOFError, *network_errors())
    return (EOFError, *driver_errors())


def size_of(f: IO[Any]) -> int:
    """Bytes in an open file; its position is kept."""
    here = f.tell()
    size = f.seek(0, os.SEEK_END)
    f.seek(here)
    return size


def size_changed_error(path: str, expected: int, size: int) -> Nano3Error:
    """A file is no longer the one that was planned."""
    return Failure(f"{path}: {size:,} bytes now, {expected:,} when the plan was made. Run the same command again.")
