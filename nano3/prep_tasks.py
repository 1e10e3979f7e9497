"""What the jobs of a data preparation on Slurm call; see `on_slurm` in nano3/data_prep.py."""

from pathlib import Path

from nano3.artifacts import store
from nano3.console import say
from nano3.data.manifest import Manifest
from nano3.data.run import finalize, run_part


def part(plan: str, output_dir: str, artifact: str, index: int, count: int) -> int:
    """Array task `index` of `count`: its share of the plan."""
    run_part(Path(plan), index, count)
    return 0


def finish(plan: str, output_dir: str, artifact: str) -> int:
    """The finalizer: join, publish, register."""
    register(artifact, Path(output_dir), finalize(Path(plan)))
    return 0


def register(artifact: str, folder: Path, manifest: Manifest) -> None:
    """Record prepared data in the artifact store, under its blend's name."""
    made = store.register(
        artifact,
        folder,
        manifest.plan_hash,
        metadata={"blend": manifest.blend, "tokens": sum(s["tokens"] for s in manifest.splits.values())},
        alias=manifest.blend,
    )
    say(f"{made.reference} (also {artifact}:{manifest.blend}) is {made.path}")
