"""What a run is called in the artifact store and in W&B, and which artifact its data is."""

import re
from typing import Any

from nano3.artifacts import store
from nano3.artifacts.names import alias_for
from nano3.config import PretrainConfig


def display_name(config: PretrainConfig, start: dict[str, Any]) -> str:
    """The run's name; a point of a sweep also has the keys and values in which it differs from the others."""
    label = start.get("label") or ""
    return f"{config.run.name} {label}".rstrip()


def model_alias(config: PretrainConfig, start: dict[str, Any]) -> str | None:
    """The alias of the run's checkpoints; each point of a sweep has its own."""
    return alias_for(display_name(config, start))[0]


def data_reference(start: dict[str, Any]) -> str | None:
    """The artifact (name:vN) that a run's data is, also when the run was pointed at the folder or began before the data
    was registered; None when the folder is no artifact, or a later one than the run's.
    """
    data = start["data"]
    if re.search(r":v\d+$", data["reference"]):
        return str(data["reference"])
    found = store.find_by_folder(data["folder"])
    return found.reference if found and found.fingerprint == data["fingerprint"] else None


def find_artifact(reference: str) -> store.Artifact | None:
    """The version that a pinned reference means; None when this store has no such version."""
    name, _, version = reference.rpartition(":v")
    try:
        return store.load(name, int(version)) if "/" not in name else None
    except FileNotFoundError:
        return None
