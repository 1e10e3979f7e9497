"""Mirror the local store in Weights & Biases: the same artifacts under the same names, by reference, with lineage.

Only names, paths and sizes are uploaded, and checksums of small JSON files, so that new weights make a new version in
W&B as well. A failure of W&B is logged and never ends a run. `wandb` is imported only if W&B is enabled.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from nano3.artifacts.store import Artifact
from nano3.utils.console import warn
from nano3.utils.errors import UserError, did_you_mean
from nano3.utils.provenance import install_command

MODES = ("online", "offline", "disabled")
DEFAULT_URL = "https://api.wandb.ai"
PROBE_S = 5.0  # until a server has to answer
CHECKED = ("manifest.json", "blend.json", "checkpoint.json")
MISSING = f"wandb is not installed: `{install_command('wandb')}`, or {{key}}=disabled."


@dataclass(frozen=True)
class WandbSettings:
    """Where artifacts are mirrored; both applications have these three keys."""

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
    """Return everything that is wrong with the settings; `key` is the dotted key of the mode."""
    if settings.mode not in MODES:
        return [f"{key}={settings.mode}:{did_you_mean(settings.mode, MODES)}"]
    if settings.on and importlib.util.find_spec("wandb") is None:
        return [f"{key}={settings.mode} but {MISSING.format(key=key)}"]
    return []


@contextlib.contextmanager
def log_failures(what: str, expected: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Log any failure of W&B as a warning: it must not end a training of weeks.

    Args:
        what: What fails.
        expected: Returns whether a failure needs no warning.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # W&B exits with the status of its own process
        if not expected():
            warn(f"W&B: {what} failed; continuing without it: {str(error) or type(error).__name__}")


def log_artifact(run: Any, artifact: Artifact, alias: str | None) -> None:
    """Record a local artifact as an output of a W&B run, by reference and with its alias."""
    run.log_artifact(_mirror(artifact), aliases=_aliases(alias))


def use_artifact(run: Any, artifact: Artifact) -> None:
    """Record a local artifact as an input of a W&B run."""
    mirror = _mirror(artifact)
    if run.settings.mode == "offline":
        # run.use_artifact refuses to work offline. This is what it does online, and what `wandb sync` sends later.
        run._log_artifact(mirror, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(mirror)


@cache
def find_remote(reference: str, settings: WandbSettings) -> tuple[Path, str]:
    """Return folder and full reference (entity/project/name:vN) of an artifact in W&B.

    Raises:
        UserError: If W&B has no such artifact, or its folder does not exist on this machine.
    """
    where = f"{reference} is not in the local store, and "
    if settings.mode == "offline":
        raise UserError(f"{where}run.wandb.mode=offline cannot look it up in W&B. Set run.wandb.mode=online.")
    wandb = load_wandb(settings, "run.wandb.mode", where)
    prefix = "/".join(filter(None, [settings.entity, settings.project]))
    if problem := connection_problem(server_url(wandb)):
        raise UserError(f"{where}W&B is out of reach: {problem}. Name the folder: run.data=DIR")
    try:
        artifact = wandb.Api().artifact(f"{prefix}/{reference if ':' in reference else reference + ':latest'}")
    except Exception as error:
        login = isinstance(error, wandb.errors.UsageError | wandb.errors.AuthenticationError)
        hint = "log in with `wandb login`" if login else "see run.wandb.project and run.wandb.entity"
        raise UserError(
            f"{where}W&B did not return it from {prefix}: {str(error).strip() or type(error).__name__}\n  {hint}"
        ) from None
    folder = artifact.metadata.get("path")
    if not folder or not Path(folder).exists():
        raise UserError(
            f"{artifact.qualified_name} is {folder or 'without a path'} in W&B, which does not exist on this machine. "
            f"Artifacts are references: mount that file system, or use a copy: run.data=DIR"
        )
    return Path(folder), str(artifact.qualified_name)


def server_url(wandb: Any) -> str:
    """Return the address of the W&B server: $WANDB_BASE_URL, that of `wandb login --host`, or W&B's own."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    with contextlib.suppress(Exception):  # settings files of the user, which wandb itself complains about
        return str(wandb.setup().settings.base_url)
    return DEFAULT_URL


def connection_problem(url: str, seconds: float = PROBE_S) -> str | None:
    """Return why a server does not answer, or None if it does.

    Args:
        url: The address of the server.
        seconds: How long it may take to connect, and then to answer.
    """
    import http.client  # slow to import, like those below; only a run with W&B needs them
    import ssl
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"{url} answers with HTTP status {error.code}"
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # it answers; wandb has its own certificates
            return None
        return f"{url} cannot be reached ({error.reason})"
    except http.client.HTTPException as error:
        return f"{url} answers, but not as a web server does ({type(error).__name__})"
    except (OSError, ValueError) as error:
        return f"{url} cannot be reached within {seconds:.0f} s ({error})"


def load_wandb(settings: WandbSettings, key: str, before: str = "") -> Any:
    """Return the module wandb.

    Args:
        settings: The W&B settings.
        key: The dotted key of the mode, for the error message.
        before: The beginning of the error message.

    Raises:
        UserError: wandb is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # Python's end would wait 10 s for its last report
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
    for path in sorted(Path(artifact.path).iterdir()):
        if not path.name.startswith("."):  # .prep holds the lock and the plan of a preparation
            mirror.add_reference(path.as_uri(), name=path.name, checksum=path.name in CHECKED)
    return mirror


def _aliases(alias: str | None) -> list[str]:
    return ["latest", alias] if alias else ["latest"]
