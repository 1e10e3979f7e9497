"""The pretraining run that follows a preparation (`--then`): composed and checked before, started after."""

import os
from dataclasses import replace
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import launch
from nano3.cli.app import to_typed_config
from nano3.cli.override_errors import EXPECTED_ERRORS, explain_error, override_problems
from nano3.config import DataPrepConfig
from nano3.pretrain import check, folder, make_job, resolve_paths
from nano3.training.run.record import DataReference
from nano3.utils.errors import UserError

# Keys that the words of the run may not set.
NOT_THE_RUNS = {
    "run.data": "leave it out; the run trains on the data that is prepared here",
    "dry_run": "put it before --then; preparation and run are then both shown, and nothing is done",
}


def compose_next(config: DataPrepConfig) -> DictConfig | None:
    """The pretraining run that `then` describes, composed now: a mistake in it is told before any work is done."""
    if not config.then:
        return None
    problems = override_problems("pretrain", config.then, choices=True)
    given = {word.lstrip("+~").partition("=")[0] for word in config.then if "=" in word}
    problems += [f"{key}: {instead}" for key, instead in NOT_THE_RUNS.items() if key in given]
    if not problems:
        where = HydraConfig.get().runtime.choices["cluster"]
        try:
            cfg = compose("pretrain", [f"cluster={where}", f"dry_run={config.dry_run}", *config.then])
            return check_next(cfg, Path(config.output_dir).absolute())
        except EXPECTED_ERRORS as error:
            problems = explain_error(error, "pretrain", config.then).problems
    raise UserError([f"then: {problem}" for problem in problems])


def check_next(cfg: DictConfig, data: Path) -> DictConfig:
    """The next run's configuration on data that is not there yet, and whatever of its preflight needs no data.

    Raises `UserError`.
    """
    # Set rather than resolved: the folder is not there yet.
    cfg.run.data = str(data)
    cfg.recipe.per_split_data_args_path = f"{data}/blend.json"
    config = resolve_paths(to_typed_config(cfg), DataReference(str(data), str(data), ""), folder(cfg.run.output_dir))
    # What lies in the folder now may be other data, about to be replaced.
    check(replace(config, run=replace(config.run, data=os.devnull)))
    return cfg


def next_job(
    cfg: DictConfig | None, overrides: list[str], content: str, reference: str | None = None
) -> launch.Job | None:
    """The job of the next run, on the data of this content and, once registered, artifact `reference`."""
    if cfg is None:
        return None
    data = DataReference(reference or cfg.run.data, cfg.run.data, content)
    return make_job(cfg, folder(cfg.run.output_dir), label="", data=data, overrides=overrides)
