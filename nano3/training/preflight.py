"""What is known about a run before it touches a GPU: one table of figures, and every problem at once.

Imports neither torch nor megatron. For backend=megatron, null values come from the recorded recipe (`megatron.schema`);
for backend=transformers the configuration is complete.
"""

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from nano3.config import PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.training import backend
from nano3.training.checks.ladder_check import (
    ladder_problems,
    ladder_rows,
    precision_hints,
    validation_warnings,
)
from nano3.training.checks.lr_schedule import schedule_problems, schedule_summary
from nano3.training.checks.model_stats import (
    Architecture,
    architecture_from_config,
    count_parameters,
    flops_per_token,
)
from nano3.training.checks.parallel_layout import ParallelLayout, layout_problems, parallel_layout
from nano3.training.checks.value_checks import (
    initial_weights_problems,
    run_section_problems,
    value_problems,
    vocabulary_problems,
)
from nano3.training.cost.gpus import GPU_KINDS, GpuKind, gpu_of_run, local_gpu, precision_problem
from nano3.training.cost.layouts import mask_warning, recompute_problems, rule_problems
from nano3.training.cost.memory import estimate_memory
from nano3.training.cost.step_time import estimate_step
from nano3.training.cost.workload import Workload, uncounted_warning, workload_from_config
from nano3.training.dataset import TrainingData, open_data
from nano3.training.megatron import schema, settings
from nano3.training.megatron.recipe_check import tokenizer_problems, unrecorded_warning
from nano3.training.order.budgets import megatron_order_problems, mixture_problems, mixture_warnings, uses_plan
from nano3.training.order.plan_text import mixture_rows
from nano3.training.run import index_cache
from nano3.training.run.resume import ResumePoint, masks_eod, plan_order, preview_resume_point
from nano3.training.run.stop import last_iteration
from nano3.utils.console import short_number, size_text
from nano3.utils.errors import UserError
from nano3.utils.files import nearest_existing

# Weights, master weights and two Adam moments in a checkpoint: bf16 + 3 x fp32, or all fp32.
CHECKPOINT_BYTES_PER_PARAMETER: Final[dict[str, int]] = {"megatron": 14, "transformers": 12}
# Beyond this number of epochs, repeated data teaches little (Muennighoff et al., 2023).
MAX_USEFUL_EPOCHS: Final[int] = 4
# A start of a run whose index takes this long is better prepared by `nano3 index`.
INDEX_MINUTES: Final[float] = 1.0
MEGATRON_TIMEOUT_MINUTES: Final[int] = 10
NEMOTRON_VOCAB_SIZE: Final[int] = 131072


