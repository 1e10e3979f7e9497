"""Time of one training step, by part.

The GPU's time of a layer is that of its matrix products, at a share of the peak that grows with their size, plus that
of everything bound by memory bandwidth, as bytes over bandwidth. If the host launches its kernels more slowly, the
host's time counts. Communication counts where nothing hides it.

The constants are rounded, and were chosen by hand: shares of the peak from the profile of the 1.2 B hybrid
(`benchmarks/results/gpu/profile_h100.txt`); bytes, and the host's times, from the points with the role "calibrate"
that `benchmarks/gpu/plan_points.py` measured on an H200; those of FP8 from a recorded run
(`benchmarks/gpu/plan_accuracy.py`), those of communication from data sheets. `benchmarks/gpu/plan_fit.py` fits them
to points without looking at anything else. `docs/how-many-gpus.md` says how far off the predictions are.
"""

from dataclasses import dataclass, field
from typing import Final

from nano3.training.checks.model_stats import layer_flops, mtp_parameters
from nano3.training.cost.gpus import GpuKind
from nano3.training.cost.memory import layer_bytes
from nano3.training.cost.workload import Workload


@dataclass(frozen=True)
class Constants:
    """What was measured. Bytes are those of the forward and backward pass together, per token.

    Attributes:
        products: Share of the peak of large matrix products.
        half_rows: Rows at which a matrix product reaches half of that.
        core: Share of the peak of the core of attention.
        fp8: Share of the FP8 peak, compared to the share of the bf16 peak.
        casts: Bytes per value that a layer's products read, for scaling and casting it to FP8.
        residual: Bytes per unit of the hidden size, of every layer: norms, residuals, casts.
        mamba: Bytes per unit of the inner width: convolution, scan and gated norm.
        attention: Bytes per unit of the width of queries, keys and values.
        dense: Bytes per unit of the hidden layer of a dense MLP or shared expert.
        routed: Bytes per expert of a token and unit of its width and hidden width: sorting, activation.
        alltoall: The same for what the all-to-all dispatcher adds.
        logits: Bytes per unit of the vocabulary.
        gradients: Bytes per local parameter and micro batch: adding gradients.
        optimizer: Bytes per local parameter and step.
        host: Seconds for which the host launches kernels, per layer and micro batch, by kind.
        host_graph: The same if a CUDA graph launches them.
        host_expert: The same per local expert, for its gradients above all: recomputation does not repeat it.
        host_step: Seconds per step for which the GPU waits for the host: between steps, and in the optimizer.
        host_factor: How much slower the host is than that of a dedicated node.
        collective: Share of a link's bandwidth that collectives reach.
        exchange: Share that the dispatch of tokens to experts reaches, by dispatcher.
        hidden: Share of a gradient's communication that the backward pass can hide.
    """

    products: float = 0.70
    half_rows: float = 200.0
    core: float = 0.50
    fp8: float = 0.75
    casts: float = 20.0
    residual: float = 45.0
    mamba: float = 190.0
    attention: float = 14.0
    dense: float = 30.0
    routed: float = 45.0
    alltoall: float = 12.0
    logits: float = 30.0
    gradients: float = 8.0
    optimizer: float = 40.0
    host: dict[str, float] = field(default_factory=lambda: {"M": 2e-3, "*": 2e-3, "-": 1.5e-3, "E": 6e-3})
    host_graph: float = 1e-3
    host_expert: float = 3.3e-4
    host_step: float = 0.05
    host_factor: float = 1.0
    collective: float = 0.75
    exchange: dict[str, float] = field(
        default_factory=lambda: {"allgather": 0.75, "alltoall": 0.45, "flex": 0.6, "none": 1.0}
    )
    hidden: float = 0.8


