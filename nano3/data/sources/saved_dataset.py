"""Select the data files in folders that the `datasets` library wrote: `save_to_disk` folders and caches.

`Dataset.save_to_disk` writes Arrow files, and a state.json that lists them. `DatasetDict.save_to_disk` writes such a
folder for each split, and a dataset_dict.json that lists the splits. Both may also hold cached results of `map` and
`filter`, which are not data.
"""

import posixpath
import re
from collections.abc import Callable
from typing import Any

import msgspec

from nano3.data.sources.listing import FileEntry, Listing
from nano3.utils.console import warn
from nano3.utils.errors import UserError

STATE, DICT = "state.json", "dataset_dict.json"
METADATA = ("dataset_info.json", "dataset_infos.json", DICT)  # never data
CACHE_FILE = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")  # see `fingerprint.py` of `datasets`


def select_saved(listing: Listing, split: str, label: str, read: Callable[[str], bytes]) -> Listing:
    """Return a listing without what the `datasets` library wrote beside the data.

    A file that the user named is not left out, but a cached result that a glob matches is.

    Args:
        listing: The files that the user's path selects.
        split: Split to take of a saved DatasetDict.
        label: Start of error messages.
        read: Function from a key to the content of its file.

    Raises:
        UserError: A saved DatasetDict has no such split, or a saved dataset is incomplete.
    """
    entries = listing.entries
    if not listing.strict:
        for marker in [e.key for e in entries if posixpath.basename(e.key) == DICT]:
            entries = select_split(entries, marker, read, split, label)
        for marker in [e.key for e in entries if posixpath.basename(e.key) == STATE]:
            entries = select_shards(entries, marker, read, label)
        entries = [e for e in entries if not e.key.endswith(METADATA) or posixpath.basename(e.key) not in METADATA]
    cached = {e.key for e in entries if e.key.endswith(".arrow") and CACHE_FILE.fullmatch(posixpath.basename(e.key))}
    if cached and len(listing.entries) > 1:
        entries = [e for e in entries if e.key not in cached]
        warn(f"{label}: {len(cached)} cache file(s) of the datasets library left out, such as {min(cached)}")
    return listing._replace(entries=entries)


def read_marker(key: str, read: Callable[[str], bytes], field: str) -> Any:
    """Return a field of a JSON file that `save_to_disk` wrote; None if another program wrote it.

    Args:
        key: Key of the file.
        read: Function from a key to the content of its file.
        field: Name of the field.
    """
    try:
        content = msgspec.json.decode(read(key))
    except (msgspec.DecodeError, OSError):
        return None
    return content.get(field) if isinstance(content, dict) else None


def select_split(
    entries: list[FileEntry], marker: str, read: Callable[[str], bytes], split: str, label: str
) -> list[FileEntry]:
    """Return the entries without the other splits of a saved DatasetDict.

    Args:
        entries: All files.
        marker: Key of its dataset_dict.json.
        read: Function from a key to the content of its file.
        split: Split to take.
        label: Start of error messages.

    Raises:
        UserError: It has no such split.
    """
    splits = read_marker(marker, read, "splits")
    if not isinstance(splits, list):
        return entries
    folder = marker.removesuffix(DICT)
    if split not in splits:
        where = f" {folder}" if folder else ""
        raise UserError(
            f"{label}: split={split} is not one of the splits of the saved DatasetDict{where}: "
            f"{', '.join(map(str, splits))}."
        )
    wanted = f"{folder}{split}/"
    if not any(entry.key.startswith(wanted) for entry in entries):
        raise UserError(f"{label}: {marker} lists the split {split!r}, but there are no files in {wanted}.")
    others = tuple(f"{folder}{name}/" for name in splits if name != split)
    return [entry for entry in entries if not entry.key.startswith(others)]


def select_shards(entries: list[FileEntry], marker: str, read: Callable[[str], bytes], label: str) -> list[FileEntry]:
    """Return the entries without the files of a saved Dataset's folder that are not its data.

    Args:
        entries: All files.
        marker: Key of its state.json.
        read: Function from a key to the content of its file.
        label: Start of error messages.

    Raises:
        UserError: A file of the data is missing, or the dataset refers to rows of another one.
    """
    shards = read_marker(marker, read, "_data_files")
    if not isinstance(shards, list) or not all(isinstance(s, dict) and "filename" in s for s in shards):
        return entries
    folder = marker.removesuffix(STATE)
    if read_marker(marker, read, "_indices_files") or read_marker(marker, read, "_indices_data_files"):
        raise UserError(
            f"{label}: {marker}: an old version of datasets saved a selection of rows. Load the dataset and save it "
            f"with a newer version, or write it with to_parquet."
        )
    wanted = {f"{folder}{shard['filename']}" for shard in shards}
    if missing := sorted(wanted - {entry.key for entry in entries}):
        raise UserError(f"{label}: {marker} lists {missing[0]}, which is missing. Copy the folder again.")
    return [entry for entry in entries if entry.key in wanted or posixpath.dirname(entry.key) != folder.rstrip("/")]
