"""The fingerprint cache lets a rerun over 10^5 files open only those that are new or changed.

A local file is unchanged if its size, its modification time, and its inode's change time are the same. No program
can set the last one back, so an edit that preserves size and modification time is noticed too. If a store provides a
fingerprint of its own (an ETag, a hash), that must be the same as well.

The cache is optional: if it is lost or damaged, every file is opened again.
"""

import contextlib
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nano3.data.sources.listing import FileEntry
from nano3.data.sources.own_files import prep_dir
from nano3.utils.files import atomic_open

# Raise the number in the name whenever the same file would get another fingerprint or format.
FILE_NAME = "looked.2.msgpack"
OLD_FILE_NAME = "looked.1.msgpack"  # of earlier versions: the same without a checksum
CHECKSUM_SIZE = 16
# A file that changed this recently is not cached: it may change again within one tick of the file system's clock.
TIMESTAMP_MARGIN_NS = 2_000_000_000
WORTH_SAVING = 1000  # opened files that justify writing the cache although the data is complete

FileIdentity = tuple[str, str | None]  # fingerprint; key of `formats.FORMATS`, or None for a file without text


class DatasetTable(msgspec.Struct):
    """Identities of the files of one dataset, as stored: lists of equal length.

    Times are in nanoseconds. The stored names of some columns are older than their attributes.
    """

    root: str
    keys: list[str] = []
    sizes: list[int] = []
    mtimes: list[int] = msgspec.field(name="times", default_factory=list)
    ctimes: list[int] = msgspec.field(name="inode_times", default_factory=list)
    fingerprints: list[str] = msgspec.field(name="prints", default_factory=list)
    formats: list[str | None] = []


@dataclass
class FingerprintCache:
    """Identities of files from earlier runs and from this one, by dataset.

    Attributes:
        stored: What earlier runs saved.
        current: (root, files, identities) of each dataset in this run.
        opened: Number of files that had to be opened in this run.
        created: When this cache was created, in nanoseconds since the epoch.
    """

    stored: dict[str, DatasetTable] = field(default_factory=dict)
    current: dict[str, tuple[str, list[FileEntry], list[FileIdentity]]] = field(default_factory=dict)
    opened: int = 0
    created: int = field(default_factory=time.time_ns)

    def get(self, dataset: str, root: str, entries: list[FileEntry]) -> list[FileIdentity | None]:
        """Return the identity of each file, or None if it is new or changed.

        Args:
            dataset: Name of the dataset.
            root: Root of the dataset.
            entries: Its files as they are now.
        """
        table = self.stored.get(dataset)
        if table is None or table.root != root:
            return [None] * len(entries)
        columns = (table.sizes, table.mtimes, table.ctimes, table.fingerprints, table.formats)
        known = dict(zip(table.keys, zip(*columns, strict=True), strict=True))
        found: list[FileIdentity | None] = []
        for key, size, store_fingerprint, mtime, ctime in entries:
            was = known.get(key)
            same = was is not None and was[:3] == (size, mtime, ctime) and store_fingerprint in (None, was[3])
            found.append((was[3], was[4]) if was and same else None)
        return found

    def put(
        self, dataset: str, root: str, entries: list[FileEntry], identities: list[FileIdentity], opened: int
    ) -> None:
        """Add the files of a dataset.

        Args:
            dataset: Name of the dataset.
            root: Root of the dataset.
            entries: Its files.
            identities: One per file.
            opened: Number of files that had to be opened.
        """
        self.current[dataset] = (root, entries, identities)
        self.opened += opened

    def formats(self, dataset: str) -> dict[str, str | None]:
        """Return the format of each file of a dataset, by key."""
        _, entries, identities = self.current[dataset]
        return {entry.key: kind for entry, (_, kind) in zip(entries, identities, strict=True)}

    def tables(self) -> dict[str, DatasetTable]:
        """Return what to store: the files that a later run can recognize.

        Those are the files with a fingerprint from their store, and local files that did not change recently.
        """
        latest = self.created - TIMESTAMP_MARGIN_NS
        tables = {}
        for dataset, (root, entries, identities) in self.current.items():
            pairs = zip(entries, identities, strict=True)
            stored = [(e, identity) for e, identity in pairs if e.store_fingerprint or 0 < e.ctime < latest]
            tables[dataset] = DatasetTable(
                root,
                keys=[e.key for e, _ in stored],
                sizes=[e.size for e, _ in stored],
                mtimes=[e.mtime for e, _ in stored],
                ctimes=[e.ctime for e, _ in stored],
                fingerprints=[fingerprint for _, (fingerprint, _) in stored],
                formats=[kind for _, (_, kind) in stored],
            )
        return tables

    def save(self, output: Path) -> None:
        """Write the cache into an output folder."""
        data = msgspec.msgpack.encode(self.tables())
        with atomic_open(prep_dir(output) / FILE_NAME) as f:
            f.write(hashlib.blake2b(data, digest_size=CHECKSUM_SIZE).digest())
            f.write(data)
        (prep_dir(output) / OLD_FILE_NAME).unlink(missing_ok=True)

    def save_if_many(self, output: Path) -> None:
        """Write the cache if this run opened many files, although it had nothing else to do.

        Needs no lock, and ignores write errors: the folder may belong to another user.
        """
        if self.opened >= WORTH_SAVING:
            with contextlib.suppress(OSError):
                self.save(output)


def read_cache(folder: Path) -> bytes:
    """Return the encoded cache in a folder; raise ValueError if its checksum differs."""
    try:
        stored = (folder / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return (folder / OLD_FILE_NAME).read_bytes()
    data = stored[CHECKSUM_SIZE:]
    if hashlib.blake2b(data, digest_size=CHECKSUM_SIZE).digest() != stored[:CHECKSUM_SIZE]:
        raise ValueError("the checksum differs")
    return data


def load_fingerprint_cache(output: Path) -> FingerprintCache:
    """Return the cache stored in an output folder; an empty one if there is none or it is damaged."""
    try:
        tables = msgspec.msgpack.decode(read_cache(prep_dir(output)), type=dict[str, DatasetTable])
    except (OSError, ValueError, msgspec.MsgspecError):
        return FingerprintCache()
    columns = DatasetTable.__struct_fields__[1:]
    intact = all(len({len(getattr(table, name)) for name in columns}) == 1 for table in tables.values())
    return FingerprintCache(tables if intact else {})
