"""Run tasks of lm-evaluation-harness (extra `eval`) on the exports of a run, here or as a Slurm job of its own.

nano3 eval tiny --tasks my_tasks                                 # all tasks of a folder, on the newest export
nano3 eval tiny cluster=slurm cluster.gpus_per_node=1 --tasks my_tasks --all
nano3 eval tiny-hf --tasks arc_easy,hellaswag                    # a folder written by nano3 export; tasks of lm-eval

A folder of tasks holds lm-eval's YAML files; data files that they name are relative to it, and no network is used. The
results are added to evals.jsonl of the run and shown by nano3 report.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import launch
from launch import environment
from nano3.cli.config_file_errors import member_values
from nano3.config.cluster import ClusterConfig
from nano3.tools._arguments import RUNS, at_least, find_run
from nano3.training.evaluation import EvalRequest, choose_tasks, find_exports, make_request, results_missing
from nano3.utils.command_line import CommandLine
from nano3.utils.console import say
from nano3.utils.errors import UserError
from nano3.utils.provenance import install_command

HELP = "run tasks of lm-evaluation-harness on a run's exports"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("run", help=f"run folder, its name under {RUNS}, or the folder of one export")
    parser.add_argument(
        "cluster", nargs="*", metavar="cluster…=VALUE", help="where to run, as for nano3.pretrain (default: here)"
    )
    parser.add_argument(
        "--tasks", action="append", required=True, metavar="FOLDER|NAMES", type=os.path.expanduser,
        help="a folder of tasks, names of tasks (a,b), or both in two options for some tasks of a folder",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--iteration", type=at_least(1), help="iteration of the export (default: the newest)")
    which.add_argument("--all", action="store_true", help="all exports of the run that lack results of these tasks")
    parser.add_argument("--limit", type=at_least(1), help="samples per task (default: all)")
    parser.add_argument("--fewshot", type=at_least(0), help="examples before each sample (default: those of the task)")
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="samples per forward pass (default: 8)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    cluster = cluster_config(args.cluster)
    tasks, task_folder = choose_tasks(args.tasks)
    options = ["--batch_size", str(args.batch_size)]
    for name, value in (("--limit", args.limit), ("--num_fewshot", args.fewshot), ("--device", args.device)):
        options += [name, str(value)] if value is not None else []
    exports = find_exports(find_run(args.run), args.iteration, args.all)
    requests = [make_request(export, tasks, task_folder, options) for export in exports]
    if args.all:
        requests = [request for request in requests if results_missing(request)]
    if not requests:
        say("All exports have results of these tasks.")
    return max((launch.run([make_job(request, cluster)]) for request in requests), default=0)


def cluster_config(changes: Sequence[str]) -> ClusterConfig:
    """Return the profile of `cluster=NAME` with the changes of `cluster.KEY=VALUE`, for a job of one process.

    The profile of a training has all GPUs of a node; the job gets one at most, unless cluster.gpus_per_node is given.

    Args:
        changes: Words of the command line.

    Raises:
        UserError: A word is not of this form, or names no profile or key.
    """
    from nano3.cli.override_errors import override_problems, parse_overrides  # imports Hydra's parser

    line = CommandLine.parse(changes)
    wrong = [*line.other, *(o.word for o in line.overrides if o.prefix or o.key.partition(".")[0] != "cluster")]
    problems = [f"{word}: expected cluster=NAME or cluster.KEY=VALUE" for word in wrong]
    line = CommandLine.parse(word for word in changes if word not in wrong)
    if problems := problems + override_problems("pretrain", line, check_members=True):
        raise UserError(problems)
    base = OmegaConf.create({"cluster": OmegaConf.structured(ClusterConfig)})
    try:
        for key, value in member_values(f"cluster/{line.values.get('cluster', 'local')}").items():
            OmegaConf.update(base, key, value)
        for override in parse_overrides(line):
            if override.key_or_group != "cluster":
                OmegaConf.update(base, override.key_or_group, override.value())
        cluster = OmegaConf.to_object(base.cluster)
    except OmegaConfBaseException as error:
        raise UserError(f"{' '.join(changes)}: {str(error).splitlines()[0]}") from None
    assert isinstance(cluster, ClusterConfig)
    gpus = cluster.gpus_per_node if "cluster.gpus_per_node" in line.values else min(cluster.gpus_per_node, 1)
    return replace(cluster, nodes=1, ntasks_per_node=1, nproc_per_node=1, gpus_per_node=gpus)


def make_job(request: EvalRequest, cluster: ClusterConfig) -> launch.Job:
    """Return the job of one evaluation. It has a folder of its own, so it does not need the lock of the run.

    Args:
        request: What to evaluate.
        cluster: Where.

    Raises:
        UserError: lm-eval is not installed there.
    """
    image = image_of(request)
    cluster = environment.resolve_runtime(cluster, image)
    missing = environment.missing_packages(cluster, ["lm_eval", "transformers", "torch"])
    if missing and not environment.may_be_added(cluster):
        raise UserError(
            f"nano3 eval needs {', '.join(missing)}, not installed in {environment.describe(cluster, None, '')}: "
            f"{install_command('train', 'eval')}"
        )
    folder = Path(request.folder)
    name = f"eval-{Path(request.run_dir or request.export).name}-{folder.name}"
    folders = [request.export, *filter(None, (request.run_dir, request.task_folder))]
    return launch.Job(
        name=name,
        run_dir=folder,
        entry="nano3.training.evaluation:main",
        args=(request.to_text(),),
        cluster=cluster,
        container=image,
        folders=tuple(folders),
    )


def image_of(request: EvalRequest) -> str | None:
    """Return the container image that the run was trained in, if any."""
    recorded = Path(request.run_dir, "config.yaml") if request.run_dir else None
    if recorded is None or not recorded.is_file():
        return None
    image = OmegaConf.select(OmegaConf.load(recorded), "run.env.container")
    return str(image) if image else None
