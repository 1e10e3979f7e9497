"""What can be known about a run before a GPU is touched: one table, and every problem at once.

Imports neither torch nor megatron. For backend=megatron, values that the configuration leaves to the recipe come from
the recorded recipe (`schema`); for backend=transformers the configuration is complete.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nano3.config import PretrainConfig
from nano3.config.pretrain import RecipeConfig
from nano3.training.checks.lr_schedule import schedule_problems, schedule_summary
from nano3.training.checks.model_stats import (
    Architecture,
    architecture_from_config,
    count_parameters,
    divisibility_problems,
    flops_per_token,
)
from nano3.training.checks.parallel_layout import ParallelLayout, layout_problems, parallel_layout
from nano3.training.checks.value_checks import (
    initial_weights_problems,
    run_section_problems,
    value_problems,
    vocabulary_problems,
)
from nano3.training.dataset import TrainingData, open_data
from nano3.training.hf.model import model_problems
from nano3.training.megatron import recipe, schema, settings
from nano3.training.megatron.recipe_check import (
    blend_file_problems,
    recipe_problems,
    similar_recipe_hint,
    tokenizer_problems,
)
from nano3.training.run.origin import Origin, find_origin
from nano3.training.run.stop import last_iteration
from nano3.utils.errors import UserError
from nano3.utils.files import nearest_existing

# Hours are told for this share of the GPUs' peak: what large hybrid MoE models reach on H100s; metrics.jsonl has the
# true one.
ASSUMED_MFU = 0.25
H100_PEAK = 989e12
H100_BYTES = 80 * 2**30


@dataclass(frozen=True)
class Preflight:
    """`rows` for the table; `problems` forbid the start; `warnings` do not."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class IterationRange:
    """The iterations of a schedule of `total` that one command trains: those after `done`, up to `end`. `seen` of them
    were done by this run on the same data."""

    done: int
    end: int
    total: int
    seen: int

    @property
    def iterations(self) -> int:
        return max(self.end - self.done, 0)

    def __str__(self) -> str:
        if self.iterations == self.total:
            return f"{self.total:,}"
        return f"{self.iterations:,} (from {self.done:,} to {self.end:,} of {self.total:,})"


def preflight(config: PretrainConfig, manifest: dict[str, Any] | None = None) -> Preflight:
    """Check a configuration. `manifest` is the data's manifest.json; None reads it in run.data when that is a
    folder."""
    megatron = config.backend == "megatron"
    known = schema.load_bundled(config.recipe._target_) if megatron else None
    layout = parallel_layout(config, known)
    plan = Preflight()
    _check_megatron(config, known, plan)
    plan.problems.extend([*value_problems(config), *initial_weights_problems(config)])
    plan.problems.extend(run_section_problems(config, here=uses_this_python(config) and not config.dry_run))
    plan.problems.extend(schedule_problems(config))
    if not megatron:
        plan.problems.extend(model_problems(config.model))
    plan.problems.extend(layout_problems(config, layout))
    data = _data(config, plan)
    model = architecture_from_config(config, known, data.vocab_size if data else _vocabulary(config, manifest, known))
    if megatron and model:
        plan.problems.extend(divisibility_problems(model, layout.tensor, layout.expert))
    _tell_shape(config, layout, model, plan)
    begin = find_origin(config, data)
    plan.problems.extend(begin.problems)
    plan.warnings.extend(begin.warnings)
    span = iteration_range(config, begin)
    _tell_length(config, layout, model, span, plan)
    if data:
        plan.problems.extend(vocabulary_problems(config, data.vocab_size))
        if known:
            plan.problems.extend(tokenizer_problems(settings.override_settings(config.megatron, known), data))
        _tell_data(config, data, span, plan)
    elif manifest:
        _tell_manifest(config, manifest, span, plan)
    _tell_disk(config, model, span, plan)
    plan.rows.extend(("warning", w) for w in plan.warnings)
    return plan


def uses_this_python(config: PretrainConfig) -> bool:
    """Whether the ranks run in the Python that checks them now."""
    c = config.cluster
    return c.kind == "local" or (c.container_runtime == "none" and c.python is None)


def iteration_range(config: PretrainConfig, begin: Origin) -> IterationRange:
    """What this command trains: from where it starts to train.exit_iteration or the end of the schedule."""
    return IterationRange(
        begin.iteration, last_iteration(config), config.train.train_iters, begin.iteration if begin.own else 0
    )