MEASURED: Final = Constants()


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    Attributes:
        gpu: Kernels of all micro batches of a rank.
        host: What the host's launches add to that.
        exchange: Communication within a micro batch: tensor, context and expert parallelism.
        bubble: Waiting for other pipeline stages.
        gradients: Communication of gradients and weights that nothing hides.
        optimizer: The optimizer's step.
    """

    gpu: float
    host: float
    exchange: float
    bubble: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """The step."""
        return self.gpu + self.host + self.exchange + self.bubble + self.gradients + self.optimizer


def estimate_step(w: Workload, gpu: GpuKind, constants: Constants = MEASURED) -> StepTime:
    """Return the time of one step.

    Args:
        w: The workload.
        gpu: The kind of GPU.
        constants: Those that were measured.
    """
    stages = _stage_times(w, gpu, constants)
    slowest = max(stages, key=lambda stage: stage.total)
    micro = slowest.total
    return StepTime(
        gpu=slowest.kernels * w.micro_batches,
        host=slowest.waiting * w.micro_batches + constants.host_step * constants.host_factor,
        exchange=slowest.exchange * w.micro_batches,
        bubble=sum(stage.total for stage in stages) - micro,
        gradients=_gradient_time(w, micro, gpu, constants),
        optimizer=_optimizer_time(w, gpu, constants),
    )


@dataclass(frozen=True)
class _StageTime:
    """Seconds of one micro batch on one pipeline stage: kernels, what the host adds to them, and communication."""

    kernels: float
    waiting: float
    exchange: float

    @property
    def total(self) -> float:
        return self.kernels + self.waiting + self.exchange


def _stage_times(w: Workload, gpu: GpuKind, c: Constants) -> list[_StageTime]:
    """Return the times of all pipeline stages. The last one also has multi-token prediction and the loss."""
    a, stages = w.model, w.model.stage_layers(w.layout.pipeline)
    kernels = {kind: layer_time(w, kind, gpu, c) for kind in a.run_layers}
    launches = {kind: host_time(w, kind, c) for kind in a.run_layers}
    exchange = {kind: exchange_time(w, kind, gpu, c) for kind in a.run_layers}
    adding, loss = c.gradients * local_parameters(w) / gpu.bandwidth, _loss_time(w, gpu, c)
    found = []
    for index, own in enumerate(stages):
        last = index == len(stages) - 1
        layers = {kind: own.get(kind, 0) + last * (n - a.layers.get(kind, 0)) for kind, n in a.run_layers.items()}
        busy = sum(n * kernels[kind] for kind, n in layers.items()) + adding + loss * last
        waiting = max(_both(busy, sum(n * launches[kind] for kind, n in layers.items())) - busy, 0.0)
        found.append(_StageTime(busy, waiting, sum(n * exchange[kind] for kind, n in layers.items())))
    return found


def _both(kernels: float, launches: float) -> float:
    """Return the time of work that two sides do mostly at once: the longer one, more if they are alike."""
    return float((kernels**4 + launches**4) ** 0.25)


def layer_time(w: Workload, kind: str, gpu: GpuKind, c: Constants) -> float:
    """Return the seconds of the kernels of one layer for one micro batch, forward and backward.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
        gpu: The kind of GPU.
        c: The constants.
    """
    flops, tokens = layer_flops(w.model, w.seq_length)[kind], w.tokens / w.layout.tensor
    peak = gpu.fp8 * c.fp8 if w.fp8 and gpu.fp8 else gpu.bf16
    computed = flops.products * tokens / (peak * c.products * _saturation(w.tokens, c))
    if flops.routed:
        rows = w.routed_tokens / max(w.local_experts, 1)
        computed += flops.routed * tokens / (peak * c.products * _saturation(rows, c))
    computed += flops.core * tokens / (gpu.bf16 * c.core)
    moved = moved_bytes(w, kind, c)
    if w.fp8 and gpu.fp8:
        moved += c.casts * layer_bytes(w, kind) / 2
    moved /= gpu.bandwidth
    # The backward pass costs twice the forward pass; what is recomputed runs forward once more.
    return 3 * computed + moved + w.repeats_forward(kind) * (computed + moved / 3)


def _saturation(rows: float, c: Constants) -> float:
    return rows / (rows + c.half_rows)


def moved_bytes(w: Workload, kind: str, c: Constants) -> float:
    """Return the bytes that the kernels of one layer move that are bound by memory bandwidth.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
        c: The constants.
    """
    a, tokens = w.model, w.tokens / w.layout.tensor
    moved = c.residual * a.hidden_size * w.split_tokens
    if kind == "M":
        return moved + c.mamba * a.mamba_inner * tokens
    if kind == "*":
        return moved + c.attention * (a.num_attention_heads + 2 * a.num_query_groups) * a.kv_channels * tokens
    if kind == "-":
        return moved + c.dense * a.ffn_hidden_size * tokens
    each = c.routed + (c.alltoall if w.dispatcher == "alltoall" else 0.0)
    moved += each * a.moe_router_topk * (a.hidden_size + a.moe_ffn_hidden_size) * tokens
    return moved + c.dense * a.moe_shared_expert_intermediate_size * tokens


def host_time(w: Workload, kind: str, c: Constants) -> float:
    """Return the seconds that the host needs to launch one layer for one micro batch.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
        c: The constants.
    """
    if w.is_graphed(kind):
        return c.host_graph * c.host_factor
    again = 1 + w.repeats_forward(kind) / 3
    # Those of the experts' gradients, most of an expert's, belong to the backward pass, which runs once.
    experts = c.host_expert * w.local_experts if kind == "E" else 0.0
    return (c.host[kind] * again + experts) * c.host_factor


def _loss_time(w: Workload, gpu: GpuKind, c: Constants) -> float:
    """Return the seconds of the output matrix and the loss for one micro batch."""
    a, tokens = w.model, w.tokens / w.layout.tensor
    heads = 1 + a.mtp_depths
    products = heads * 2 * a.hidden_size * a.vocab_size + a.mtp_depths * 4 * a.hidden_size**2
    computed = 3 * products * tokens / (gpu.bf16 * c.products * _saturation(w.tokens, c))
    return computed + heads * c.logits * a.vocab_size * tokens / gpu.bandwidth


def local_parameters(w: Workload) -> float:
    """Return the parameters of one rank, on average over the pipeline stages."""
    a, layout = w.model, w.layout
    matrices = 3 if a.mtp_depths and layout.pipeline > 1 else 2  # the last stage embeds tokens for further predictions
    total = (matrices * a.vocab_size * a.hidden_size + mtp_parameters(a)) / layout.tensor
    for kind, one in a.layer_parameters.items():
        total += a.held_layers[kind] * (one.split / layout.tensor + one.whole + w.local_experts * one.expert)
    return total / layout.pipeline


def _expert_parameters(w: Workload) -> float:
    one = w.model.layer_parameters.get("E")
    return w.model.held_layers["E"] * w.local_experts * one.expert / w.layout.pipeline if one else 0.0


def exchange_time(w: Workload, kind: str, gpu: GpuKind, c: Constants) -> float:
    """Return the seconds of communication of one layer for one micro batch, forward and backward.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
        gpu: The kind of GPU.
        c: The constants.
    """
    a, layout = w.model, w.layout
    seconds = 0.0
    if layout.tensor > 1:  # two collectives forward, three backward, each of all tokens
        sent = 5 * 2 * w.tokens * a.hidden_size * (layout.tensor - 1) / layout.tensor
        seconds += sent / (_link(gpu, layout.tensor, layout.tensor) * c.collective)
    if layout.context > 1:
        seconds += _context_bytes(w, kind) / (_link(gpu, layout.context, gpu.domain // layout.tensor) * c.collective)
    if kind == "E" and layout.expert > 1:
        times = 4 + 2 * (w.repeats_forward(kind))  # dispatch and combine
        sent = times * 2 * w.routed_tokens * a.hidden_size * (layout.expert - 1) / layout.expert
        seconds += sent / (_exchange_link(gpu, layout.expert) * c.exchange[w.dispatcher])
    return seconds


def _context_bytes(w: Workload, kind: str) -> float:
    """Return the bytes that a rank sends for context parallelism in one layer.

    Attention passes keys and values around; Mamba exchanges its input and output (`mamba_context_parallel.py`).
    """
    a, tokens, others = w.model, w.tokens / w.layout.tensor, (w.layout.context - 1) / w.layout.context
    if kind == "*":
        return 3 * 2 * 2 * tokens * (w.layout.context - 1) * a.num_query_groups * a.kv_channels
    return 2 * 2 * tokens * others * (2 * a.mamba_inner + a.mamba_conv) if kind == "M" else 0.0


def _link(gpu: GpuKind, ranks: int, in_domain: int) -> float:
    """Return the bytes/s of a collective over `ranks`, of which `in_domain` at most share an NVLink domain."""
    inside = max(min(ranks, in_domain), 1)
    return gpu.nvlink if inside == ranks else min(gpu.nvlink, gpu.network * inside)


def _exchange_link(gpu: GpuKind, ranks: int) -> float:
    """Return the bytes/s of an exchange of every rank with every other one."""
    if ranks <= gpu.domain:
        return gpu.nvlink
    outside = (ranks - gpu.domain) / ranks
    return 1 / (outside / gpu.network + (1 - outside) / gpu.nvlink)


def _gradient_time(w: Workload, micro: float, gpu: GpuKind, c: Constants) -> float:
    """Return the seconds of communication of gradients and weights that no computation hides.

    Gradients are reduced behind the backward pass of the last micro batch, weights gathered in front of the forward
    pass of the first one.
    """
    layout = w.layout
    experts = _expert_parameters(w)
    groups = (
        (local_parameters(w) - experts, layout.data * layout.context, layout.tensor),
        (experts, max(layout.world // layout.pipeline // layout.expert, 1), layout.expert),
    )
    seconds = 0.0
    for parameters, ranks, apart in groups:
        sent = parameters * (w.gradient_bytes + 2) * (ranks - 1) / ranks
        seconds += sent / (_link(gpu, ranks, gpu.domain // apart) * c.collective)
    return max(seconds - c.hidden * micro, 0.1 * seconds)


def _optimizer_time(w: Workload, gpu: GpuKind, c: Constants) -> float:
    layout = w.layout
    experts = _expert_parameters(w)
    shares = (layout.data * layout.context, max(layout.world / layout.pipeline / layout.expert, 1))
    if not w.sharded_optimizer:
        shares = (1, 1)
    own = (local_parameters(w) - experts) / shares[0] + experts / shares[1]
    return (c.optimizer * own + 6 * local_parameters(w)) / gpu.bandwidth
