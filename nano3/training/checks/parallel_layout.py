"""How the ranks of a run are divided among the parallel dimensions, and whether the batch can be divided among them."""

import math
import os
from dataclasses import dataclass

from nano3.config import PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.training.checks.model_stats import RecipeValues


@dataclass(frozen=True)
class ParallelLayout:
    """World size and parallel sizes of a run, in ranks.

    `expert` divides the ranks of one pipeline stage, across the other dimensions.
    """

    world: int
    tensor: int
    pipeline: int
    context: int
    expert: int

    @property
    def model(self) -> int:
        """Ranks that hold one replica of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def data(self) -> int:
        """Data-parallel size, at least 1."""
        return max(self.world // self.model, 1)


def parallel_layout(config: PretrainConfig, recipe: RecipeValues | None) -> ParallelLayout:
    """Return the layout a configuration asks for.

    Args:
        config: The run's configuration.
        recipe: Values for the parallel sizes that the configuration leaves null.
    """
    cluster = config.cluster
    local_world = int(os.environ.get("WORLD_SIZE", cluster.nproc_per_node))  # set if torchrun started this process
    world = local_world if cluster.kind == "local" else cluster.nodes * cluster.ntasks_per_node

    def size(name: str) -> int:
        value = getattr(config.model, name)
        if value is None and recipe:
            value = recipe.value(f"model.{name}")
        return int(value or 1) if config.backend == "megatron" else 1

    return ParallelLayout(
        world,
        size("tensor_model_parallel_size"),
        size("pipeline_model_parallel_size"),
        size("context_parallel_size"),
        size("expert_model_parallel_size"),
    )


def layout_problems(config: PretrainConfig, layout: ParallelLayout) -> list[str]:
    """Return why world size, parallel sizes and batch sizes do not fit together.

    Args:
        config: The run's configuration.
        layout: Its layout, from `parallel_layout`.
    """
    train, problems = config.train, []
    for name in ("global_batch_size", "micro_batch_size"):
        if getattr(train, name) < 1:
            problems.append(f"train.{name}={getattr(train, name)} must be at least 1.")
    if problems:
        return problems
    ranks_key = (
        "cluster.nproc_per_node" if config.cluster.kind == "local" else "cluster.nodes x cluster.ntasks_per_node"
    )
    if layout.world % layout.model:
        return [
            f"{ranks_key}={layout.world} ranks cannot be divided into model replicas of {layout.model} (tensor "
            f"{layout.tensor} x pipeline {layout.pipeline} x context {layout.context}): use a multiple of "
            f"{layout.model}, or smaller model.*_parallel_size."
        ]
    stage, split = layout.world // layout.pipeline, megatron_section(config, "model").get("expert_tensor_parallel_size")
    split = split if isinstance(split, int) and split > 1 else 1  # `settings.setting_problems` reports other types
    if stage % (layout.expert * split):
        each = f" x megatron.model.expert_tensor_parallel_size={split}" if split > 1 else ""
        problems.append(
            f"model.expert_model_parallel_size={layout.expert}{each} does not divide the {stage} ranks of a pipeline "
            f"stage: use a divisor of it, for example model.expert_model_parallel_size=1, or more ranks ({ranks_key})."
        )
    if problem := batch_problem(train.global_batch_size, train.micro_batch_size, layout.data):
        problems.append(problem)
    if layout.context > 1 and train.seq_length % (2 * layout.context):
        problems.append(
            f"train.seq_length={train.seq_length} must be a multiple of 2 x model.context_parallel_size = "
            f"{2 * layout.context}."
        )
    return problems


def batch_problem(global_batch_size: int, micro_batch_size: int, data_parallel_size: int) -> str | None:
    """Return why a global batch cannot be divided into micro batches, with the nearest sizes that fit, or None.

    Args:
        global_batch_size: Samples per iteration, at least 1.
        micro_batch_size: Samples per rank and micro step, at least 1.
        data_parallel_size: Ranks that read different samples, at least 1.
    """
    step = micro_batch_size * data_parallel_size
    if global_batch_size % step == 0:
        return None
    fits = [f"train.global_batch_size={multiples_around(global_batch_size, step)}"]
    if global_batch_size % data_parallel_size == 0:
        sizes = _nearest(_divisors(global_batch_size // data_parallel_size), micro_batch_size)
        fits.append(f"train.micro_batch_size={sizes}")
    if global_batch_size % micro_batch_size == 0:
        ranks = _nearest(_divisors(global_batch_size // micro_batch_size), data_parallel_size)
        fits.append(f"{ranks} data-parallel rank(s)")
    return (
        f"train.global_batch_size={global_batch_size} is not a multiple of train.micro_batch_size x data-parallel size "
        f"= {micro_batch_size} x {data_parallel_size} = {step}. What fits: {'; or '.join(fits)}."
    )


def multiples_around(n: int, step: int) -> str:
    """Return the positive multiples of `step` next below and above `n`, as in "8 or 16". `n` itself is none."""
    below = n // step * step
    return " or ".join(str(multiple) for multiple in (below, below + step) if multiple)


def _divisors(n: int) -> list[int]:
    """Return the divisors of `n` in no order; beyond 2**32 those that a search up to 2**16 finds."""
    small = [d for d in range(1, min(math.isqrt(n), 2**16) + 1) if n % d == 0]
    return list({*small, *(n // d for d in small)})


def _nearest(allowed: list[int], wanted: int, at_most: int = 4) -> str:
    """Return the allowed values nearest to the wanted one, smallest first."""
    nearest = sorted(sorted(allowed, key=lambda n: abs(n - wanted))[:at_most])
    return " or ".join(str(n) for n in nearest)
