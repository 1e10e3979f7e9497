"""RUN/index_cache/FINGERPRINT: the sample order that Megatron draws from the data, one folder per data fingerprint.

Megatron names these files after the data's paths, lengths and seed, not after its content, and never checks whether a
file is complete. So each data fingerprint has its own folder, and a folder without the completion marker, left by a
killed process, is rebuilt.
"""

import shutil
from pathlib import Path

from nano3.utils.console import is_rank_zero

NAME, COMPLETE_MARKER = "index_cache", "whole"


def cache_folder(run_dir: Path, fingerprint: str) -> Path:
    """Return the folder for the data with this fingerprint (`TrainingData.fingerprint`)."""
    return Path(run_dir) / NAME / fingerprint[:16]


def prepare_cache(cache: Path) -> None:
    """Remove the folder's files unless it is marked complete. Only rank 0 acts.

    Call it before Megatron reads the folder; rank 0 writes there before the other ranks read.
    """
    if not is_rank_zero():
        return
    if not (cache / COMPLETE_MARKER).exists():
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / COMPLETE_MARKER).unlink(missing_ok=True)


def mark_complete(cache: Path) -> None:
    """Mark the folder complete after Megatron has written to it. Only rank 0 acts."""
    if is_rank_zero():
        (cache / COMPLETE_MARKER).touch()
