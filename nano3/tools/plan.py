"""Choose the layout of a run before a GPU is used: which one fits, and how long and how expensive it is.

nano3 plan +experiment=nano3 gpus=256 gpu=h100
nano3 plan +experiment=nano3 gpus=64 gpu=h200 --price 2.5 --top 3

Takes the words of nano3.pretrain, and `gpus=N` and `gpu=KIND`. Tries every tensor, pipeline, context and expert
parallelism, micro batch, recomputation and dispatcher that Megatron accepts, and lists the fastest ones that fit, with
the words to paste. A parallel size or micro batch among the words is kept. Neither data nor a GPU is needed.
docs/how-many-gpus.md says how accurate the estimates are.
"""

import argparse
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from omegaconf.errors import OmegaConfBaseException

from nano3.artifacts.resolver import resolve_reference
from nano3.cli.app import compose_words, to_explained_config
from nano3.cli.config_file_errors import lost_schedule_warning
from nano3.config import PretrainConfig
from nano3.tools._arguments import above_zero, at_least
from nano3.training.checks.ladder_check import precision_hints
from nano3.training.checks.low_precision import TITLES, width_problems
from nano3.training.checks.model_stats import architecture_from_config, count_parameters
from nano3.training.checks.parallel_layout import parallel_layout
from nano3.training.cost.gpus import GPU_KINDS, GpuKind, gpu_kind, precision_problem
from nano3.training.cost.layouts import FIXABLE, Choice, Plan, fastest, fitting_counts, make_plan, override_words
from nano3.training.cost.memory import Memory
from nano3.training.cost.workload import Workload, uncounted_warning, workload_from_config
from nano3.training.dataset import open_data
from nano3.training.megatron import schema
from nano3.training.megatron.recipe_check import similar_recipe_hint, unrecorded_warning
from nano3.training.preflight import expected_vocab_size
from nano3.training.run.stop import last_iteration
from nano3.utils.command_line import CommandLine, OverrideWord
from nano3.utils.console import say, short_number, table, warn
from nano3.utils.errors import UserError

