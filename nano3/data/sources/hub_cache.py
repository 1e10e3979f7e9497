"""The hub's local cache, filled: files of a dataset fetched whole before any is tokenized, and the list of them kept,
so that the next preparation (with another tokenizer, on a node without a network) needs no hub.

The list lies beside the files, as `datasets--org--name/nano3/REVISION.json`, and goes when the dataset is removed from
the cache.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from nano3.utils.console import say
from nano3.utils.disk_errors import FULL, disk_failure
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import nearest_existing, write_text

THREADS = 4  # files at a time; each of them is large
REPORT_INTERVAL_S = 10.0
DEFAULT_REVISION = "main"  # what no revision means
RESERVED_BYTES = 64 << 20  # bytes to leave free


@dataclass
class HubSnapshot:
    """A dataset repository at one commit: {path: (bytes, hash)}, its card's metadata, and what of the formats of its
    files is known, {path: format, None for no text}.
    """

    commit: str
    files: dict[str, tuple[int, str | None]]
    card: dict[str, Any]
    formats: dict[str, str | None] = field(default_factory=dict)


def cache_dir() -> Path:
    """The hub's cache: HF_HUB_CACHE, else hub/ in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot_path(repo: str, revision: str | None) -> Path:
    """Where the list of a repository's files is kept."""
    return (
        cache_dir()
        / f"datasets--{repo.replace('/', '--')}"
        / "nano3"
        / f"{quote(revision or DEFAULT_REVISION, safe='')}.json"
    )


def load_snapshot(repo: str, revision: str | None) -> HubSnapshot | None:
    """The list that was kept; None when there is none, or none that can be read."""
    try:
        return msgspec.json.decode(snapshot_path(repo, revision).read_bytes(), type=HubSnapshot)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def save_snapshot(repo: str, revision: str | None, listed: HubSnapshot) -> None:
    """Keep the list, under the revision's name and under its commit's. A cache that cannot be written is told when
    files are fetched into it.
    """
    text = msgspec.json.encode(listed).decode() + "\n"
    for name in {revision or DEFAULT_REVISION, listed.commit}:
        with contextlib.suppress(OSError):
            write_text(snapshot_path(repo, name), text)


def carry_over_formats(listed: HubSnapshot, before: HubSnapshot | None) -> HubSnapshot:
    """What was known of files that are the same still."""
    if before:
        same = [path for path in before.formats if before.files.get(path) == listed.files.get(path)]
        listed.formats = {path: before.formats[path] for path in same}
    return listed


def split_root(root: str) -> tuple[str, str]:
    """Repository and commit of a root `hf://datasets/org/name@commit`."""
    repo, _, commit = root.removeprefix("hf://datasets/").rpartition("@")
    return repo, commit


def is_cached(root: str, key: str) -> bool:
    """Whether a file is in the cache, whole."""
    from huggingface_hub import try_to_load_from_cache

    repo, commit = split_root(root)
    return isinstance(try_to_load_from_cache(repo, key, revision=commit, repo_type="dataset"), str)


class DownloadProgress:
    """How far the download is: a line now and then, on stderr."""

    def __init__(self, files: int, size: int) -> None:
        self.files, self.size = files, size
        self.done = self.got = 0
        self.start = self.told = time.monotonic()

    def add(self, size: float = 0, files: int = 0) -> None:
        """Count, and tell."""
        self.got += int(size)
        self.done += files
        now = time.monotonic()
        if now - self.told > REPORT_INTERVAL_S:
            self.told = now
            rate = self.got / 1e6 / (now - self.start)
            print(
                f"download: {self.done:,}/{self.files:,} files, {self.got / 1e9:,.1f}/{self.size / 1e9:,.1f} GB, "
                f"{rate:,.0f} MB/s",
                file=sys.stderr,
                flush=True,
            )


def download_files(wanted: list[tuple[str, str, int]], endpoint: str) -> None:
    """Download what is not in the cache of files (root, key, bytes). Whole files are kept when another one fails.

    A connection that breaks inside a file is taken up again where it broke, a few times. Raises `Failure` naming the
    file, `UserError` when there is not enough room.
    """
    missing = [file for file in dict.fromkeys(wanted) if not is_cached(file[0], file[1])]
    if not missing:
        return
    size = sum(file[2] for file in missing)
    check_free_space(size)
    say(f"downloading {len(missing):,} files, {size / 1e6:,.1f} MB, into {cache_dir()}")
    told = DownloadProgress(len(missing), size)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(download_file, root, key, size, endpoint, told.add) for root, key, size in missing]
        try:
            for job in jobs:
                job.result()
                told.add(files=1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_free_space(size: int) -> None:
    """Tell now what would be told after hours."""
    free = shutil.disk_usage(nearest_existing(cache_dir())).free
    if size + RESERVED_BYTES > free:
        raise UserError(
            f"hf_files=download: {size / 1e9:,.1f} GB to download into {cache_dir()}, where {free / 1e9:,.1f} GB are "
            f"free. Free some, set HF_HUB_CACHE to a folder with more, or set hf_files=stream to read the files in "
            f"place."
        )


def download_file(root: str, key: str, size: int, endpoint: str, add: Callable[[float], None]) -> None:
    """Download one file of `size` bytes."""
    from httpx import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        """Draws nothing, counts bytes."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            add(n or 0)
            return None

    repo, commit = split_root(root)
    url = f"{root}/{key}"
    try:
        path = hf_hub_download(
            repo, key, repo_type="dataset", revision=commit, endpoint=endpoint, cache_dir=cache_dir(), tqdm_class=Bar
        )
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise disk_failure(error, str(cache_dir())) from error
        if isinstance(error, PermissionError) and error.filename:
            raise UserError(
                f"hf_files=download: {error.filename}: cannot be written: {error.strerror}. Set HF_HUB_CACHE to a "
                f"folder of yours, or set hf_files=stream."
            ) from error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Failure(
            f"{url}: the download failed: {reason.rstrip('.')}. Run the same command again: files that are whole are "
            f"kept."
        ) from error
    if (got := Path(path).stat().st_size) != size:
        raise Failure(f"{url}: {got:,} bytes in the cache, {size:,} on the hub. Remove {path} and run again.")
