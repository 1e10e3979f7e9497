"""Recorded configurations are literal: they are resolved when they are written, and never again.

A record may come from another user. An interpolation in it, such as `${oc.env:WANDB_API_KEY}`, would read a secret of
whoever runs the record, and write it into another file.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano3.utils.errors import Failure, list_some

_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # not escaped: an even number of backslashes before it


def literal(value: Any) -> Any:
    """Return a copy without interpolations for OmegaConf: `${` is escaped, and backslashes before it are doubled."""
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def check_literal(config: Any, path: Path) -> None:
    """Raise Failure if a recorded configuration has an interpolation.

    Args:
        config: Nested mappings and lists.
        path: The file of the record.
    """
    if found := list(_interpolations(config, "")):
        raise Failure(
            f"{path}: {list_some(found)} would be resolved (${{…}}), but nano3 records resolved values only: the file "
            "was edited. Write the value itself, or start the run with nano3.pretrain."
        )


def _interpolations(value: Any, key: str) -> Iterator[str]:
    """Yield the dotted keys whose text, or whose name, OmegaConf would resolve."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _interpolations(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _interpolations(inner, f"{key}[{number}]")
    elif isinstance(value, str) and _INTERPOLATION.search(value):
        yield key
