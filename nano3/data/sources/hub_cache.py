"""Download a dataset's files into the hub's local cache, and save the list of them.

Later preparations (with another tokenizer, or on a node without a network) then need no hub.

The list is saved next to the files, as `datasets--org--name/nano3/REVISION.json`, so it is deleted with the dataset.
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import msgspec

from nano3.utils.console import say, size_text, write
from nano3.utils.disk_errors import FULL, disk_failure
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import nearest_existing, write_text

THREADS = 4  # simultaneous downloads; the files are large
REPORT_INTERVAL_S = 10.0  # seconds between two lines of progress
DEFAULT_REVISION = "main"  # if no revision is given
RESERVED_BYTES = 64 << 20  # bytes to leave free on the disk


@dataclass
class HubSnapshot:
    """A dataset repository at one commit. Stored as JSON.

    Attributes:
        commit: The commit.
        files: {path: (bytes, Git or LFS hash)}.
        card: Metadata of the dataset card.
        formats: {path: format} of the files inspected so far; None for a file without text.
    """

    commit: str
    files: dict[str, tuple[int, str | None]]
    card: dict[str, Any]
    formats: dict[str, str | None] = field(default_factory=dict)


def network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the hub's client raises if the network fails.

    Version 1 of the client is built on httpx and version 2 on httpx2; its own errors derive from the HTTPError of
    either.
    """
    from huggingface_hub.errors import HfHubHTTPError

    http_error = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return (OSError, cast(type[Exception], http_error))


def cache_dir() -> Path:
    """Return the folder of the hub's cache: HF_HUB_CACHE, or hub/ in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot_path(repo: str, revision: str | None) -> Path:
    """Return the path of the saved list of a repository's files."""
    return (
        cache_dir()
        / f"datasets--{repo.replace('/', '--')}"
        / "nano3"
        / f"{quote(revision or DEFAULT_REVISION, safe='')}.json"
    )


def load_snapshot(repo: str, revision: str | None) -> HubSnapshot | None:
    """Return the saved list of a repository's files, or None if there is none or it is damaged."""
    try:
        return msgspec.json.decode(snapshot_path(repo, revision).read_bytes(), type=HubSnapshot)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def save_snapshot(repo: str, revision: str | None, snapshot: HubSnapshot) -> None:
    """Save the list of a repository's files, under the revision's name and under its commit's.

    Write errors are ignored: downloading into the same cache reports them.

    Args:
        repo: `org/name`.
        revision: What the user asked for; None for the default branch.
        snapshot: The list.
    """
    text = msgspec.json.encode(snapshot).decode() + "\n"
    for name in {revision or DEFAULT_REVISION, snapshot.commit}:
        with contextlib.suppress(OSError):
            write_text(snapshot_path(repo, name), text)


def carry_over_formats(snapshot: HubSnapshot, before: HubSnapshot | None) -> HubSnapshot:
    """Copy the known formats of unchanged files from an earlier snapshot, and return the new one."""
    if before:
        same = [path for path in before.formats if before.files.get(path) == snapshot.files.get(path)]
        snapshot.formats = {path: before.formats[path] for path in same}
    return snapshot


def split_root(root: str) -> tuple[str, str]:
    """Return the repository and the commit of a root `hf://datasets/org/name@commit`."""
    repo, _, commit = root.removeprefix("hf://datasets/").rpartition("@")
    return repo, commit


def is_cached(root: str, key: str) -> bool:
    """Return whether a complete file is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    repo, commit = split_root(root)
    return isinstance(try_to_load_from_cache(repo, key, revision=commit, repo_type="dataset"), str)


class DownloadProgress:
    """Prints a line of progress to stderr from time to time.

    Args:
        files: Files to download.
        size: Bytes in them.
    """

    def __init__(self, files: int, size: int) -> None:
        self.files, self.size = files, size
        self.done_files = self.done_bytes = 0
        self.started = self.reported = time.monotonic()

    def add(self, size: float = 0, files: int = 0) -> None:
        """Add downloaded bytes and completed files."""
        self.done_bytes += int(size)
        self.done_files += files
        now = time.monotonic()
        if now - self.reported > REPORT_INTERVAL_S:
            self.reported = now
            rate = self.done_bytes / (now - self.started)
            write(
                f"download: {self.done_files:,}/{self.files:,} files, "
                f"{size_text(self.done_bytes)} of {size_text(self.size)}, "
                f"{size_text(rate)}/s\n",
                stderr=True,
            )


def download_files(wanted: list[tuple[str, str, int]], endpoint: str) -> None:
    """Download files into the cache, unless they are there.

    A broken connection is resumed a few times. If a file fails, the completed ones remain in the cache.

    Args:
        wanted: (root, key, bytes) of each file.
        endpoint: Address of the hub.

    Raises:
        Failure: A download failed.
        UserError: There is not enough space, or the cache cannot be written.
    """
    missing = [file for file in dict.fromkeys(wanted) if not is_cached(file[0], file[1])]
    if not missing:
        return
    size = sum(file[2] for file in missing)
    check_free_space(size)
    say(f"downloading {len(missing):,} files, {size_text(size)}, into {cache_dir()}")
    progress = DownloadProgress(len(missing), size)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(download_file, root, key, size, endpoint, progress.add) for root, key, size in missing]
        try:
            for job in jobs:
                job.result()
                progress.add(files=1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_free_space(size: int) -> None:
    """Raise UserError if the cache has not enough space for a download, instead of failing after hours."""
    free = shutil.disk_usage(nearest_existing(cache_dir())).free
    if size + RESERVED_BYTES > free:
        raise UserError(
            f"hf_files=download: {size_text(size)} to download into {cache_dir()}, where {size_text(free)} are "
            f"free. Free some space, set HF_HUB_CACHE to a folder with more, or set hf_files=stream to read the files "
            f"over the network."
        )


def download_file(root: str, key: str, size: int, endpoint: str, add: Callable[[float], None]) -> None:
    """Download one file into the cache.

    Args:
        root: `hf://datasets/org/name@commit`.
        key: Path of the file in the repository.
        size: Bytes expected.
        endpoint: Address of the hub.
        add: Called with the number of bytes of each downloaded block.

    Raises:
        Failure: The download failed, or the file does not have the expected size.
        UserError: The cache cannot be written.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """A progress bar that draws nothing and counts bytes."""

        monitor_interval = 0  # or tqdm starts a thread for this class, one for each file, that never ends

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            add(n or 0)
            return None

    repo, commit = split_root(root)
    url = f"{root}/{key}"
    try:
        path = hf_hub_download(
            repo, key, repo_type="dataset", revision=commit, endpoint=endpoint, cache_dir=cache_dir(), tqdm_class=Bar
        )
    except network_errors() as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise disk_failure(error, str(cache_dir())) from error
        if isinstance(error, PermissionError) and error.filename:
            raise UserError(
                f"hf_files=download: {error.filename}: cannot be written: {error.strerror}. Set HF_HUB_CACHE to a "
                f"folder that you own, or set hf_files=stream."
            ) from error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Failure(
            f"{url}: the download failed: {reason.rstrip('.')}. Run the same command again: completed files are not "
            f"downloaded again."
        ) from error
    if (got := Path(path).stat().st_size) != size:
        raise Failure(f"{url}: {got:,} bytes in the cache, {size:,} on the hub. Remove {path} and run again.")
