"""RUN/index_cache/FINGERPRINT: the sample order that Megatron draws from the data, one folder per data fingerprint.

Megatron names these files after the data's paths, lengths and seed, not after its content, and never checks whether a
file is complete. So each data fingerprint has its own folder, and a marker there names the complete files. The files
are synced before they are named. A start removes the others: a killed process has left them. An index that was built
ahead, or by an earlier start, is kept, since it may have taken an hour.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from nano3.utils.console import is_rank_zero, warn
from nano3.utils.errors import Nano3Error
from nano3.utils.files import write_json

NAME, COMPLETE_MARKER = "index_cache", "whole"
# Megatron chooses the shard of each sample by comparing all shards, and shuffles samples and documents. CPU seconds per
# sample and shard, and per sample (benchmarks/results/order.md).
_COMPARE_S, _SHUFFLE_S = 1.6e-9, 1e-7


def cache_folder(run_dir: Path, fingerprint: str) -> Path:
    """Return the folder for the data with this fingerprint (`TrainingData.fingerprint`)."""
    return Path(run_dir) / NAME / fingerprint[:16]


def build_seconds(samples: int, shards: int) -> float:
    """Return about how long Megatron takes to build an index, on one core.

    Args:
        samples: Samples of the run.
        shards: Shards of its train split.
    """
    return samples * (_SHUFFLE_S + (_COMPARE_S * shards if shards > 1 else 0.0))


def has_index(run_dir: str | Path, fingerprint: str, samples: int) -> bool:
    """Return whether a run folder has a complete index.

    Args:
        run_dir: The run folder.
        fingerprint: That of the data.
        samples: Samples of the run.
    """
    from nano3.training.run.sample_index import SampleIndex, description_hash  # imports numpy

    cache = cache_folder(Path(run_dir), fingerprint)
    try:
        found = description_hash(SampleIndex(cache, samples).description)
    except Nano3Error:
        return False
    return any(name.startswith(found) for name in complete_files(cache))


def prepare_cache(cache: Path) -> None:
    """Remove the folder's files that are not known to be complete, or all if one is damaged. Only rank 0 acts.

    Call it before Megatron reads the folder; rank 0 writes there before the other ranks read.
    """
    if not is_rank_zero():
        return
    kept = complete_files(cache)
    if damaged := [cache / name for name in sorted(kept) if name.endswith(".npy") and not is_complete(cache / name)]:
        warn(f"{damaged[0]}: cut off, possibly by a power failure. The same sample order is drawn again.")
        kept = set()
    if not kept:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        return
    for path in cache.iterdir():
        if path.name not in kept | {COMPLETE_MARKER}:
            path.unlink()
    write_json(cache / COMPLETE_MARKER, sorted(kept))  # that of an earlier version is empty


def complete_files(cache: Path) -> set[str]:
    """Return the names of the files that are complete. With the marker of an earlier version, it is all of them."""
    marker = cache / COMPLETE_MARKER
    try:
        text = marker.read_text()
        names = json.loads(text) if text else [path.name for path in cache.iterdir()]
    except (FileNotFoundError, ValueError):
        return set()
    return {name for name in names if name != COMPLETE_MARKER and (cache / name).is_file()}


def is_complete(path: Path) -> bool:
    """Return whether a .npy file has all the bytes that its header promises."""
    import numpy as np  # the checks before a start import this module without numpy

    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


def mark_complete(cache: Path) -> None:
    """Mark all files of the folder complete, once they are on the disk. Only rank 0 acts."""
    if is_rank_zero():
        _mark(cache, {path.name for path in cache.iterdir()} - {COMPLETE_MARKER})


def add_files(cache: Path, paths: Iterable[Path]) -> None:
    """Move complete files into the folder of a run, which may be training, and mark them complete.

    Args:
        cache: The folder.
        paths: The files, on the same disk.
    """
    cache.mkdir(parents=True, exist_ok=True)
    known = complete_files(cache)
    _mark(cache, known | {path.rename(cache / path.name).name for path in paths})


def _mark(cache: Path, names: set[str]) -> None:
    for name in sorted(names):
        with (cache / name).open("rb") as f:
            os.fsync(f.fileno())
    write_json(cache / COMPLETE_MARKER, sorted(names))
