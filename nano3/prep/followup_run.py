"""Compose, check, and submit the pretraining run that follows a preparation (`--then`).

Imports `nano3.pretrain` and with it `nano3.training`; import this module only if `then` is set.
"""

import os
from dataclasses import replace
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import launch
from nano3.cli.app import to_typed_config
from nano3.cli.override_errors import EXPECTED_ERRORS, explain_error, override_problems
from nano3.config import DataPrepConfig, SourceConfig
from nano3.pretrain import absolute_path, make_job, resolve_paths, run_preflight
from nano3.training.order.budgets import megatron_order_problems, name_problems
from nano3.training.order.plan import NANO3
from nano3.training.run.record import DataReference
from nano3.utils.command_line import CommandLine
from nano3.utils.errors import UserError

# Keys that may not follow --then, and what to do instead.
RESERVED_KEYS = {
    "run.data": "leave it out; the run trains on the data that is prepared here",
    "dry_run": "put it before --then; preparation and run are then both shown, and nothing is done",
}


def compose_followup(config: DataPrepConfig) -> DictConfig:
    """Compose and check the pretraining run that `config.then` describes.

    Args:
        config: The preparation; `then` is not empty.

    Returns:
        The configuration of the run.

    Raises:
        UserError: With all problems of the overrides and of the run's configuration.
    """
    line = CommandLine.parse(config.then)
    problems = override_problems("pretrain", line, check_members=True)
    problems += [f"{key}: {instead}" for key, instead in RESERVED_KEYS.items() if key in line.keys]
    if not problems:
        cluster = HydraConfig.get().runtime.choices["cluster"]
        try:
            cfg = compose("pretrain", [f"cluster={cluster}", f"dry_run={config.dry_run}", *config.then])
            return check_followup(cfg, Path(config.output_dir).absolute())
        except EXPECTED_ERRORS as error:
            problems = explain_error(error, "pretrain", line).problems
    raise UserError([f"then: {problem}" for problem in problems])


def check_followup(cfg: DictConfig, data: Path, vocab_size: int | None = None) -> DictConfig:
    """Point a run at data that does not exist yet and run all preflight checks that need no data.

    Args:
        cfg: Composed configuration of the run; changed in place.
        data: Absolute path of the output folder of the preparation.
        vocab_size: Ids of the preparation's tokenizer, if known.

    Returns:
        `cfg`.

    Raises:
        UserError: With all problems.
    """
    # Set instead of resolved, as the folder may not exist yet.
    cfg.run.data = str(data)
    cfg.recipe.per_split_data_args_path = f"{data}/blend.json"
    config = resolve_paths(
        to_typed_config(cfg), DataReference(str(data), str(data), ""), absolute_path(cfg.run.output_dir)
    )
    # The folder may hold other data that this preparation replaces, so check without data.
    run_preflight(replace(config, run=replace(config.run, data=os.devnull)), vocab_size)
    return cfg


def check_vocabulary(cfg: DictConfig, data: Path, vocab_size: int) -> None:
    """Repeat the checks of `check_followup` for the preparation's tokenizer.

    Args:
        cfg: Result of `compose_followup`.
        data: Absolute path of the output folder of the preparation.
        vocab_size: Ids of the tokenizer.

    Raises:
        UserError: With all problems.
    """
    try:
        check_followup(cfg, data, vocab_size)
    except UserError as error:
        raise UserError([f"then: {problem}" for problem in error.problems]) from None


def budget_problems(cfg: DictConfig, blend: str, sources: list[SourceConfig]) -> list[str]:
    """Return why the run cannot read what the blend asks for.

    Args:
        cfg: Result of `compose_followup`.
        blend: Name of the blend.
        sources: Its datasets.
    """
    if cfg.train.sample_order == NANO3:
        names = [source.name for source in sources]
        return [f"then: {problem}" for problem in name_problems(cfg.train.mixture, names)] if names else []
    budgets = {source.name: source.budget for source in sources if source.budget}
    return [f"then: {problem}" for problem in megatron_order_problems(budgets, f"the blend {blend}")]


def make_followup_job(
    cfg: DictConfig, overrides: list[str], content: str, reference: str | None, vocab_size: int | None
) -> launch.Job:
    """Return the job of the follow-up run.

    Args:
        cfg: Result of `compose_followup`.
        overrides: The words after --then.
        content: Content fingerprint of the data.
        reference: Artifact reference of the data; None while it is not registered.
        vocab_size: Ids of the preparation's tokenizer while the data is not prepared, else None.
    """
    data = DataReference(reference or cfg.run.data, cfg.run.data, content)
    return make_job(
        cfg, absolute_path(cfg.run.output_dir), label="", data=data, overrides=overrides, vocab_size=vocab_size
    )
