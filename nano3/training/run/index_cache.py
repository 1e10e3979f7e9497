"""RUN/index_cache/FINGERPRINT: the sample order that Megatron draws from the data, one folder per data fingerprint.

Megatron names these files after the data's paths, lengths and seed, not after its content, and never checks whether a
file is complete. So each data fingerprint has its own folder, and a folder is rebuilt if it has no completion marker,
left by a killed process, or if a file was cut off by a power failure. The files are synced before the marker is set.
"""

import os
import shutil
from pathlib import Path

from nano3.utils.console import is_rank_zero, warn
from nano3.utils.files import fsync_dir

NAME, COMPLETE_MARKER = "index_cache", "whole"


def cache_folder(run_dir: Path, fingerprint: str) -> Path:
    """Return the folder for the data with this fingerprint (`TrainingData.fingerprint`)."""
    return Path(run_dir) / NAME / fingerprint[:16]


def prepare_cache(cache: Path) -> None:
    """Remove the folder's files unless it is marked complete and they are. Only rank 0 acts.

    Call it before Megatron reads the folder; rank 0 writes there before the other ranks read.
    """
    if not is_rank_zero():
        return
    complete = (cache / COMPLETE_MARKER).exists()
    if complete and (damaged := [path for path in sorted(cache.glob("*.npy")) if not is_complete(path)]):
        warn(f"{damaged[0]}: cut off, possibly by a power failure. The same sample order is drawn again.")
        complete = False
    if not complete:
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / COMPLETE_MARKER).unlink(missing_ok=True)


def is_complete(path: Path) -> bool:
    """Return whether a .npy file has all the bytes that its header promises."""
    import numpy as np  # the checks before a start import this module without numpy

    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


def mark_complete(cache: Path) -> None:
    """Mark the folder complete after Megatron has written to it, once its files are on the disk. Only rank 0 acts."""
    if not is_rank_zero():
        return
    for path in cache.iterdir():
        with path.open("rb") as f:
            os.fsync(f.fileno())
    (cache / COMPLETE_MARKER).touch()
    fsync_dir(cache)
