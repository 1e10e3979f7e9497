"""Environment of the Megatron backend's tests."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the variables that the backend sets for a single rank and for its caches."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