@dataclass(frozen=True)
class Preflight:
    """The result of a preflight.

    `rows` are the lines (name, value) of the table. `problems` prevent the start; `warnings` do not.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class IterationRange:
    """The iterations that one command trains: after `done` up to `end`, in a schedule of `total`.

    `seen` counts those that this run has already trained on the same data.
    """

    done: int
    end: int
    total: int
    seen: int

    @property
    def iterations(self) -> int:
        """Number of iterations to train."""
        return max(self.end - self.done, 0)

    def __str__(self) -> str:
        if self.iterations == self.total:
            return f"{self.total:,}"
        return f"{self.iterations:,} (from {self.done:,} to {self.end:,} of {self.total:,})"


def preflight(config: PretrainConfig, vocab_size: int | None = None) -> Preflight:
    """Check a configuration and estimate its run. Read the data's manifest if run.data is a prepared folder.

    Args:
        config: The run's configuration.
        vocab_size: Ids of the tokenizer of data that is still to be prepared; run.data is then not read.
    """
    megatron = config.backend == "megatron"
    known = schema.load_bundled(config.recipe._target_) if megatron else None
    layout = parallel_layout(config, known)
    result = Preflight()
    chosen = backend.load(config.backend)
    result.problems.extend(chosen.check(config))
    if known:
        _describe_recipe(config, known, result)
    result.problems.extend([*value_problems(config), *initial_weights_problems(config)])
    result.problems.extend(run_section_problems(config, here=uses_this_python(config) and not config.dry_run))
    result.problems.extend([*schedule_problems(config), *(wrong := ladder_problems(config))])
    result.problems.extend(layout_problems(config, layout))
    data = _open_prepared_data(config, result) if vocab_size is None else None
    vocab_size = data.vocab_size if data else vocab_size
    model = architecture_from_config(config, known, vocab_size or expected_vocab_size(config, known))
    workload = workload_from_config(config, known, model, layout) if megatron and model else None
    if workload:
        result.problems.extend([*rule_problems(workload), *recompute_problems(workload)])
        result.problems.extend(precision_hints(config, workload.model, layout.tensor, workload.precision))
    _add_model_rows(config, layout, model, result)
    result.rows.extend([] if wrong else ladder_rows(config))
    gpu = _gpu_of_run(config, workload, result)
    if workload:
        _add_memory_row(workload, gpu, result)
        result.warnings.extend(w for w in (uncounted_warning(config, known, workload), mask_warning(workload)) if w)
    preview = preview_resume_point(config, data, chosen.find_resume_point)
    result.problems.extend(preview.problems)
    result.warnings.extend(preview.warnings)
    span = iteration_range(config, preview.point)
    _add_length_rows(config, layout, span, result)
    if workload and not result.problems:
        _add_time_row(workload, gpu, span, result)
    if vocab_size:
        result.problems.extend(vocabulary_problems(config, vocab_size))
    if data:
        result.warnings.extend(validation_warnings(config, len(data.datasets("valid"))))
        if known:
            result.problems.extend(tokenizer_problems(settings.override_settings(config.megatron, known), data))
        train_tokens, valid_tokens = short_number(data.tokens("train")), short_number(data.tokens("valid"))
        result.rows.append(("data", f"{data.folder}: {train_tokens} tokens to train on, {valid_tokens} to validate"))
    if uses_plan(config):
        _add_plan_rows(config, data, preview.point, result)
    elif data:
        result.problems.extend(megatron_order_problems(data.budgets, f"the blend of {data.folder}"))
        _add_data_rows(config, data, span, result)
        _warn_of_index_build(config, data, known, result)
    _add_disk_row(config, known, model, span, result)
    if warning := thread_warning(config):
        result.warnings.append(warning)
    result.rows.extend(("warning", w) for w in result.warnings)
    return result


def uses_this_python(config: PretrainConfig) -> bool:
    """Return whether the ranks will run in the Python of this process."""
    c = config.cluster
    return c.kind == "local" or (c.container_runtime == "none" and c.python is None)


def iteration_range(config: PretrainConfig, point: ResumePoint) -> IterationRange:
    """Return the iterations this command trains.

    Args:
        config: The run's configuration.
        point: Where the run starts.
    """
    seen = point.iteration if point.own else 0
    return IterationRange(point.iteration, last_iteration(config), config.train.train_iters, seen)


def _describe_recipe(config: PretrainConfig, known: schema.Schema, result: Preflight) -> None:
    """Add the recipe's row, and warnings if its values are not recorded or if it is made for benchmarks alone."""
    target = config.recipe._target_
    result.rows.append(("recipe", target.rpartition(".")[2]))
    if unrecorded := unrecorded_warning(target):
        result.warnings.append(unrecorded)
    forced = "moe_router_force_load_balancing"
    if megatron_section(config, "model").get(forced, known.value(f"model.{forced}")):
        result.warnings.append(
            f"megatron.model.{forced}=true: experts get random tokens, which is for measuring speed. To learn, set "
            f"+megatron.model.{forced}=false."
        )


def _open_prepared_data(config: PretrainConfig, result: Preflight) -> TrainingData | None:
    """Return the prepared data, or None if it does not exist yet: a run may be submitted before its preparation."""
    folder = Path(config.run.data)
    if not (folder / "manifest.json").exists():
        return None
    try:
        data = open_data(folder)
        data.require(config.train.seq_length, ["train", "valid"] if config.train.eval_interval else ["train"])
    except UserError as error:
        result.problems.extend(error.problems)
        return None
    return data


def expected_vocab_size(config: PretrainConfig, known: schema.Schema | None) -> int:
    """Return the vocabulary size to assume without data: the configuration's, the recipe's, or Nemotron's."""
    return int(config.model.vocab_size or (known and known.value("model.vocab_size")) or NEMOTRON_VOCAB_SIZE)


def _add_model_rows(
    config: PretrainConfig, layout: ParallelLayout, model: Architecture | None, result: Preflight
) -> None:
    result.rows.append(("backend", config.backend))
    sizes = (("tensor", layout.tensor), ("pipeline", layout.pipeline), ("context", layout.context))
    dimensions = [f"{layout.data} data", *(f"{n} {name}" for name, n in sizes if n > 1)]
    experts = f", experts over {layout.expert}" if layout.expert > 1 else ""
    result.rows.append(("ranks", f"{layout.world} = {' x '.join(dimensions)}{experts}"))
    if model is None:
        result.warnings.append("the architecture is not known here, so parameters, memory and time are not estimated.")
        return
    counts = count_parameters(model)
    active = f", {short_number(counts.active)} active" if counts.active != counts.total else ""
    result.rows.append(("parameters", f"{short_number(counts.total)}{active} (vocabulary {model.vocab_size:,})"))
    if model.mtp_depths:
        own = counts.total - count_parameters(replace(model, mtp_depths=0)).total
        result.rows.append(
            ("multi-token", f"{model.mtp_depths} tokens after the next one, by {short_number(own)} of the parameters")
        )
    flops = flops_per_token(model, config.train.seq_length)
    result.rows.append(("FLOPs per token", f"{short_number(flops)} (forward and backward)"))


