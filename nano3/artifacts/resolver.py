"""Resolve `${art:data,path}` in a configuration: an attribute of the artifact that `run.data` names."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nano3.artifacts import store, wandb_mirror
from nano3.utils.errors import UserError
from nano3.utils.files import expand_user


@dataclass(frozen=True)
class ResolvedArtifact:
    """The folder that a data reference currently means."""

    folder: Path
    # name:vN of the store, entity/project/name:vN of W&B, or the folder as given.
    reference: str


def resolve_reference(
    reference: str, settings: wandb_mirror.WandbSettings | None = None, key: str = "run.data="
) -> ResolvedArtifact:
    """Return the folder that a data reference means: a folder, an artifact of the store or, with W&B enabled, of W&B.

    Args:
        reference: A path (anything with a slash, or an existing folder) or an artifact's `name:alias`.
        settings: W&B settings; None searches the local store only.
        key: The key that the reference was given with, for error messages.

    Raises:
        UserError: If the reference means neither a folder nor an artifact.
    """
    folder = expand_user(reference)
    if folder.is_dir():
        return ResolvedArtifact(folder.absolute(), reference)
    if "/" in reference or reference.startswith((".", "~")):
        raise UserError(f"{key}{reference}: no such folder ({folder.absolute()})")
    try:
        artifact = store.resolve(reference)
    except UserError as error:
        if settings is None or not settings.on:
            if ":" in reference:
                raise
            raise UserError(f"{key}{reference}: no such folder ({folder.absolute()}), and {error}") from None
        return ResolvedArtifact(*wandb_mirror.find_remote(reference, settings))
    return ResolvedArtifact(Path(artifact.path), artifact.reference)


def wandb_settings_from(cfg: DictConfig) -> wandb_mirror.WandbSettings | None:
    """Return the W&B settings of a composed configuration, or None if it has no `run.wandb`."""
    found = OmegaConf.select(cfg, "run.wandb")
    return None if found is None else wandb_mirror.wandb_settings(found, OmegaConf.select(cfg, "logger"))


def register_resolver() -> None:
    """Register `${art:KEY,ATTRIBUTE}`: KEY is a key of `run`; ATTRIBUTE is path, version or reference."""

    def art(key: str, attribute: str, *, _root_: DictConfig) -> Any:
        reference = OmegaConf.select(_root_, f"run.{key}")
        if reference is None:
            raise UserError(f"${{art:{key},{attribute}}}: no key run.{key}")
        if attribute not in ("path", "version", "reference"):
            raise UserError(
                f"${{art:{key},{attribute}}}: the attributes of an artifact are path, version and reference"
            )
        found = resolve_reference(reference, wandb_settings_from(_root_))
        if attribute == "path":
            return str(found.folder)
        version = re.search(r":v(\d+)$", found.reference)
        if not version:
            raise UserError(f"${{art:{key},{attribute}}}: run.{key}={reference} is a folder, not an artifact")
        return found.reference if attribute == "reference" else int(version[1])

    OmegaConf.register_new_resolver("art", art, replace=True)
