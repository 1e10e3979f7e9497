"""What was seen in files that were looked at, remembered in the output folder, so that a rerun over 10^5 files opens
only those that are new or changed.

A file is still what it was when its size, its time and its inode's time are: the last one cannot be set back, so an
edit that keeps size and time is noticed too. Where a store names its content (an ETag, a hash), that decides instead.
It is a memory and nothing else: when it is lost or damaged, every file is looked at again.
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nano3.data.sources.listing import FileEntry
from nano3.data.sources.own_files import prep_dir
from nano3.utils.files import atomic_open

# The number changes whenever the same file would get another fingerprint or format.
FILE_NAME = "looked.1.msgpack"
# A file changed so shortly before is looked at again: it may be changed once more before the file system's clock ticks.
TIMESTAMP_MARGIN_NS = 2_000_000_000
WORTH_SAVING = 1000  # files that are worth a write although the data is complete

FileIdentity = tuple[str, str | None]  # fingerprint; format, None for a file without text


class DatasetTable(msgspec.Struct):
    """Looks at the files of one dataset. Lists of equal length."""

    root: str
    keys: list[str] = []
    sizes: list[int] = []
    times: list[int] = []
    inode_times: list[int] = []
    fingerprints: list[str] = msgspec.field(name="prints", default_factory=list)
    formats: list[str | None] = []


@dataclass
class FingerprintCache:
    """Looks of earlier runs and of this one, by dataset. `opened` counts the files that had to be looked at."""

    before: dict[str, DatasetTable] = field(default_factory=dict)
    now: dict[str, tuple[str, list[FileEntry], list[FileIdentity]]] = field(default_factory=dict)
    opened: int = 0
    started: int = field(default_factory=time.time_ns)

    def get(self, dataset: str, root: str, entries: list[FileEntry]) -> list[FileIdentity | None]:
        """For each file what was seen in it, None when it has to be looked at."""
        table = self.before.get(dataset)
        if table is None or table.root != root:
            return [None] * len(entries)
        columns = (table.sizes, table.times, table.inode_times, table.fingerprints, table.formats)
        known = dict(zip(table.keys, zip(*columns, strict=True), strict=True))
        found: list[FileIdentity | None] = []
        for key, size, tag, changed, inode_time in entries:
            was = known.get(key)
            same = was is not None and was[:3] == (size, changed, inode_time) and tag in (None, was[3])
            found.append((was[3], was[4]) if was and same else None)
        return found

    def put(self, dataset: str, root: str, entries: list[FileEntry], looks: list[FileIdentity], opened: int) -> None:
        """Take note of what was seen in files, so that `save` can write it."""
        self.now[dataset] = (root, entries, looks)
        self.opened += opened

    def formats(self, dataset: str) -> dict[str, str | None]:
        """Of the files of a dataset, by key."""
        _, entries, looks = self.now[dataset]
        return {entry.key: kind for entry, (_, kind) in zip(entries, looks, strict=True)}

    def tables(self) -> dict[str, DatasetTable]:
        """What to write: files that will be known again, by the store's hash or by an inode's time."""
        latest = self.started - TIMESTAMP_MARGIN_NS
        made = {}
        for dataset, (root, entries, looks) in self.now.items():
            pairs = zip(entries, looks, strict=True)
            kept = [(e, look) for e, look in pairs if e.tag or 0 < e.inode_time < latest]
            made[dataset] = DatasetTable(
                root,
                keys=[e.key for e, _ in kept],
                sizes=[e.size for e, _ in kept],
                times=[e.time for e, _ in kept],
                inode_times=[e.inode_time for e, _ in kept],
                fingerprints=[fingerprint for _, (fingerprint, _) in kept],
                formats=[kind for _, (_, kind) in kept],
            )
        return made

    def save(self, output: Path) -> None:
        """Write it into the output folder."""
        with atomic_open(prep_dir(output) / FILE_NAME) as f:
            f.write(msgspec.msgpack.encode(self.tables()))

    def save_if_many(self, output: Path) -> None:
        """Write it although there was nothing to do, if that spares the next run a long look. Needs no lock, and may
        fail: the folder may be another user's.
        """
        if self.opened >= WORTH_SAVING:
            with contextlib.suppress(OSError):
                self.save(output)


def load_fingerprint_cache(output: Path) -> FingerprintCache:
    """What earlier runs have left in the output folder."""
    try:
        tables = msgspec.msgpack.decode((prep_dir(output) / FILE_NAME).read_bytes(), type=dict[str, DatasetTable])
    except (OSError, ValueError, msgspec.MsgspecError):
        return FingerprintCache()
    even = all(
        len({len(getattr(t, name)) for name in DatasetTable.__struct_fields__[1:]}) == 1 for t in tables.values()
    )
    return FingerprintCache(tables if even else {})