def _gpu_of_run(config: PretrainConfig, workload: Workload | None, result: Preflight) -> GpuKind:
    """Return the kind of GPU that the estimates are for. Add a row if it is only assumed, else a problem it has."""
    try:
        gpu, assumed = gpu_of_run(config.cluster.gpu, config.cluster.kind == "local")
    except UserError as error:
        result.problems.extend(error.problems)
        return GPU_KINDS["h100"]
    if assumed and config.backend == "megatron":
        result.rows.append(("GPU", f"{gpu.title}, assumed for the estimates below; set cluster.gpu=KIND"))
    elif workload and not assumed and (problem := precision_problem(workload.precision, gpu)):
        result.problems.append(problem)
    return gpu


def thread_warning(config: PretrainConfig) -> str | None:
    """Return a warning if the ranks on this machine have more threads than it has CPU cores, or None."""
    threads, cores = config.train.threads, len(os.sched_getaffinity(0))
    # Under torchrun this process is one of the ranks.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", config.cluster.nproc_per_node))
    on_cpus_here = config.backend == "transformers" and config.cluster.kind == "local" and local_gpu() is None
    if not on_cpus_here or threads is None or ranks * threads <= cores:
        return None
    fix = f"set train.threads={cores // ranks} (or null)" if ranks <= cores else f"start at most {cores} ranks"
    return (
        f"{ranks} rank{'s' * (ranks > 1)} x train.threads={threads} are more threads than this machine's {cores} "
        f"core{'s' * (cores > 1)}, which makes steps several times slower; {fix}."
    )


def _add_memory_row(workload: Workload, gpu: GpuKind, result: Preflight) -> None:
    need = estimate_memory(workload)
    total = need.total / 2**30
    names = ("weights", "gradients", "optimizer", "activations", "temporary")
    parts = ", ".join(f"{name} {getattr(need, name) / 2**30:,.1f}" for name in names)
    result.rows.append(("memory per GPU", f"about {total:,.1f} GB ({parts})"))
    if not need.fits(gpu):
        result.warnings.append(
            f"about {total:,.1f} GB per GPU do not fit into the {gpu.memory / 2**30:,.0f} GB of one {gpu.title}, of "
            "which CUDA and NCCL take some: `nano3 plan` with the words of this run, but no parallel sizes and micro "
            "batch, and gpus=N lists what fits. More ranks, larger model.*_parallel_size, a smaller "
            "train.micro_batch_size or recomputation (megatron.model.recompute_granularity) need less."
        )


def _add_time_row(workload: Workload, gpu: GpuKind, span: IterationRange, result: Preflight) -> None:
    step, ranks = estimate_step(workload, gpu).total, workload.layout.world
    rate = workload.global_batch_size * workload.seq_length / step / ranks
    mfu = rate * flops_per_token(workload.model, workload.seq_length) / gpu.bf16
    hours = step * span.iterations / 3600
    length = f"{hours * 60:,.1f} min" if hours < 1 else f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
    result.rows.append(
        (
            "time",
            f"about {length} on {ranks:,} {gpu.title}: {step:,.2f} s an iteration, {rate:,.0f} tokens/s/GPU, {mfu:.0%} "
            f"MFU; {hours * ranks:,.1f} GPU-hours",
        )
    )


def _add_length_rows(config: PretrainConfig, layout: ParallelLayout, span: IterationRange, result: Preflight) -> None:
    train = config.train
    tokens = train.global_batch_size * train.seq_length
    accumulation = train.global_batch_size // max(train.micro_batch_size * layout.data, 1)
    batch = f"{train.global_batch_size} x {train.seq_length:,} = {short_number(tokens)} tokens"
    result.rows.append(("batch", f"{batch}; {accumulation} micro batches per rank"))
    result.rows.append(("documents", describe_documents(config)))
    result.rows.append(("iterations", f"{span} = {short_number(tokens * span.iterations)} tokens"))
    result.rows.append(("learning rate", schedule_summary(config)))
    if train.exit_iteration is not None and train.exit_iteration > train.train_iters:
        result.problems.append(
            f"train.exit_iteration={train.exit_iteration} is greater than train.train_iters={train.train_iters}."
        )


def describe_documents(config: PretrainConfig) -> str:
    """Return what the documents of a sample see of each other, and which predictions do not count in the loss."""
    isolated = config.train.document_boundaries == "isolate"
    seen = "isolate: each sees only itself" if isolated else "cross: a token sees the earlier documents of its sample"
    eod = masks_eod(config)
    return f"{seen}; {'no loss on' if eod else 'loss also on'} the first token after an end-of-document token"


