"""Build Megatron's order of samples for a run before it starts, so that no GPU waits for it.

nano3 index +experiment=nano3 run.data=data
nano3 index +experiment=nano3 run.data=data cluster=slurm cluster.mode=detached

Takes the words of nano3.pretrain. On Slurm it is a job of one process without a GPU. A start with the same data, seed,
train.seq_length, train.train_iters and train.global_batch_size then builds nothing. train.sample_order=nano3 needs no
such step.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import launch
from launch import environment
from nano3.artifacts.resolver import resolve_reference, wandb_settings_from
from nano3.cli.app import compose_words, to_explained_config
from nano3.config import PretrainConfig
from nano3.training.checks.value_checks import value_problems
from nano3.training.index_ahead import IndexRequest, make_request
from nano3.training.order.budgets import uses_plan
from nano3.utils.command_line import CommandLine
from nano3.utils.console import say, table
from nano3.utils.errors import UserError
from nano3.utils.files import expand_user, normalize_path
from nano3.utils.provenance import install_command

HELP = "build a run's order of samples before it starts, without its GPUs"
FOLDER = "index_job"  # of the job's own files, in the run folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("words", nargs="+", metavar="WORD", help="words of nano3.pretrain")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    line = CommandLine.parse(args.words)
    if wrong := [f"{word}: expected KEY=VALUE, as for nano3.pretrain" for word in line.other]:
        raise UserError(wrong)
    cfg = compose_words("pretrain", line)
    data = resolve_reference(cfg.run.data, wandb_settings_from(cfg)).folder
    config: PretrainConfig = to_explained_config("pretrain", cfg, line)
    if uses_plan(config):
        say("train.sample_order=nano3: this order is computed, so there is nothing to build.")
        return 0
    if problems := value_problems(config):
        raise UserError(problems)
    run_dir = normalize_path(expand_user(config.run.output_dir))
    return launch.run([make_job(config, make_request(config, data, run_dir), run_dir)], dry_run=config.dry_run)


def make_job(config: PretrainConfig, request: IndexRequest, run_dir: Path) -> launch.Job:
    """Return the job: one process without a GPU. It has a folder of its own, so it does not need the lock of the run.

    Args:
        config: The run's configuration.
        request: What to build.
        run_dir: The run folder.

    Raises:
        UserError: Megatron-Core is not installed there.
    """
    image = config.run.env.container
    cluster = environment.resolve_runtime(config.cluster, image)
    cluster = replace(cluster, nodes=1, ntasks_per_node=1, nproc_per_node=1, gpus_per_node=0)
    missing = environment.missing_packages(cluster, ["megatron.core", "torch", "numpy"])
    if missing and not environment.may_be_added(cluster):
        raise UserError(
            f"nano3 index needs {', '.join(missing)}, not installed in {environment.describe(cluster, image, '')}: "
            f"{install_command('train')}"
        )
    rows = [
        ("samples", f"{request.samples:,} of {request.seq_length:,} tokens, seed {request.seed}"),
        ("data", request.data),
        ("written to", request.cache),
    ]
    table("Order of samples", ["what", "value"], rows)
    return launch.Job(
        name=f"index-{config.run.name}",
        run_dir=run_dir / FOLDER,
        entry="nano3.training.index_ahead:main",
        args=(request.to_text(),),
        cluster=cluster,
        container=image,
        folders=(request.data, str(run_dir)),
    )
