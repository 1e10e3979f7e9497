"""The garbage collector is paused in the block only, and its previous state is restored."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from nano3.utils.gc_pause import gc_paused


class Circle:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    was = gc.isenabled()
    gc.enable()
    yield
    gc.freeze()  # as tests/conftest.py does
    (gc.enable if was else gc.disable)()


def made() -> "weakref.ref[Circle]":
    return weakref.ref(Circle())


def many() -> None:
    """Enough objects for a collection of the youngest."""
    assert len([[] for _ in range(10 * gc.get_threshold()[0])])


def test_nothing_is_collected_in_the_block_and_everything_after_it() -> None:
    with gc_paused():
        circle = made()
        many()
        assert circle() is not None
    assert gc.isenabled()
    gc.collect()
    assert circle() is None


def test_frozen_objects_are_not_collected() -> None:
    with gc_paused(freeze=True):
        circle = made()
    gc.collect()
    assert circle() is not None
    gc.unfreeze()
    gc.collect()
    assert circle() is None


@pytest.mark.parametrize("freeze", [False, True])
def test_an_error_leaves_the_collector_on_and_freezes_nothing(freeze: bool) -> None:
    before = gc.get_freeze_count()
    with pytest.raises(KeyError), gc_paused(freeze=freeze):
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before  # what was frozen before can be freed, though not collected


def test_a_disabled_collector_stays_disabled() -> None:
    gc.disable()
    with gc_paused():
        pass
    assert not gc.isenabled()
