"""Each content of the data has its own index cache, and an incomplete one is rebuilt."""

import os
from pathlib import Path

import numpy as np
import pytest

from nano3.training.run import index_cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """One that is whole."""
    folder = index_cache.cache_folder(tmp_path, "f" * 64)
    index_cache.prepare_cache(folder)
    np.save(folder / "order.npy", np.arange(100))
    index_cache.mark_complete(folder)
    return folder


def test_another_content_is_another_folder(tmp_path: Path, cache: Path) -> None:
    other = index_cache.cache_folder(tmp_path, "e" * 64)
    assert other.parent == cache.parent and other != cache
    index_cache.prepare_cache(other)
    assert not list(other.iterdir()) and (cache / "order.npy").exists()


def test_a_whole_one_is_kept(cache: Path) -> None:
    index_cache.prepare_cache(cache)
    assert (cache / "order.npy").exists()


def test_an_incomplete_cache_is_rebuilt(cache: Path) -> None:
    """Also one that was whole before: a start of another length adds files to it."""
    index_cache.prepare_cache(cache)
    (cache / "half.npy").write_text("ha")
    index_cache.prepare_cache(cache)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("size", [0, 5, 128, 500])
def test_a_file_cut_by_a_power_failure_is_rebuilt(cache: Path, size: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Also with the marker of an earlier version, which was set before the files were on the disk."""
    os.truncate(cache / "order.npy", size)
    index_cache.prepare_cache(cache)
    assert not list(cache.iterdir())
    assert "order.npy: cut off, possibly by a power failure" in capfd.readouterr().err


def test_files_are_synced_before_the_marker(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def record(fd: int) -> None:
        marked = (cache / index_cache.COMPLETE_MARKER).exists()
        synced.append(f"{Path(os.readlink(f'/proc/self/fd/{fd}')).name} {marked}")  # noqa: PTH115
        sync(fd)

    monkeypatch.setattr(os, "fsync", record)
    index_cache.prepare_cache(cache)
    index_cache.mark_complete(cache)
    assert synced == ["order.npy False", f"{cache.name} True"]


def test_other_ranks_touch_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    index_cache.prepare_cache(cache)
    assert (cache / index_cache.COMPLETE_MARKER).exists() and (cache / "order.npy").exists()
    (cache / index_cache.COMPLETE_MARKER).unlink()
    index_cache.mark_complete(cache)
    assert not (cache / index_cache.COMPLETE_MARKER).exists()
