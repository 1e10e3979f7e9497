"""Flatten nested mappings to dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with its value, in order. Lists and empty mappings are values.

    Args:
        tree: Nested mappings.
        prefix: Text before every key, for example "model.".
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
