"""Every layout of a run that Megatron accepts, with its memory and time, and why the others are refused."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from nano3.training.checks.low_precision import DELAYED, token_problems, width_problems
from nano3.training.checks.model_stats import Architecture, divisibility_problems, flops_per_token
from nano3.training.checks.parallel_layout import ParallelLayout
from nano3.training.cost.gpus import GpuKind
from nano3.training.cost.memory import Memory, estimate_memory, mask_bytes
from nano3.training.cost.step_time import StepTime, estimate_step
from nano3.training.cost.workload import FULL, Workload

# Larger sizes exist, but communicate in every layer over links between nodes.
LARGEST_TENSOR: Final = 8
LARGEST_CONTEXT: Final = 32
LARGEST_MICRO_BATCH: Final = 32
_NO_GRAPHS: Final = ("++megatron.model.cuda_graph_impl=none", "++megatron.model.cuda_graph_modules=[]")
DISPATCHERS: Final = ("alltoall", "flex")
# Attention is left out of CUDA graphs if the mask that its graph takes is larger; 8,192 tokens make 64 MB.
LARGEST_MASK: Final = 2**30
# Sizes that a run may fix, with their keys.
FIXABLE: Final[dict[str, str]] = {
    "tensor": "model.tensor_model_parallel_size",
    "pipeline": "model.pipeline_model_parallel_size",
    "context": "model.context_parallel_size",
    "expert": "model.expert_model_parallel_size",
    "micro_batch_size": "train.micro_batch_size",
}
NOTHING_FIXED: Final[Mapping[str, int]] = {}
# Other numbers of GPUs are tried up to this many times more or fewer.
FARTHEST: Final = 16


@dataclass(frozen=True)
class Choice:
    """A layout that fits, with its memory and the time of a step."""

    workload: Workload
    memory: Memory
    step: StepTime
    gpu: GpuKind

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all GPUs."""
        return self.workload.global_batch_size * self.workload.seq_length / self.step.total

    @property
    def mfu(self) -> float:
        """Share of the peak of bf16 that the model's operations reach."""
        w = self.workload
        flops = flops_per_token(w.model, w.seq_length) * self.tokens_per_second
        return flops / (w.layout.world * self.gpu.bf16)


@dataclass
class Plan:
    """All layouts of a run on a number of GPUs.

    Attributes:
        choices: Those that fit, fastest first.
        refused: Number of the others by reason.
        too_large: Whether some need more memory than a GPU has.
    """

    choices: list[Choice] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    too_large: bool = False


