"""`${art:data,path}` in a configuration: an attribute of the artifact that `run.data` names."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nano3.artifacts import store
from nano3.errors import UserError


def locate(reference: str) -> Path:
    """The folder that a data reference means: a folder, or an artifact of the store.

    A folder is anything with a slash or that exists as one. Raises `UserError` when it is neither.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if "/" in reference or reference.startswith((".", "~")):
        raise UserError(f"run.data={reference}: there is no such folder ({folder.absolute()})")
    return Path(store.resolve(reference).path)


def register_resolver() -> None:
    """Teach OmegaConf `${art:KEY,ATTRIBUTE}`: KEY is a key of `run`, ATTRIBUTE path, version or reference."""

    def art(key: str, attribute: str, *, _root_: DictConfig) -> Any:
        reference = OmegaConf.select(_root_, f"run.{key}")
        if reference is None:
            raise UserError(f"${{art:{key},{attribute}}}: there is no run.{key}")
        if attribute == "path":
            return str(locate(reference))
        if attribute in ("version", "reference"):
            return getattr(store.resolve(reference), attribute)
        raise UserError(f"${{art:{key},{attribute}}}: an artifact has path, version and reference")

    OmegaConf.register_new_resolver("art", art, replace=True)
