"""Register prepared data in the artifact store and, optionally, in W&B."""

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nano3.artifacts import store, wandb_mirror
from nano3.artifacts.names import MODEL
from nano3.artifacts.wandb_run import WandbRun
from nano3.data.dataset.manifest import Manifest
from nano3.utils.console import say, warn
from nano3.utils.files import read_json, write_json


@dataclass(frozen=True)
class Registration:
    """How to register prepared data. Made and checked before any work is done.

    Attributes:
        artifact: Name of the artifact.
        alias: Alias of the new version, or None for none.
        mirrored: W&B settings.
        alias_warning: Why there is no alias, or None.
        folder: Folder for the files of the W&B run.
    """

    artifact: str
    alias: str | None
    mirrored: wandb_mirror.WandbSettings = field(default_factory=wandb_mirror.WandbSettings)
    alias_warning: str | None = None
    folder: str = "."

    def problems(self, write: bool) -> list[str]:
        """Return everything that would make `register` fail.

        Args:
            write: Also check that the artifact store can be written.
        """
        found = store.registration_problems(self.artifact, self.alias, write) + wandb_mirror.settings_problems(
            self.mirrored, "wandb.mode"
        )
        if self.artifact == MODEL:
            found.append(f"artifact={MODEL}: checkpoints are registered under this name; data needs another one")
        return found

    def to_text(self) -> str:
        """Return the registration as one word for the command line of a job."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> "Registration":
        """Parse the result of `to_text`."""
        values = json.loads(text)
        return Registration(**{**values, "mirrored": wandb_mirror.WandbSettings(**values["mirrored"])})


def register(registration: Registration, folder: Path, manifest: Manifest) -> store.Artifact:
    """Register prepared data in the artifact store and, if W&B is on, there too.

    Args:
        registration: Name, alias, and W&B settings.
        folder: Absolute path of the output folder.
        manifest: Manifest of the data in it.

    Returns:
        The registered artifact version; an existing one if its content is the same.
    """
    before = _named_before(registration)
    artifact = store.register(
        registration.artifact,
        folder,
        manifest.content,
        metadata={
            "blend": manifest.blend,
            "tokens": sum(s.tokens for s in manifest.splits.values()),
            "plan_hash": manifest.plan_hash,
            "weights": manifest.weights,
            **({"budgets": manifest.budgets} if manifest.budgets else {}),
        },
        alias=registration.alias,
    )
    also = f" (also {registration.artifact}:{registration.alias})" if registration.alias else ""
    say(f"{artifact.reference}{also} is {artifact.path}")
    if before and before.version != artifact.version:
        say(
            f"{registration.artifact}:{registration.alias} was v{before.version}, {before.path}; alias=NAME registers "
            "under another name"
        )
    if registration.alias_warning:
        warn(registration.alias_warning)
    if registration.mirrored.on:
        mirror(registration, artifact)
    return artifact


def _named_before(registration: Registration) -> store.Artifact | None:
    """Return the version that has the alias so far, if there is one."""
    version = store.aliases(registration.artifact).get(registration.alias or "")
    return store.load(registration.artifact, version) if version else None


def mirror(registration: Registration, artifact: store.Artifact) -> None:
    """Log the artifact to W&B in a run of its own, unless an earlier preparation already did.

    Args:
        registration: Alias, W&B settings, and the folder for the W&B run.
        artifact: The registered version.
    """
    receipt = store.home() / artifact.name / f"v{artifact.version}.wandb"
    logged = {**asdict(registration.mirrored), "alias": registration.alias}
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged receipt: log it again
        if read_json(receipt) == logged:
            return
    name = registration.alias or artifact.reference
    folder = Path(registration.folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = WandbRun(
        registration.mirrored,
        folder=folder,
        key="wandb.mode",
        name=f"data {name}",
        job_type="data_prep",
        config=artifact.metadata,
    )
    run.log_artifact(artifact, registration.alias)
    if run.finish():
        write_json(receipt, logged)