def _add_data_rows(config: PretrainConfig, data: TrainingData, span: IterationRange, result: Preflight) -> None:
    """Add the epochs of each dataset in this command, and warn if the whole run repeats a dataset too often."""
    step = config.train.global_batch_size * config.train.seq_length
    shares = data.shares("train")
    for name, shards in data.datasets("train").items():
        share = shares[name]
        tokens = sum(s.tokens for s in shards)
        epochs = step * span.iterations * share / tokens
        total_epochs = step * (span.iterations + span.seen) * share / tokens
        result.rows.append(
            (f"  {name}", f"{share:.1%} of the samples, {short_number(tokens)} tokens, {epochs:,.2f} epochs")
        )
        _warn_of_repetition(name, total_epochs, result)


def _warn_of_repetition(name: str, epochs: float, result: Preflight) -> None:
    if epochs > MAX_USEFUL_EPOCHS:
        result.warnings.append(
            f"{name} is repeated {epochs:,.1f} times; beyond about four, repetition teaches little "
            "(Muennighoff et al., 2023)."
        )


def _warn_of_index_build(
    config: PretrainConfig, data: TrainingData, known: schema.Schema | None, result: Preflight
) -> None:
    """Warn if all ranks will wait long for rank 0 to build Megatron's order of samples."""
    samples = config.train.train_iters * config.train.global_batch_size
    minutes = index_cache.build_seconds(samples, len(data.split("train"))) / 60
    if minutes < INDEX_MINUTES or index_cache.has_index(config.run.output_dir, data.fingerprint, samples):
        return
    fails = ""
    if known:
        path = "dist.distributed_timeout_minutes"
        chosen = settings.chosen_fields(config, known)
        limit = chosen.get(path, known.value(path, MEGATRON_TIMEOUT_MINUTES))
        fails = f"; they give up after {limit} min (megatron.{path})" if minutes > limit else ""
    result.warnings.append(
        f"rank 0 builds Megatron's order of {short_number(samples)} samples in about {minutes:,.0f} min, for which all "
        f"ranks wait{fails}. `nano3 index` with the words of this run builds it before, without GPUs; a new run with "
        "train.sample_order=nano3 needs none."
    )


def _add_plan_rows(config: PretrainConfig, data: TrainingData | None, point: ResumePoint, result: Preflight) -> None:
    """Add what the mixture gives of each dataset, and warn if the run repeats one too often."""
    if min(config.train.train_iters, config.train.global_batch_size, config.train.seq_length) < 1:
        return  # a problem already
    if data is None:
        result.problems.extend(mixture_problems(config))
        return
    try:
        plan, change = plan_order(config, Path(config.run.output_dir), point, data)
    except UserError as error:
        result.problems.extend(error.problems)
        return
    assert plan is not None
    result.rows.extend(mixture_rows(plan))
    result.warnings.extend(mixture_warnings(plan))
    if change and config.dry_run:  # otherwise the ranks say it
        result.warnings.append(change)
    for name, count in plan.consumed(plan.stages[-1].end).items():
        _warn_of_repetition(name, plan.epochs(name, count), result)


def saves_in_background(config: PretrainConfig, known: schema.Schema) -> bool:
    """Return whether Megatron-Bridge copies a checkpoint to host memory and writes it while training goes on.

    Args:
        config: The run's configuration.
        known: The schema of its recipe.
    """
    chosen = settings.chosen_fields(config, known)
    background, kind = chosen.get("checkpoint.async_save", True), chosen.get("checkpoint.ckpt_format", "torch_dist")
    return bool(background) and kind == "torch_dist"


def _add_disk_row(
    config: PretrainConfig,
    known: schema.Schema | None,
    model: Architecture | None,
    span: IterationRange,
    result: Preflight,
) -> None:
    """Add the size of the kept checkpoints, and warn if the disk has too little space for them."""
    if model is None:
        return
    size = count_parameters(model).total * CHECKPOINT_BYTES_PER_PARAMETER[config.backend]
    kept = (config.checkpoint.keep_last or span.iterations // max(config.checkpoint.save_interval, 1)) + 1
    value = f"{size_text(size)} each, room for {kept}: {size_text(kept * size)}"
    if known and saves_in_background(config, known):
        host = size / config.cluster.nodes  # pinned memory comes in powers of two for each tensor
        value += f"; saving in the background takes {size_text(host)} to {size_text(2 * host)} of host memory per node"
    result.rows.append(("checkpoints", value))
    folder = nearest_existing(Path(config.checkpoint.save or config.run.output_dir))
    free = shutil.disk_usage(folder).free
    if free < kept * size:
        result.warnings.append(f"{folder} has {size_text(free)} free; the checkpoints need {size_text(kept * size)}.")
