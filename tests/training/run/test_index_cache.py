"""Each content of the data has its own index cache, and an incomplete one is rebuilt."""

from pathlib import Path

import pytest

from nano3.training.run import index_cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """One that is whole."""
    folder = index_cache.cache_folder(tmp_path, "f" * 64)
    index_cache.prepare_cache(folder)
    (folder / "order.npy").write_text("order")
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


def test_other_ranks_touch_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    index_cache.prepare_cache(cache)
    assert (cache / index_cache.COMPLETE_MARKER).exists() and (cache / "order.npy").exists()
    (cache / index_cache.COMPLETE_MARKER).unlink()
    index_cache.mark_complete(cache)
    assert not (cache / index_cache.COMPLETE_MARKER).exists()
