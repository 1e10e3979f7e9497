"""A run's name in the artifact store and in W&B, and the artifact that its data is."""

import re
from typing import Any

from nano3.artifacts import store
from nano3.artifacts.names import alias_for
from nano3.config import PretrainConfig


def display_name(config: PretrainConfig, start: dict[str, Any]) -> str:
    """Return the run's name, followed by the label of a sweep point."""
    label = start.get("label") or ""
    return f"{config.run.name} {label}".rstrip()


def model_alias(config: PretrainConfig, start: dict[str, Any]) -> str | None:
    """Return the alias of the run's checkpoints; each point of a sweep has its own."""
    return alias_for(display_name(config, start))[0]


def data_reference(start: dict[str, Any]) -> str | None:
    """Return the artifact (name:vN) of a run's data, or None if the folder is not registered with the same content.

    It is also found if the configuration names a folder, or if the data was registered after the run started.
    """
    data = start["data"]
    if re.search(r":v\d+$", data["reference"]):
        return str(data["reference"])
    found = store.find_by_folder(data["folder"])
    return found.reference if found and found.fingerprint == data["fingerprint"] else None


def find_artifact(reference: str) -> store.Artifact | None:
    """Return the version that name:vN refers to, or None if this store does not have it."""
    name, _, version = reference.rpartition(":v")
    try:
        return store.load(name, int(version)) if "/" not in name else None
    except FileNotFoundError:
        return None