HELP = "choose a run's layout: what fits, how long it takes, what it costs"
ONLY_SHOWS = True
OWN_KEYS = ("gpus", "gpu")
SHOWN_REASONS = 12
# The keys that set the number of ranks.
RANK_KEYS: Final = {f"cluster.{key}" for key in ("nproc_per_node", "nodes", "gpus_per_node", "ntasks_per_node")}
# Below this share of a step that the GPUs compute, fewer GPUs are compared.
BUSY: Final = 0.6
# A smaller number of GPUs is worth a row if it takes at most this share of the GPU-hours.
WORTHWHILE: Final = 0.9


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        config: The run.
        words: The words of the run.
        gpus: Number of GPUs.
        gpu: Their kind.
        only: Parallel sizes and micro batch that the words name, by their name in `FIXABLE`.
    """

    config: PretrainConfig
    words: list[str]
    gpus: int
    gpu: GpuKind
    only: dict[str, int] = field(default_factory=dict)

    @property
    def fixed(self) -> str:
        """The sizes in `only` as typed; empty without any."""
        return " ".join(f"{FIXABLE[name]}={size}" for name, size in self.only.items())

    def hours(self, choice: Choice) -> float:
        """Return the hours that the run takes in a layout."""
        return choice.step.total * last_iteration(self.config) / 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="WORD",
        help=f"words of nano3.pretrain, gpus=N, and gpu={'|'.join(GPU_KINDS)}",
    )
    parser.add_argument("--price", type=above_zero, help="price of a GPU-hour, in any currency")
    parser.add_argument("--top", type=at_least(1), default=8, help="number of layouts to list (default: 8)")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    request = read_request(args.words)
    known = schema.load_bundled(request.config.recipe._target_)
    base = base_workload(request.config, known)
    check_precision(request, base)
    plan = make_plan(base, request.gpus, request.gpu, request.only)
    show_run(request, base)
    uncounted = uncounted_warning(request.config, known, base)
    unrecorded = unrecorded_warning(request.config.recipe._target_)
    for warning in filter(None, (lost_schedule_warning(request.words), unrecorded, uncounted)):
        warn(warning)
    show_choices(plan, request, args.price, args.top)
    if plan.choices:
        best = plan.choices[0]
        show_memory(plan.choices[: args.top])
        recipe_dispatcher = str(known.value("model.moe_token_dispatcher_type", ""))
        show_words(best, base, recipe_dispatcher, request)
        show_fewer_gpus(best, base, request, args.price)
    show_refused(plan)
    if not plan.choices:
        say(advice(plan, base, request))
    return 0 if plan.choices else 1


def read_request(words: list[str]) -> Request:
    """Return the composed configuration, the number of GPUs and their kind.

    Raises:
        UserError: With everything that is wrong with the words.
    """
    line = CommandLine.parse([word for word in words if word.partition("=")[0] not in OWN_KEYS])
    own = CommandLine.parse([word for word in words if word.partition("=")[0] in OWN_KEYS]).values
    problems = [f"{word}: expected KEY=VALUE, as for nano3.pretrain" for word in line.other]
    gpus = own.get("gpus", "")
    if not gpus.isdecimal() or int(gpus) < 1:
        problems.append(f"gpus={gpus}: give the number of GPUs, for example gpus=64." if gpus else "give gpus=N.")
    try:
        gpu = gpu_kind(own.get("gpu", "h100"), "gpu")
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    config = compose_run(line)
    if "gpu" not in own and config.cluster.gpu is not None:
        gpu = gpu_kind(config.cluster.gpu)
    return Request(config, list(line.words), int(gpus), gpu, fixed_sizes(config, line))


def fixed_sizes(config: PretrainConfig, line: CommandLine) -> dict[str, int]:
    """Return the parallel sizes and the micro batch that the words name, by their name in `FIXABLE`.

    Args:
        config: The run's configuration.
        line: The words.

    Raises:
        UserError: One is below 1.
    """
    found = {}
    for name, key in FIXABLE.items():
        section, _, own = key.partition(".")
        size = getattr(getattr(config, section), own) if key in line.keys else None
        if size is not None:
            found[name] = int(size)
    if problems := [f"{FIXABLE[name]}={size} must be at least 1." for name, size in found.items() if size < 1]:
        raise UserError(problems)
    return found


def compose_run(line: CommandLine) -> PretrainConfig:
    """Return the configuration of nano3.pretrain for these words, with the folder of its data if that is here.

    Raises:
        UserError: With everything that is wrong with them, or if the run is not for Megatron.
    """
    cfg = compose_words("pretrain", line)
    cfg.recipe.per_split_data_args_path = ""
    try:
        cfg.run.data = str(resolve_reference(cfg.run.data).folder)
    except (UserError, OmegaConfBaseException):  # it may be prepared later, or lie elsewhere
        cfg.run.data = os.devnull
    config: PretrainConfig = to_explained_config("pretrain", cfg, line)
    if config.backend != "megatron":
        raise UserError(f"backend={config.backend}: only runs with backend=megatron are planned.")
    return config


def base_workload(config: PretrainConfig, known: schema.Schema) -> Workload:
    """Return the run as configured.

    Args:
        config: The run's configuration.
        known: The schema of its recipe.

    Raises:
        UserError: The architecture is not known here, or the prepared data in run.data is damaged.
    """
    folder = Path(config.run.data)
    prepared = (folder / "manifest.json").exists()
    vocab_size = open_data(folder).vocab_size if prepared else expected_vocab_size(config, known)
    model = architecture_from_config(config, known, vocab_size)
    if model is None:
        raise UserError(
            f"recipe._target_={config.recipe._target_} is not recorded, so its architecture is not known here: set "
            f"model=NAME, or the sizes in model.*.{similar_recipe_hint(config.recipe._target_)}"
        )
    return workload_from_config(config, known, model, parallel_layout(config, known))


def check_precision(request: Request, base: Workload) -> None:
    """Check that the model can be multiplied in the run's precision on this kind of GPU.

    Raises:
        UserError: It cannot, in no layout.
    """
    problems = width_problems(base.model, 1, base.precision)
    problems += precision_hints(request.config, base.model, 1, base.precision)
    if problem := precision_problem(base.precision, request.gpu):
        problems.append(f"gpu={request.gpu.name}: {problem}")
    if problems:
        raise UserError(problems)


def show_run(request: Request, base: Workload) -> None:
    """Print what is planned."""
    counts = count_parameters(base.model)
    train, last = request.config.train, last_iteration(request.config)
    tokens = train.global_batch_size * train.seq_length
    active = f", {short_number(counts.active)} active" if counts.active != counts.total else ""
    vocabulary = f"vocabulary {base.model.vocab_size:,}"
    say(f"{short_number(counts.total)} parameters{active} ({vocabulary}); {request.gpus} {request.gpu.title}")
    of = f" of {train.train_iters:,}" if last != train.train_iters else ""
    say(
        f"{last:,}{of} iterations of {train.global_batch_size:,} x {train.seq_length:,} tokens = "
        f"{short_number(tokens * last)} tokens; {TITLES[base.precision]}"
    )
    if request.config.checkpoint.keep_iteration:
        say("counted from iteration 0; the run begins at that of checkpoint.load, and its dry run counts from there")
    if request.only:
        say(f"only layouts with {request.fixed}")


def show_choices(plan: Plan, request: Request, price: float | None, top: int) -> None:
    """Print the fastest layouts."""
    if not plan.choices:
        say("no layout fits")
        return
    money = ["cost"] if price else []
    columns = ["", "TP", "PP", "CP", "EP", "DP", "micro batch", "recompute", "dispatcher", "GB", "s/step",
               "tokens/s/GPU", "MFU", "days", "GPU-hours", *money]  # fmt: skip
    rows = []
    for number, choice in enumerate(plan.choices[:top], 1):
        w, layout = choice.workload, choice.workload.layout
        hours = request.hours(choice)
        rows.append([
            str(number), str(layout.tensor), str(layout.pipeline), str(layout.context), str(layout.expert),
            str(layout.data), str(w.micro_batch_size), ",".join(w.recompute) or "nothing",
            w.dispatcher if w.model.layers.get("E") else "-", f"{choice.memory.total / 2**30:,.0f}",
            f"{choice.step.total:,.2f}", f"{choice.tokens_per_second / request.gpus:,.0f}", f"{choice.mfu:.0%}",
            *_amounts(hours, request.gpus, price),
        ])  # fmt: skip
    table(f"{len(plan.choices):,} layouts fit; the fastest", columns, rows, right=[c for c in columns if c])


def _amounts(hours: float, gpus: int, price: float | None) -> list[str]:
    """Return the cells for days, GPU-hours and, with a price, cost."""
    days, spent = hours / 24, hours * gpus
    amounts = [spent, *([spent * price] if price else [])]
    return [f"{days:,.1f}" if days >= 1 else f"{days:.2g}", *(f"{n:,.0f}" if n >= 10 else f"{n:.2g}" for n in amounts)]


def show_memory(choices: list[Choice]) -> None:
    """Print the memory of each listed layout by part, and its time by part."""
    parts = ("weights", "gradients", "optimizer", "activations", "temporary", "other")
    times = ("gpu", "host", "exchange", "bubble", "gradients", "optimizer")
    columns = ["", *(f"{name} GB" for name in parts), *(f"{name} s" for name in times)]
    rows = [
        [str(n), *_cells(c.memory, parts, 2**30, 1), *_cells(c.step, times, 1, 2)] for n, c in enumerate(choices, 1)
    ]
    table("memory per GPU and time per step by part", columns, rows, right=columns[1:])


def _cells(values: Memory | Any, names: tuple[str, ...], unit: float, digits: int) -> list[str]:
    return [f"{getattr(values, name) / unit:,.{digits}f}" for name in names]


def show_words(choice: Choice, base: Workload, recipe_dispatcher: str, request: Request) -> None:
    """Print the override words of the fastest layout."""
    found = [*cluster_words(request), *override_words(choice.workload, base, recipe_dispatcher)]
    added = [word for word in found if word not in request.words]
    # Words for another number of ranks, or for another kind of cluster, would be refused or misread.
    replaced = {OverrideWord.parse(word).key for word in added}
    replaced |= RANK_KEYS - {OverrideWord.parse(word).key for word in found}
    words = [word for word in request.words if OverrideWord.parse(word).key not in replaced] + added
    say("the fastest, to paste:")
    say(f"python -m nano3.pretrain {shlex.join(words)}")


def cluster_words(request: Request) -> list[str]:
    """Return the words for the kind of GPU and this number of ranks, the same number on every node."""
    cluster = request.config.cluster
    kind = [] if (cluster.gpu or "").lower() == request.gpu.name else [f"cluster.gpu={request.gpu.name}"]
    if cluster.kind == "local" and request.gpus <= request.gpu.node:
        return [*kind, f"cluster.nproc_per_node={request.gpus}"]
    most = cluster.gpus_per_node or request.gpu.node
    per_node = next(count for count in range(most, 0, -1) if request.gpus % count == 0)
    chosen = [] if cluster.kind == "slurm" else ["cluster=slurm"]
    return [*chosen, *kind, f"cluster.nodes={request.gpus // per_node}", f"cluster.gpus_per_node={per_node}"]


def show_fewer_gpus(best: Choice, base: Workload, request: Request, price: float | None) -> None:
    """Print what fewer GPUs would take, if these ones mostly wait and fewer need fewer GPU-hours."""
    if best.step.gpu >= BUSY * best.step.total:
        return
    compared, gpus = [(request.gpus, best)], request.gpus
    while gpus % 2 == 0:
        gpus //= 2
        choice = fastest(base, gpus, request.gpu, request.only)
        before = compared[-1][1].step.total * compared[-1][0]
        if choice is None or choice.step.total * gpus > WORTHWHILE * before:
            break
        compared.append((gpus, choice))
    if len(compared) == 1:
        return
    columns = ["GPUs", "s/step", "tokens/s/GPU", "MFU", "days", "GPU-hours", *(["cost"] if price else [])]
    rows = []
    for count, choice in compared:
        hours = request.hours(choice)
        rows.append([
            f"{count:,}", f"{choice.step.total:,.2f}", f"{choice.tokens_per_second / count:,.0f}", f"{choice.mfu:.0%}",
            *_amounts(hours, count, price),
        ])  # fmt: skip
    busy = f"the GPUs compute for {best.step.gpu / best.step.total:.0%} of a step; fewer of them take fewer GPU-hours"
    table(busy, columns, rows, right=columns)


def advice(plan: Plan, base: Workload, request: Request) -> str:
    """Return what to change if no layout fits."""
    found = []
    counts = fitting_counts(base, request.gpus, request.gpu, request.only, below=not plan.too_large)
    if counts:
        found.append(" or ".join(f"gpus={count}" for count in counts))
    if request.only:
        found.append(f"the words without {request.fixed}")
    found = found or ["another train.global_batch_size, train.seq_length or kind of GPU (gpu=KIND)"]
    return f"to try instead: {'; '.join(found)}"


def show_refused(plan: Plan) -> None:
    """Print why layouts were refused, most frequent reason first."""
    if not plan.refused:
        return
    rows = [(f"{count:,}", reason) for reason, count in plan.refused.most_common(SHOWN_REASONS)]
    left = len(plan.refused) - len(rows)
    rows += [("", f"{left} more reasons")] if left else []
    table("refused", ["layouts", "reason"], rows, right=["layouts"])
