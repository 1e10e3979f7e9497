"""Small JSON notes beside a run's checkpoints and results, read so that a damaged one is told by name."""

from pathlib import Path
from typing import Any

from nano3.utils.errors import Failure
from nano3.utils.files import read_json


def read_note(path: Path, key: str, then: str) -> dict[str, Any]:
    """A JSON object that has `key`. `then` says what comes of removing the file.

    Raises `Failure` naming the file when it is damaged.
    """
    try:
        note = read_json(path)
        if not isinstance(note, dict) or key not in note:
            raise ValueError(f"it has no {key!r}")
    except (ValueError, OSError) as error:
        raise Failure(f"{path}: damaged ({error}). Remove it: {then}.") from error
    return note
