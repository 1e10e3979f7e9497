"""Turn raw text into Megatron .bin/.idx, here or on a cluster.

    python -m nano3.data_prep data_blend=sample                               # the bundled corpus
    python -m nano3.data_prep blend_path=my.json tokenizer_model=path/to/tokenizer
    python -m nano3.data_prep data_blend=math sample=100000                   # 100,000 documents of each dataset
    python -m nano3.data_prep data_blend=nemotron cluster=slurm cluster.tasks=64

A rerun goes on where a stopped one was; a complete one is left alone.
"""

from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from nano3.artifacts import store
from nano3.cli import run_app, typed
from nano3.config import DataPrepConfig, PrepOptions, SourceConfig
from nano3.config.blend import parse_datasets, read_blend_file
from nano3.console import say
from nano3.data.manifest import Manifest


def main() -> None:
    """Entry point."""
    run_app("data_prep", data_prep)


def data_prep(cfg: DictConfig) -> int:
    """Read the blend, prepare it, register the result; returns the exit code."""
    config: DataPrepConfig = typed(cfg)
    name, sources = read_blend(config)
    options = PrepOptions(**{f.name: getattr(config, f.name) for f in fields(PrepOptions)})
    if config.cluster.kind == "slurm":
        return on_slurm(config, name, sources, options)
    manifest = here(config, name, sources, options)
    if manifest is not None:
        register(config.artifact, Path(config.output_dir), manifest)
    return 0


def read_blend(config: DataPrepConfig) -> tuple[str, list[SourceConfig]]:
    """Name and datasets of the blend: blend_path when given, else the group data_blend."""
    if config.blend_path:
        path = Path(config.blend_path)
        return path.stem, read_blend_file(path)
    return config.data_blend.name, parse_datasets(config.data_blend.datasets, f"data_blend={config.data_blend.name}")


def here(config: DataPrepConfig, name: str, sources: list[SourceConfig], options: PrepOptions) -> Manifest | None:
    """Prepare on this machine; a dry run shows the plan and gives None."""
    from nano3.data.run import prepare, show_plan

    if config.dry_run:
        show_plan(sources, options, name)
        return None
    return prepare(sources, options, name)


def register(artifact: str, folder: Path, manifest: Manifest) -> None:
    """Record the data in the artifact store under its blend's name."""
    made = store.register(
        artifact,
        folder,
        manifest.plan_hash,
        metadata={"blend": manifest.blend, "tokens": sum(s["tokens"] for s in manifest.splits.values())},
        alias=manifest.blend,
    )
    say(f"{made.reference} (also {artifact}:{manifest.blend}) is {made.path}")


if __name__ == "__main__":
    main()
