"""Turn raw text into Megatron .bin/.idx, here or on a cluster.

    python -m nano3.data_prep data_blend=sample                               # the bundled corpus
    python -m nano3.data_prep blend_path=my.json tokenizer_model=path/to/tokenizer
    python -m nano3.data_prep data_blend=math sample=100000                   # 100,000 documents of each dataset
    python -m nano3.data_prep data_blend=nemotron cluster=slurm cluster.tasks=64
    python -m nano3.data_prep data_blend=math cluster=slurm --then +experiment=tiny     # prepare, then train

A rerun goes on where a stopped one was; a complete one is left alone.
"""

import sys
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

import launch
from nano3.cli import run_app, typed, wrong_overrides
from nano3.config import DataPrepConfig, PrepOptions, SourceConfig
from nano3.config.blend import parse_datasets, read_blend_file
from nano3.data import folder
from nano3.data.planner import read_request
from nano3.data.run import complete, plan_request, prepare, show_plan
from nano3.errors import UserError
from nano3.prep_tasks import register
from nano3.pretrain import make_job
from nano3.training.record import Data


def main() -> None:
    """Entry point."""
    sys.argv = fold_then(sys.argv)
    run_app("data_prep", data_prep)


def fold_then(argv: list[str]) -> list[str]:
    """Turn `... --then WORD WORD` into Hydra's `then=['WORD','WORD']`, so that nobody has to quote twice."""
    if "--then" not in argv:
        return argv
    at = argv.index("--then")
    words = [word.replace("\\", "\\\\").replace("'", "\\'") for word in argv[at + 1 :]]
    return [*argv[:at], "then=[" + ",".join(f"'{word}'" for word in words) + "]"]


def data_prep(cfg: DictConfig) -> int:
    """Read the blend, then show, submit or do the work; returns the exit code."""
    config: DataPrepConfig = typed(cfg)
    name, sources = read_blend(config)
    options = PrepOptions(**{f.name: getattr(config, f.name) for f in fields(PrepOptions)})
    following = compose_next(config)
    if config.dry_run:
        show_plan(sources, options, name)
    if config.cluster.kind == "slurm":
        return on_slurm(config, name, sources, options, following)
    return 0 if config.dry_run else here(config, name, sources, options, following)


def read_blend(config: DataPrepConfig) -> tuple[str, list[SourceConfig]]:
    """Name and datasets of the blend: blend_path when given, else the group data_blend."""
    if config.blend_path:
        path = Path(config.blend_path)
        return path.stem, read_blend_file(path)
    return config.data_blend.name, parse_datasets(config.data_blend.datasets, f"data_blend={config.data_blend.name}")


def here(
    config: DataPrepConfig, name: str, sources: list[SourceConfig], options: PrepOptions, following: DictConfig | None
) -> int:
    """Prepare on this machine, register, and go on with the run that follows."""
    manifest = prepare(sources, options, name)
    register(config.artifact, Path(options.output_dir).absolute(), manifest)
    job = next_job(config, following, manifest.plan_hash)
    return launch.run([job]) if job else 0


def on_slurm(
    config: DataPrepConfig, name: str, sources: list[SourceConfig], options: PrepOptions, following: DictConfig | None
) -> int:
    """Spread the plan over a job array; a finalizer joins and registers; the run that follows waits for it."""
    request = read_request(sources, options, name)
    output = Path(options.output_dir).absolute()
    then = next_job(config, following, request.hash)
    if not options.force and not config.dry_run and (manifest := complete(request, output)):
        register(config.artifact, output, manifest)
        return launch.run([then]) if then else 0
    planned = folder.build_dir(output, request.hash) / "plan.json"
    plan = planned if config.dry_run else plan_request(request)
    return launch.run_array(
        f"prep-{name}",
        Path(config.job_dir, f"prep-{name}"),
        entry="nano3.prep_tasks:part",
        args=(str(plan.absolute()), str(output), config.artifact),
        tasks=config.cluster.tasks,
        finalize="nano3.prep_tasks:finish",
        cluster=config.cluster,
        then=then,
        dry_run=config.dry_run,
    )


def compose_next(config: DataPrepConfig) -> DictConfig | None:
    """The pretraining run that `then` describes, composed now: a mistake in it is told before any work is done."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    if not config.then:
        return None
    problems = wrong_overrides("pretrain", config.then, choices=True)
    if any(word.startswith("run.data=") for word in config.then):
        problems.append("run.data: leave it out; the run trains on the data that is prepared here")
    if problems:
        raise UserError([f"then: {problem}" for problem in problems])
    where = HydraConfig.get().runtime.choices["cluster"]
    cfg = compose("pretrain", [f"cluster={where}", f"dry_run={config.dry_run}", *config.then])
    # Set rather than resolved: the folder is not there yet.
    cfg.run.data = str(Path(config.output_dir).absolute())
    cfg.recipe.per_split_data_args_path = f"{cfg.run.data}/blend.json"
    return cfg


def next_job(config: DataPrepConfig, cfg: DictConfig | None, plan_hash: str) -> launch.Job | None:
    """The job of a composed next run, on the data whose plan is `plan_hash`."""
    if cfg is None:
        return None
    data = Data(cfg.run.data, cfg.run.data, plan_hash)
    return make_job(cfg, Path(cfg.run.output_dir).absolute(), label="", data=data, overrides=config.then)


if __name__ == "__main__":
    main()
