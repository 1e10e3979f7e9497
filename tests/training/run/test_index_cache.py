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


def test_what_a_killed_start_has_written_is_removed(cache: Path) -> None:
    """A start of another length adds files. Those of an earlier start, or built ahead, stay."""
    index_cache.prepare_cache(cache)
    (cache / "half.npy").write_text("ha")
    index_cache.prepare_cache(cache)
    assert {path.name for path in cache.iterdir()} == {"order.npy", index_cache.COMPLETE_MARKER}


def test_a_folder_without_a_marker_is_emptied(cache: Path) -> None:
    (cache / index_cache.COMPLETE_MARKER).unlink()
    index_cache.prepare_cache(cache)
    assert not list(cache.iterdir())


def test_a_damaged_marker_marks_nothing(cache: Path) -> None:
    (cache / index_cache.COMPLETE_MARKER).write_text('["order')
    index_cache.prepare_cache(cache)
    assert not list(cache.iterdir())


def test_the_empty_marker_of_an_earlier_version_marks_all_files(cache: Path) -> None:
    (cache / index_cache.COMPLETE_MARKER).write_text("")
    index_cache.prepare_cache(cache)
    (cache / "half.npy").write_text("ha")
    index_cache.prepare_cache(cache)
    assert index_cache.complete_files(cache) == {"order.npy"} and not (cache / "half.npy").exists()


def test_files_are_added_while_a_start_uses_the_folder(cache: Path, tmp_path: Path) -> None:
    index_cache.prepare_cache(cache)
    (cache / "half.npy").write_text("ha")
    np.save(tmp_path / "ahead.npy", np.arange(3))
    index_cache.add_files(cache, [tmp_path / "ahead.npy"])
    assert index_cache.complete_files(cache) == {"order.npy", "ahead.npy"}
    index_cache.prepare_cache(cache)
    assert not (cache / "half.npy").exists() and (cache / "ahead.npy").exists()


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
        marked = "new.npy" in index_cache.complete_files(cache)
        synced.append(f"{Path(os.readlink(f'/proc/self/fd/{fd}')).name} {marked}")  # noqa: PTH115
        sync(fd)

    index_cache.prepare_cache(cache)
    np.save(cache / "new.npy", np.arange(3))
    monkeypatch.setattr(os, "fsync", record)
    index_cache.mark_complete(cache)
    assert [name for name in synced if ".npy" in name] == ["new.npy False", "order.npy False"]
    assert synced[-1] == f"{cache.name} True"


def test_other_ranks_touch_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    index_cache.prepare_cache(cache)
    assert (cache / index_cache.COMPLETE_MARKER).exists() and (cache / "order.npy").exists()
    (cache / index_cache.COMPLETE_MARKER).unlink()
    index_cache.mark_complete(cache)
    assert not (cache / index_cache.COMPLETE_MARKER).exists()
