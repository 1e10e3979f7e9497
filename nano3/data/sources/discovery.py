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
from nano3.data.sources.fingerprint_cache import FingerprintCache, Look
from nano3.data.sources.formats import ALLOWED, HEAD, JSON_NAMES, NEVER_EMPTY, detect, may_hold_text
from nano3.data.sources.listing import Entry, Listing, driver_errors, list_local, list_url
from nano3.utils.console import warn
from nano3.utils.errors import Failure, Nano3Error, UserError

THREADS = 16
WHOLE_FILE_LIMIT = 2 << 20  # a file up to this size is fingerprinted whole
WINDOWS, WINDOW = 16, 16 << 10  # of a larger one so many pieces are, spread evenly, of so many bytes
BLOCK = 8 << 20  # read over the network at a time


@dataclass
class DiscoveredFiles:
    """The files of one dataset, sorted by name. Lists of equal length, since there may be many.

    `root` is a local folder or a URL; `keys` are paths relative to it; `prints` identify the content; `times` are
    nanoseconds, 0 where unknown.
    """

    root: str
    revision: str | None = None
    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    prints: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


def discover_files(
    source: SourceConfig, output: str, memory: FingerprintCache | None = None, keep_list: bool = False
) -> DiscoveredFiles:
    """List and identify the files of a dataset, without those that nano3 has put into `output`. Files that `memory`
    knows are not opened. `keep_list` keeps the list of a hub's files for runs without a network.

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
    found = identify(listing, label, source.name, memory)
    if listed:
        from nano3.data.sources.hub import keep_list_of

        found.revision = listed.commit
        if keep_list:
            keep_list_of(source, listed, memory.formats(source.name))
    if not found.keys:
        raise UserError(f"{label}: no file with text in it. Formats: {ALLOWED}.")
    return found


def identify(listing: Listing, label: str, dataset: str, memory: FingerprintCache) -> DiscoveredFiles:
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
    known = memory.recall(dataset, listing.root, solid)
    if told := listing.formats:
        pairs = zip(solid, known, strict=True)
        known = [look or ((e.tag, told[e.key]) if e.tag and e.key in told else None) for e, look in pairs]
    new = iter(look_at_all(listing.root, [e for e, look in zip(solid, known, strict=True) if look is None]))
    looks = [look or next(new) for look in known]
    memory.keep(dataset, listing.root, solid, looks, opened=known.count(None))
    # `[` alone says little: so begins many a README.md.
    wrong = [
        entry.key
        for entry, (_, kind) in zip(solid, looks, strict=True)
        if kind is None or (kind == "json" and not may_hold_text(entry.key))
    ]
    if wrong and (listing.strict or any(k.lower().endswith((*JSON_NAMES, *NEVER_EMPTY)) for k in wrong)):
        raise UserError([f"{label}: {key} is not of a known format. Formats: {ALLOWED}." for key in wrong[:20]])
    if strange := sorted(strange + wrong):
        more = ", ..." if len(strange) > 3 else ""
        warn(f"{label}: {len(strange)} file(s) of no known format left out: {', '.join(strange[:3])}{more}")
    left_out = set(wrong)
    good = [(e, look) for e, look in zip(solid, looks, strict=True) if e.key not in left_out]
    return DiscoveredFiles(
        listing.root,
        keys=[e.key for e, _ in good],
        sizes=[e.size for e, _ in good],
        prints=[fingerprint for _, (fingerprint, _) in good],
        formats=[kind or "" for _, (_, kind) in good],
        times=[e.time for e, _ in good],
    )


def look_at_all(root: str, entries: list[Entry]) -> list[Look]:
    """`inspect_file` of each. Threads hide the latency of a network; a task for each local file would cost more than
    it saves.
    """
    step = 64 if is_local(root) else 1

    def look(first: int) -> list[Look]:
        return [inspect_file(root, entry) for entry in entries[first : first + step]]

    with ThreadPoolExecutor(THREADS) as pool:
        return [result for part in pool.map(look, range(0, len(entries), step)) for result in part]


def inspect_file(root: str, entry: Entry) -> Look:
    """Fingerprint and format. The fingerprint is the store's own (ETag, git or LFS hash), else that of the content."""
    try:
        if entry.size <= HEAD and is_local(root) and (data := read_small(join(root, entry.key), entry.size)):
            return fingerprint_of(data), detect(data, entry.key)
        with open_file(root, entry.key, block=HEAD) as f:
            head = f.read(HEAD)
            tag = entry.tag or fingerprint(f, head, entry.size)
    except read_errors(root) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{join(root, entry.key)}: cannot be read: {reason}") from error
    return tag, detect(head, entry.key)


def read_small(path: str, size: int) -> bytes | None:
    """All bytes of a local file of `size` bytes; None when it has another size now.

    Three system calls: of 10^5 files as file objects most of the time goes into threads waiting for each other.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, size + 1)
    finally:
        os.close(fd)
    return data if len(data) == size else None


def fingerprint_of(data: bytes) -> str:
    """Of all bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fingerprint(f: IO[bytes], head: bytes, size: int) -> str:
    """Of all bytes of a small file, of pieces of a large one. `head` has been read already."""
    digest = hashlib.blake2b(head, digest_size=16)
    if size <= WHOLE_FILE_LIMIT:
        digest.update(f.read())
    else:
        for i in range(1, WINDOWS):
            f.seek(i * (size - WINDOW) // (WINDOWS - 1))
            digest.update(f.read(WINDOW))
    return digest.hexdigest()


def changed_files(root: str, files: Iterator[tuple[str, int, str, int]]) -> list[str]:
    """Paths of the local files (key, size, fingerprint, time) that are no longer what they were.

    A small file is changed when its content is; a large one already when its time is, since not all of it is in its
    fingerprint. A file that is gone cannot be compared.
    """
    changed_error = []
    for key, size, was, time in files if is_local(root) else ():
        path = join(root, key)
        try:
            info = os.stat(path)  # noqa: PTH116  there may be 10^5
            if (info.st_size, info.st_mtime_ns) == (size, time):
                continue
            same = info.st_size == size <= WHOLE_FILE_LIMIT and inspect_file(root, Entry(key, size))[0] == was
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not same:
            changed_error.append(path)
    return changed_error


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
        from nano3.data.sources.hub import unreachable

        return (EOFError, *unreachable())
    return (EOFError, *driver_errors())


def size_of(f: IO[Any]) -> int:
    """Bytes in an open file; its position is kept."""
    here = f.tell()
    size = f.seek(0, os.SEEK_END)
    f.seek(here)
    return size


def changed_error(path: str, expected: int, size: int) -> Nano3Error:
    """A file is no longer the one that was planned."""
    return Failure(f"{path}: {size:,} bytes now, {expected:,} when the plan was made. Run the same command again.")