def estimate_memory_per_gpu(model: Architecture, layout: ParallelLayout, config: PretrainConfig) -> float:
    """Estimated bytes on one GPU: bf16 weights, fp32 or bf16 gradients, fp32 master weights and two Adam moments
    divided over the data-parallel ranks (distributed optimizer), activations kept for the backward pass without
    recomputation, and the loss: logits in bf16, as fp32, and once more with their maximum taken off (seen in an
    out-of-memory of Megatron-Core 0.19 on an H100).
    """
    counts = count_parameters(model)
    experts, rest = counts.routed_experts, counts.total - counts.routed_experts
    own_rest = rest / (layout.tensor * layout.pipeline)
    own_experts = experts / (layout.expert * layout.pipeline)
    expert_replicas = max(layout.world / layout.pipeline / layout.expert, 1)
    weights = 6 * (own_rest + own_experts)
    optimizer = 12 * (own_rest / (layout.data * layout.context) + own_experts / expert_replicas)
    tokens = config.train.micro_batch_size * config.train.seq_length / layout.context
    at_once = max(config.train.micro_batch_size * layout.data, 1)  # wrong numbers are told elsewhere
    micro_batches = max(config.train.global_batch_size // at_once, 1)
    stages = min(layout.pipeline, micro_batches) / layout.pipeline  # each keeps its layers for that many micro batches
    kept = tokens / layout.tensor * model.activation_bytes_per_token * stages
    logits = tokens * model.vocab_size * 10 / layout.tensor
    return weights + optimizer + kept + logits


def _check_megatron(config: PretrainConfig, known: schema.Schema | None, plan: Preflight) -> None:
    """Names and types of everything that will be set on Megatron-Bridge's configuration."""
    if known is None:
        if config.megatron:
            plan.problems.append("megatron: is used by backend=megatron only; remove it, or choose that backend.")
        if config.recipe._target_ != RecipeConfig._target_:
            plan.problems.append(
                f"recipe._target_={config.recipe._target_} is used by backend=megatron only; leave it out, or choose "
                "that backend."
            )
        if config.recipe.per_split_data_args_path != RecipeConfig.per_split_data_args_path:
            plan.problems.extend(blend_file_problems(config))
        return
    target = config.recipe._target_
    plan.problems.extend(recipe.target_problems(target) or recipe_problems(target))
    plan.problems.extend(blend_file_problems(config))
    chosen = [*settings.typed_settings(config), *settings.override_settings(config.megatron, known)]
    plan.problems.extend(settings.setting_problems(chosen, known))
    plan.problems.extend(settings.pattern_problems(config.model.hybrid_layer_pattern))
    plan.rows.append(("recipe", target.rpartition(".")[2]))
    if not schema.is_bundled(target):
        plan.warnings.append(
            f"recipe._target_={target} is not recorded: sizes are estimated without its values; it is checked when "
            f"the run starts.{similar_recipe_hint(target)}"
        )


def _data(config: PretrainConfig, plan: Preflight) -> TrainingData | None:
    """The prepared data, when it is there by now; a run may be submitted to follow its preparation."""
    folder = Path(config.run.data)
    if not (folder / "manifest.json").exists():
        return None
    try:
        data = open_data(folder)
        data.require(config.train.seq_length, ["train", "valid"] if config.train.eval_interval else ["train"])
    except UserError as error:
        plan.problems.extend(error.problems)
        return None
    return data


def _vocabulary(config: PretrainConfig, manifest: dict[str, Any] | None, known: schema.Schema | None) -> int:
    """The data's vocabulary, or the recipe's, or Nemotron's."""
    if manifest:
        return int(manifest["tokenizer"]["vocab_size"])
    return int(config.model.vocab_size or (known and known.value("model.vocab_size")) or 131072)


def _tell_shape(config: PretrainConfig, layout: ParallelLayout, model: Architecture | None, plan: Preflight) -> None:
    plan.rows.append(("backend", config.backend))
    parts = [f"{layout.data} data"]
    parts += [
        f"{n} {name}"
        for name, n in (("tensor", layout.tensor), ("pipeline", layout.pipeline), ("context", layout.context))
        if n > 1
    ]
    experts = f", experts over {layout.expert}" if layout.expert > 1 else ""
    plan.rows.append(("ranks", f"{layout.world} = {' x '.join(parts)}{experts}"))
    if model is None:
        plan.warnings.append("the architecture is not known here, so parameters, memory and time are not estimated.")
        return
    counts = count_parameters(model)
    active = f", {short_number(counts.active)} active" if counts.active != counts.total else ""
    plan.rows.append(("parameters", f"{short_number(counts.total)}{active} (vocabulary {model.vocab_size:,})"))
    plan.rows.append(
        ("FLOPs per token", f"{short_number(flops_per_token(model, config.train.seq_length))} (forward and backward)")
    )
    if config.backend == "megatron":
        need = estimate_memory_per_gpu(model, layout, config)
        plan.rows.append(("memory per GPU", f"about {need / 2**30:,.0f} GB, activations not recomputed"))
        if need > H100_BYTES:
            plan.warnings.append(
                f"about {need / 2**30:,.1f} GB per GPU is more than an H100 has (80): use more ranks, larger "
                "model.*_parallel_size, "
                "a smaller train.micro_batch_size, or recomputation (megatron.model.recompute_granularity)."
            )


def _tell_length(
    config: PretrainConfig, layout: ParallelLayout, model: Architecture | None, span: IterationRange, plan: Preflight
) -> None:
    train = config.train
    tokens = train.global_batch_size * train.seq_length
    accumulation = train.global_batch_size // max(train.micro_batch_size * layout.data, 1)
    plan.rows.append(
        (
            "batch",
            f"{train.global_batch_size} x {train.seq_length:,} = {short_number(tokens)} tokens; {accumulation} micro "
            "batches a rank",
        )
    )
    plan.rows.append(("iterations", f"{span} = {short_number(tokens * span.iterations)} tokens"))
    plan.rows.append(("learning rate", schedule_summary(config)))
    if train.exit_iteration is not None and train.exit_iteration > train.train_iters:
        plan.problems.append(
            f"train.exit_iteration={train.exit_iteration} lies beyond train.train_iters={train.train_iters}."
        )
    if model is None or config.backend != "megatron":
        return
    flops = flops_per_token(model, train.seq_length) * tokens * span.iterations
    hours = flops / (layout.world * H100_PEAK * ASSUMED_MFU) / 3600
    plan.rows.append(
        (
            "time",
            f"about {hours:,.1f} h on {layout.world} H100 at {ASSUMED_MFU:.0%} MFU, {hours * layout.world:,.0f} "
            "GPU-hours",
        )
    )


def _tell_data(config: PretrainConfig, data: TrainingData, span: IterationRange, plan: Preflight) -> None:
    """Epochs of every dataset: how often each of its tokens is seen by this command; warned of is what the run sees of
    it altogether."""
    step = config.train.global_batch_size * config.train.seq_length
    shares = data.shares("train")
    plan.rows.append(
        (
            "data",
            f"{data.folder}: {short_number(data.tokens('train'))} tokens to train on, {short_number(data.tokens('valid'))} to validate",
        )
    )
    for name, shards in data.datasets("train").items():
        share = shares[name]
        own = sum(s.tokens for s in shards)
        epochs = step * span.iterations * share / own
        in_all = step * (span.iterations + span.seen) * share / own
        plan.rows.append((f"  {name}", f"{share:.1%} of the samples, {short_number(own)} tokens, {epochs:,.2f} epochs"))
        if in_all > 4:
            plan.warnings.append(
                f"{name} is repeated {in_all:,.1f} times; beyond about four, repetition teaches little "
                "(Muennighoff et al., 2023)."
            )


def _tell_manifest(config: PretrainConfig, manifest: dict[str, Any], span: IterationRange, plan: Preflight) -> None:
    tokens = int(manifest["splits"]["train"]["tokens"])
    wanted = config.train.global_batch_size * config.train.seq_length * span.iterations
    plan.rows.append(("data", f"{short_number(tokens)} tokens to train on, {wanted / max(tokens, 1):,.2f} epochs"))


def _tell_disk(config: PretrainConfig, model: Architecture | None, span: IterationRange, plan: Preflight) -> None:
    """A checkpoint holds weights (bf16 or fp32 with the optimizer's copy) and Adam's moments: about 14 bytes a
    parameter."""
    if model is None:
        return
    one = count_parameters(model).total * (14 if config.backend == "megatron" else 12)
    kept = (config.checkpoint.keep_last or span.iterations // max(config.checkpoint.save_interval, 1)) + 1
    plan.rows.append(("checkpoints", f"{one / 2**30:,.2f} GB each, room for {kept}: {kept * one / 2**30:,.1f} GB"))
    place = nearest_existing(Path(config.checkpoint.save or config.run.output_dir))
    free = shutil.disk_usage(place).free
    if free < kept * one:
        plan.warnings.append(
            f"{place} has {free / 2**30:,.1f} GB free; the checkpoints need {kept * one / 2**30:,.1f} GB."
        )


def short_number(number: float) -> str:
    """1.24 B, 31.6 B, 25.2 M: three digits and a unit."""
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:  # 999,999 is 1 M, not 1e+03 k
            return f"{number / limit:.3g} {unit}"
    return f"{number:.3g}"