def rule_problems(w: Workload) -> list[str]:
    """Return why Megatron cannot divide this model and its tokens among these ranks."""
    layout = w.layout
    problems = divisibility_problems(w.model, layout.tensor, layout.expert, layout.pipeline, layout.context)
    stages, key = w.model.stages, "model.pipeline_model_parallel_size"
    if stages and layout.pipeline != stages:
        problems.append(
            f"model.hybrid_layer_pattern marks {stages} pipeline stages with |. Megatron-Bridge builds one a rank "
            f"and leaves out the others: set {key}={stages} instead of {layout.pipeline}, or leave out the |."
        )
    problems += _stage_problems(w.model, layout.pipeline)
    if layout.tensor > 1 and w.model.layers.get("E") and not w.sequence_parallel:
        problems.append(
            f"model.tensor_model_parallel_size={layout.tensor} needs model.sequence_parallel=true in a model with "
            "experts (Megatron-Core's MoELayer)."
        )
    if w.sequence_parallel and (w.seq_length // layout.context) % layout.tensor:
        problems.append(
            f"train.seq_length={w.seq_length} / model.context_parallel_size={layout.context} must be a multiple of "
            f"model.tensor_model_parallel_size={layout.tensor} with model.sequence_parallel=true."
        )
    problems += width_problems(w.model, layout.tensor, w.precision)
    return problems + token_problems(w.tokens, w.split_tokens, w.precision)


def _stage_problems(model: Architecture, pipeline: int) -> list[str]:
    """Return why these stages would not train.

    Megatron-Core 0.19 adds up the gradient norm once for each optimizer of a rank, over all ranks, and experts may have
    one of their own; Megatron-Bridge 0.6 logs the losses of routers in tensors whose size depends on the stage having
    one. So ranks with and without experts would wait for each other forever.
    """
    if pipeline <= 1 or not model.pattern:
        return []
    stages = [dict(layers) for layers in model.stage_layers(pipeline)]
    if model.mtp_depths:
        stages[-1]["E"] = stages[-1].get("E", 0) + model.mtp_layers.get("E", 0)
    without = [str(number) for number, layers in enumerate(stages, 1) if not layers.get("E")]
    if not without or len(without) == len(stages):
        return []
    which = f"stage {without[0]} has" if len(without) == 1 else f"stages {', '.join(without[:4])} have"
    return [
        f"model.pipeline_model_parallel_size={pipeline}: {which} no layer of experts (E) and others have, so Megatron "
        "would wait forever in the first step. Take fewer stages, or give each an E: model.hybrid_layer_pattern may "
        "mark them with |."
    ]


def recompute_problems(w: Workload) -> list[str]:
    """Return why Megatron cannot recompute these parts, as TransformerConfig checks when a run starts."""
    problems, key = [], "megatron.model.recompute_modules"
    if w.recompute == FULL and w.graph_impl not in ("none", "full_iteration"):
        problems.append(
            f"megatron.model.recompute_granularity=full does not go with CUDA graphs. Set {' '.join(_NO_GRAPHS)}."
        )
    if "moe" in w.recompute and w.graph_impl == "transformer_engine" and "moe_router" in w.graphs:
        problems.append(
            f"{key} has moe, and megatron.model.cuda_graph_modules has moe_router. Leave out one of them, for example "
            f"with {_graph_words(_graphs_beside(w.recompute, w)[1])[0]}."
        )
    inside = sorted({"moe_act", "expert_fc1", "fused_group_mlp"} & set(w.offloaded))
    if "moe" in w.recompute and inside:
        problems.append(
            f"{key} has moe, and megatron.model.offload_modules has {', '.join(inside)}, which is a part of it. Leave "
            "out one of them."
        )
    again = sorted({"moe_act", "layernorm"} & set(w.recompute))
    if w.precision == DELAYED and again:
        problems.append(
            f"{key} has {', '.join(again)}, which FP8 with delayed scaling cannot recompute. Leave it out, or set "
            "++megatron.mixed_precision=bf16_with_fp8_current_scaling_mixed."
        )
    return problems


def mask_warning(w: Workload) -> str | None:
    """Return why the CUDA graphs of attention do not suit such long samples, or None if they do."""
    if not w.model.layers.get("*") or not w.is_graphed("*") or mask_bytes(w) <= LARGEST_MASK:
        return None
    size, host = mask_bytes(w) / 2**30, 4 * w.seq_length**2 / w.layout.context / 2**30
    return (
        f"the CUDA graph of each attention layer takes a mask of {size:,.1f} GB, and Megatron-Core makes each from "
        f"tensors of {host:,.1f} GB in the host's memory, on every rank. Leave attention out of the graphs: "
        f"{_graph_words(tuple(graph for graph in w.graphs if graph != 'attn'))[0]}"
    )


def make_plan(base: Workload, gpus: int, gpu: GpuKind, only: Mapping[str, int] = NOTHING_FIXED) -> Plan:
    """Return every layout of a run, fastest first.

    Args:
        base: The run as configured; its layout and micro batch are replaced.
        gpus: Number of GPUs.
        gpu: Their kind.
        only: Sizes to keep, by their name in `FIXABLE`.
    """
    plan = Plan()
    least: float | None = None
    for candidate in _candidates(base, gpus, only, plan.refused):
        memory = estimate_memory(candidate)
        if memory.fits(gpu):
            plan.choices.append(Choice(candidate, memory, estimate_step(candidate, gpu), gpu))
        else:
            plan.refused[_TOO_LARGE] += 1
            least = min(memory.total, least or memory.total)
    if least is not None:
        count = plan.refused.pop(_TOO_LARGE)
        has = f"{gpu.title} has {gpu.memory / 2**30:,.0f} GB, some of it for CUDA and NCCL"
        plan.refused[f"too large: at least {least / 2**30:,.0f} GB of tensors; the {has}."] = count
        plan.too_large = True
    plan.choices.sort(key=lambda choice: (choice.step.total, choice.memory.total))
    return plan


def fastest(base: Workload, gpus: int, gpu: GpuKind, only: Mapping[str, int] = NOTHING_FIXED) -> Choice | None:
    """Return the fastest layout of `make_plan`, in less time; None if none fits.

    Args:
        base: The run as configured.
        gpus: Number of GPUs.
        gpu: Their kind.
        only: Sizes to keep, by their name in `FIXABLE`.
    """
    best: Choice | None = None
    for candidate in _candidates(base, gpus, only, Counter()):
        step = estimate_step(candidate, gpu)
        if best is None or step.total < best.step.total:
            memory = estimate_memory(candidate)
            best = Choice(candidate, memory, step, gpu) if memory.fits(gpu) else best
    return best


def fitting_counts(base: Workload, gpus: int, gpu: GpuKind, only: Mapping[str, int], below: bool) -> list[int]:
    """Return the numbers of GPUs next to this one for which a layout fits.

    Powers of two and three times them are tried, if they fill nodes or divide one.

    Args:
        base: The run as configured.
        gpus: A number for which none fits.
        gpu: The kind of GPU.
        only: Sizes to keep, by their name in `FIXABLE`.
        below: Whether to search for a smaller number, too.
    """

    def fits(count: int) -> bool:
        return any(estimate_memory(w).fits(gpu) for w in _candidates(base, count, only, Counter()))

    counts = sorted(factor * 2**power for factor in (1, 3) for power in range(24))
    counts = [n for n in counts if n % gpu.node == 0 or gpu.node % n == 0]
    smaller = [n for n in reversed(counts) if gpus / FARTHEST <= n < gpus] if below else []
    larger = [n for n in counts if gpus < n <= gpus * FARTHEST]
    found = (next(filter(fits, numbers), 0) for numbers in (smaller, larger))
    return [count for count in found if count]


def _candidates(base: Workload, gpus: int, only: Mapping[str, int], refused: Counter[str]) -> Iterator[Workload]:
    """Yield what Megatron accepts, and count the rest in `refused` by its reason."""
    for layout in _layouts(base, gpus, only, refused):
        w = replace(base, layout=layout, sequence_parallel=layout.tensor > 1)
        if problems := [*_divide_problems(w), *rule_problems(w)]:
            refused.update(problems[:1])
            continue
        for candidate in _variants(w, only.get("micro_batch_size"), refused):
            if problems := [*_isolation_problems(candidate), *recompute_problems(candidate)]:
                refused.update(problems[:1])
            else:
                yield candidate


_TOO_LARGE: Final = "memory"


def _layouts(base: Workload, gpus: int, only: Mapping[str, int], refused: Counter[str]) -> Iterator[ParallelLayout]:
    moe = base.model.layers.get("E", 0) > 0

    def sizes(name: str, ranks: int, largest: int) -> list[int]:
        fixed = only.get(name)
        if fixed is None:
            return divisors(ranks, largest)
        if ranks % fixed == 0:
            return [fixed]
        refused[f"{FIXABLE[name]}={fixed} does not divide the {ranks} ranks that are left of {gpus}."] += 1
        return []

    for tensor in sizes("tensor", gpus, LARGEST_TENSOR):
        for pipeline in sizes("pipeline", gpus // tensor, max(base.model.stage_units, 1)):
            for context in sizes("context", gpus // tensor // pipeline, LARGEST_CONTEXT):
                for expert in sizes("expert", gpus // pipeline, base.model.num_moe_experts) if moe else [1]:
                    yield ParallelLayout(gpus, tensor, pipeline, context, expert)


def _divide_problems(w: Workload) -> list[str]:
    """Return why batch and sequence cannot be divided among the ranks."""
    layout = w.layout
    if w.global_batch_size % layout.data:
        return [f"train.global_batch_size={w.global_batch_size} cannot be divided among the data-parallel ranks."]
    if layout.context > 1 and w.seq_length % (2 * layout.context):
        return [f"train.seq_length={w.seq_length} must be a multiple of 2 x model.context_parallel_size."]
    return []


def _variants(w: Workload, fixed: int | None, refused: Counter[str]) -> Iterator[Workload]:
    """Yield a layout with every micro batch, or the fixed one, and every recomputation and dispatcher."""
    samples = w.global_batch_size // w.layout.data
    if fixed is not None and samples % fixed:
        refused[
            f"{FIXABLE['micro_batch_size']}={fixed} does not divide the {samples} samples of a data-parallel rank."
        ] += 1
    powers = [n for n in divisors(samples, LARGEST_MICRO_BATCH) if not n & (n - 1)]
    for micro in powers if fixed is None else [fixed] * (samples % fixed == 0):
        sized = replace(w, micro_batch_size=micro)
        for recompute in recompute_options(sized):
            impl, graphs = _graphs_beside(recompute, sized)
            candidate = replace(sized, recompute=recompute, graphs=graphs, graph_impl=impl)
            for dispatcher in dispatcher_options(candidate):
                yield replace(candidate, dispatcher=dispatcher)


def _graphs_beside(recompute: tuple[str, ...], w: Workload) -> tuple[str, tuple[str, ...]]:
    """Return how CUDA graphs are made and their parts of the model, beside a recomputation and for long samples."""
    if w.graph_impl == "full_iteration":
        return w.graph_impl, w.graphs
    graphs = tuple(g for g in w.graphs if "moe" not in recompute or g not in ("moe_router", "moe_preprocess"))
    graphs = tuple(g for g in graphs if g != "attn" or mask_bytes(w) <= LARGEST_MASK)
    return ("none", ()) if recompute == FULL or (w.graphs and not graphs) else (w.graph_impl, graphs)


def _isolation_problems(w: Workload) -> list[str]:
    """Return why documents cannot be isolated in a layout (`megatron.isolation` refuses the run)."""
    if w.isolated and (w.layout.context > 1 or w.layout.pipeline > 1):
        return ["train.document_boundaries=isolate needs one rank of context and pipeline parallelism."]
    if w.isolated and w.sequence_parallel and w.micro_batch_size > 1:
        return ["train.document_boundaries=isolate with model.sequence_parallel=true needs train.micro_batch_size=1."]
    return []


def recompute_options(w: Workload) -> list[tuple[str, ...]]:
    """Return nothing, what the run asks for, the recipe's parts for a model with experts, and whole layers."""
    selective = [("moe", "layernorm")] if w.model.layers.get("E") else [("mlp", "layernorm")]
    return list(dict.fromkeys([(), w.recompute, *selective, FULL]))


def dispatcher_options(w: Workload) -> tuple[str, ...]:
    """Return the dispatchers that this layout can use."""
    if not w.model.layers.get("E"):
        return (w.dispatcher,)
    if w.layout.expert == 1:
        return ("allgather",) if w.layout.tensor == 1 else ("alltoall",)
    return DISPATCHERS


def divisors(n: int, largest: int) -> list[int]:
    """Return the divisors of `n` up to `largest`, ascending."""
    return [d for d in range(1, min(n, largest) + 1) if n % d == 0]


def override_words(choice: Workload, base: Workload, recipe_dispatcher: str) -> list[str]:
    """Return the override words that make a run use a layout.

    Args:
        choice: The layout.
        base: The run as configured.
        recipe_dispatcher: The dispatcher that the run names without these words.
    """
    layout = choice.layout
    words = [
        f"model.tensor_model_parallel_size={layout.tensor}",
        f"model.pipeline_model_parallel_size={layout.pipeline}",
        f"model.context_parallel_size={layout.context}",
        *([f"model.expert_model_parallel_size={layout.expert}"] if choice.model.layers.get("E") else []),
        f"model.sequence_parallel={str(choice.sequence_parallel).lower()}",
        f"train.micro_batch_size={choice.micro_batch_size}",
    ]
    if choice.recompute != base.recompute:
        words += _recompute_words(choice.recompute)
        if base.recompute == FULL:
            words += ["++megatron.model.recompute_method=null", "++megatron.model.recompute_num_layers=null"]
    if (choice.graph_impl, choice.graphs) != (base.graph_impl, base.graphs):
        words += _graph_words(choice.graphs)
    if choice.model.layers.get("E") and choice.dispatcher not in (recipe_dispatcher, "allgather"):
        words.append(f"++megatron.model.moe_token_dispatcher_type={choice.dispatcher}")
        words += ["++megatron.model.moe_flex_dispatcher_backend=null"] * (choice.dispatcher != "flex")
    return words


def _graph_words(graphs: tuple[str, ...]) -> list[str]:
    return [f"++megatron.model.cuda_graph_modules=[{','.join(graphs)}]"] if graphs else list(_NO_GRAPHS)


def _recompute_words(recompute: tuple[str, ...]) -> list[str]:
    key = "++megatron.model.recompute"
    if recompute == FULL:
        return [f"{key}_granularity=full", f"{key}_method=uniform", f"{key}_num_layers=1", f"{key}_modules=null"]
    if not recompute:
        return [f"{key}_granularity=null", f"{key}_modules=null"]
    return [f"{key}_granularity=selective", f"{key}_modules=[{','.join(recompute)}]"]
