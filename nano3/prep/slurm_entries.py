"""How prepared data is registered, and what the jobs of a preparation on Slurm call (`on_slurm` of nano3.data_prep)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nano3.artifacts import store, wandb_mirror
from nano3.artifacts.names import MODEL
from nano3.data.build.run import finalize, run_task
from nano3.data.dataset.manifest import Manifest
from nano3.utils.console import say, warn
from nano3.utils.files import read_json, write_json


@dataclass(frozen=True)
class Registration:
    """How prepared data is registered; known, and checked, before any work is done."""

    artifact: str
    alias: str | None
    mirrored: wandb_mirror.WandbSettings = field(default_factory=wandb_mirror.WandbSettings)
    # Why there is no alias.
    note: str | None = None
    # Holds the files of the W&B run.
    folder: str = "."

    def problems(self, write: bool) -> list[str]:
        """Everything that would be refused at the end; `write` also tries whether the store can be written."""
        found = store.registration_problems(self.artifact, self.alias, write) + wandb_mirror.settings_problems(
            self.mirrored, "wandb.mode"
        )
        if self.artifact == MODEL:
            found.append(f"artifact={MODEL}: checkpoints are registered under this name; data needs another one")
        return found

    def to_text(self) -> str:
        """For the command line of a job."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> "Registration":
        """What `to_text` gave."""
        values = json.loads(text)
        return Registration(**{**values, "mirrored": wandb_mirror.WandbSettings(**values["mirrored"])})


def part(plan: str, output_dir: str, registration: str, index: int, count: int) -> int:
    """Array task `index` of `count`: its share of the plan."""
    run_task(Path(plan), index, count)
    return 0


def finish(plan: str, output_dir: str, registration: str) -> int:
    """The finalizer: join, publish, register."""
    register(Registration.from_text(registration), Path(output_dir), finalize(Path(plan)))
    return 0


def register(how: Registration, folder: Path, manifest: Manifest) -> store.Artifact:
    """Record prepared data in the artifact store and, when it is on, in W&B."""
    weights = {d["name"]: d["weight"] for d in manifest.datasets}
    made = store.register(
        how.artifact,
        folder,
        manifest.content,
        metadata={
            "blend": manifest.blend,
            "tokens": sum(s["tokens"] for s in manifest.splits.values()),
            "plan_hash": manifest.plan_hash,
            "weights": weights,
        },
        alias=how.alias,
    )
    also = f" (also {how.artifact}:{how.alias})" if how.alias else ""
    say(f"{made.reference}{also} is {made.path}")
    if how.note:
        warn(how.note)
    if how.mirrored.on:
        mirror(how, made)
    return made


def mirror(how: Registration, made: store.Artifact) -> None:
    """Record the artifact in W&B in a run of its own, unless that has been done: a rerun leaves no run behind."""
    done = store.home() / made.name / f"v{made.version}.wandb"
    now = {**asdict(how.mirrored), "alias": how.alias}
    if done.is_file() and read_json(done) == now:
        return
    name = how.alias or made.reference
    folder = Path(how.folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb_mirror.start_run(
        how.mirrored, folder=folder, key="wandb.mode", name=f"data {name}", job_type="data_prep", config=made.metadata
    )
    if run is None:
        return
    wandb_mirror.log_artifact(run, made, how.alias)
    with wandb_mirror.log_failures("ending the run"):
        run.finish()
        write_json(done, now)
