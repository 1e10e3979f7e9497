"""Weights & Biases as a mirror of the local store: the same artifacts under the same names, by reference, and lineage.

Nothing is uploaded but names, paths and sizes; of small JSON files also a checksum, so that new weights make a new
version there as they do here. What goes wrong in W&B is told and never ends a run. `wandb` is imported only when asked.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from nano3.artifacts.store import Artifact
from nano3.utils.console import warn
from nano3.utils.errors import UserError, did_you_mean

MODES = ("online", "offline", "disabled")
CHECKED = ("manifest.json", "blend.json", "checkpoint.json")
MISSING = "wandb is not installed: `pip install 'nano3[wandb]'`, or {key}=disabled."


@dataclass(frozen=True)
class WandbSettings:
    """Where artifacts are mirrored; the same three keys in both applications."""

    mode: str = "disabled"
    project: str = "nano3"
    entity: str | None = None

    @property
    def on(self) -> bool:
        """Whether anything is mirrored."""
        return self.mode != "disabled"


class WandbKeys(Protocol):
    """The keys of `run.wandb`."""

    mode: str
    project: str
    entity: str | None


class LoggerKeys(Protocol):
    """The keys of `logger` that override those of `run.wandb`."""

    wandb_project: str | None
    wandb_entity: str | None


def wandb_settings(wandb: WandbKeys, logger: LoggerKeys | None) -> WandbSettings:
    """Return the W&B settings of a configuration. A value in `logger` overrides the one in `run.wandb`.

    Args:
        wandb: The section `run.wandb`.
        logger: The section `logger`; None in a configuration without one.
    """
    project, entity = (logger.wandb_project, logger.wandb_entity) if logger is not None else (None, None)
    return WandbSettings(wandb.mode, project or wandb.project, entity or wandb.entity)


def settings_problems(settings: WandbSettings, key: str) -> list[str]:
    """What can be known to be wrong before anything is started. `key` is the dotted key of the mode."""
    if settings.mode not in MODES:
        return [f"{key}={settings.mode}:{did_you_mean(settings.mode, MODES)}"]
    if settings.on and importlib.util.find_spec("wandb") is None:
        return [f"{key}={settings.mode} but {MISSING.format(key=key)}"]
    return []


def start_run(settings: WandbSettings, *, folder: Path, key: str, **more: Any) -> Any:
    """A W&B run that keeps its files in `folder`/wandb; None, with a warning, when there cannot be one.

    Raises `UserError` when wandb is not installed.
    """
    wandb = _load(settings, key)
    with log_failures("starting a run (not logged in? `wandb login`, or mode=offline)"):
        return wandb.init(
            mode=settings.mode,
            project=settings.project,
            entity=settings.entity,
            dir=str(folder),
            resume="allow",
            **more,
        )
    return None


@contextlib.contextmanager
def log_failures(what: str) -> Iterator[None]:
    """Turn whatever goes wrong in W&B into a warning: it must not end a training of weeks."""
    try:
        yield
    except Exception as error:
        warn(f"W&B: {what} failed; going on without: {str(error) or type(error).__name__}")


def log_artifact(run: Any, artifact: Artifact, alias: str | None) -> None:
    """Record a local artifact as an output of a W&B run, by reference and with its alias."""
    with log_failures(f"recording {artifact.reference}"):
        run.log_artifact(_mirror(artifact), aliases=_aliases(alias))


def use_artifact(run: Any, artifact: Artifact) -> None:
    """Record a local artifact as an input of a W&B run."""
    with log_failures(f"recording that this run uses {artifact.reference}"):
        mirror = _mirror(artifact)
        if run.settings.mode == "offline":
            # run.use_artifact refuses to work offline; this is what it does online, and what `wandb sync` sends later.
            run._log_artifact(mirror, is_user_created=True, use_after_commit=True)
        else:
            run.use_artifact(mirror)


def use_reference(run: Any, reference: str) -> None:
    """Record an artifact that W&B alone knows as an input of a W&B run."""
    with log_failures(f"recording that this run uses {reference}"):
        run.use_artifact(reference)


def active_run() -> Any:
    """The W&B run of this process, or None; imports nothing."""
    return getattr(sys.modules.get("wandb"), "run", None)


@cache
def find_remote(reference: str, settings: WandbSettings) -> tuple[Path, str]:
    """Folder and full reference (entity/project/name:vN) of an artifact in W&B. Raises `UserError`."""
    where = f"{reference} is not in the local store, and "
    if settings.mode == "offline":
        raise UserError(f"{where}run.wandb.mode=offline does not ask W&B; set run.wandb.mode=online to do so.")
    wandb = _load(settings, "run.wandb.mode", where)
    prefix = "/".join(filter(None, [settings.entity, settings.project]))
    try:
        artifact = wandb.Api().artifact(f"{prefix}/{reference if ':' in reference else reference + ':latest'}")
    except Exception as error:
        login = isinstance(error, wandb.errors.UsageError | wandb.errors.AuthenticationError)
        hint = "log in with `wandb login`" if login else "see run.wandb.project and run.wandb.entity"
        raise UserError(
            f"{where}W&B did not give it from {prefix}: {str(error).strip() or type(error).__name__}\n  {hint}"
        ) from None
    folder = artifact.metadata.get("path")
    if not folder or not Path(folder).exists():
        raise UserError(
            f"{artifact.qualified_name} is {folder or 'without a path'} in W&B, which is not there on this machine. "
            f"Artifacts are references: mount that file system, or point at a copy: run.data=DIR"
        )
    return Path(folder), str(artifact.qualified_name)


def _load(settings: WandbSettings, key: str, before: str = "") -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError(f"{before}{key}={settings.mode} but {MISSING.format(key=key)}") from error
    return wandb


def _mirror(artifact: Artifact) -> Any:
    import wandb

    kind = "model" if artifact.name.startswith("Model") else "dataset"
    known = {"path": artifact.path, "fingerprint": artifact.fingerprint, "local": artifact.reference}
    mirror = wandb.Artifact(artifact.name, kind, metadata={**artifact.metadata, **known, "inputs": artifact.inputs})
    for place in sorted(Path(artifact.path).iterdir()):
        if not place.name.startswith("."):  # .prep: the lock and the plan of a preparation
            mirror.add_reference(place.as_uri(), name=place.name, checksum=place.name in CHECKED)
    return mirror


def _aliases(alias: str | None) -> list[str]:
    return ["latest", alias] if alias else ["latest"]
