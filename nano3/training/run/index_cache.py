"""RUN/index_cache/CONTENT: the order of samples that Megatron has drawn from one content of the data.

Megatron names these files after the data's paths, the lengths and the seed, not after what is in the data, and takes a
file that is there for whole. So each content has a folder of its own, and a folder without its mark, which a start that
was killed while it wrote there has left, is made anew.
"""

import shutil
from pathlib import Path

from nano3.utils.console import is_rank_zero

NAME, COMPLETE_MARKER = "index_cache", "whole"


def cache_folder(run_dir: Path, fingerprint: str) -> Path:
    """Where a run keeps the orders of the data with this fingerprint (`TrainingData.fingerprint`)."""
    return Path(run_dir) / NAME / fingerprint[:16]


def prepare_cache(cache: Path) -> None:
    """Before Megatron looks into the folder: what is not known to be whole goes. Rank 0 alone does it, and writes
    before the others read."""
    if not is_rank_zero():
        return
    if not (cache / COMPLETE_MARKER).exists():
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / COMPLETE_MARKER).unlink(missing_ok=True)


def mark_complete(cache: Path) -> None:
    """After Megatron has written what it wanted."""
    if is_rank_zero():
        (cache / COMPLETE_MARKER).touch()
