"""Memory of one GPU, by part, from the sizes of the tensors that Megatron keeps.

Parameters follow `theoretical_memory_usage.py` of Megatron-Core 0.19.2, with the bytes per parameter that the recipe
asks for. Its formula for activations (Korthikanti et al., 2022, table 2) knows neither Mamba nor routed experts, so
each layer is counted here by the tensors that its modules save for the backward pass. The factors beside these counts
are 1 where nothing else was measured; they were chosen by hand for the points of `benchmarks/gpu/plan_points.py`
(`benchmarks/results/gpu/plan_points_h200.json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nano3.training.checks.model_stats import Architecture, mtp_parameters
from nano3.training.cost.gpus import GpuKind
from nano3.training.cost.workload import FULL, Workload

# Measured over counted bytes of activations that a layer keeps, by kind.
KEPT_FACTOR: Final[dict[str, float]] = {"M": 1.1, "*": 1.0, "-": 1.0, "E": 1.0}
# Bytes per token and id of the logits: bf16, as fp32, and again after subtracting their maximum. Seen in an
# out-of-memory error of Megatron-Core 0.19 (benchmarks/results/gpu/recipe_h100.txt).
LOGIT_BYTES: Final = 10
# The same of a depth of multi-token prediction until its backward pass: the softmax as fp32. Not measured.
MTP_LOGIT_BYTES: Final = 4
# Temporary tensors of the backward pass of a layer over counted bytes of the activations inside it, by kind; and with
# recomputation those of its second forward pass (tune_h200_mbs4_recipe.jsonl).
WORKING_FACTOR: Final[dict[str, float]] = {"M": 1.0, "*": 1.0, "-": 1.0, "E": 1.0}
AGAIN_FACTOR: Final[dict[str, float]] = {"M": 1.0, "*": 1.0, "-": 1.0, "E": 2.2}
# What the CUDA graphs of one layer keep between steps, over the layer's input: tensors that they read and write.
GRAPH_FACTOR: Final[dict[str, float]] = {"M": 1.25, "*": 1.4, "-": 2.0, "E": 2.0}
# Activations kept with FP8, compared to bf16 (benchmarks/results/gpu/tune_h200_mbs16_fp8.jsonl and _no_recompute).
FP8_FACTOR: Final = 0.9
# Bytes that every rank needs besides: buffers of the optimizer, cuBLAS workspaces.
FIXED_BYTES: Final = 0.4 * 2**30
# Outside of torch's tensors: CUDA context, NCCL, libraries; and what the allocator cannot use, as a share.
OUTSIDE_BYTES: Final = 3.5 * 2**30
FRAGMENTED: Final = 0.03


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the peak of a step, as torch.cuda.max_memory_allocated counts them.

    Attributes:
        weights: Parameters in bf16.
        gradients: Their gradients.
        optimizer: Master weights and moments.
        activations: What the layers keep for the backward pass.
        temporary: The most that the loss with its logits, the backward pass of one layer, or the step of the optimizer
            needs besides.
        other: Buffers of a fixed size, and those of CUDA graphs.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    temporary: float
    other: float = FIXED_BYTES

    @property
    def total(self) -> float:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.temporary + self.other

    def fits(self, gpu: GpuKind) -> bool:
        """Return whether a GPU has this much, with what is outside of tensors."""
        return self.total * (1 + FRAGMENTED) + OUTSIDE_BYTES <= gpu.memory


def estimate_memory(w: Workload) -> Memory:
    """Return the memory of the GPU that needs most: on the first pipeline stage, the last one, or one between them."""
    stages = w.model.stage_layers(w.layout.pipeline)
    # Of the stages with the same layers, the earliest one keeps most micro batches.
    tried = {0, len(stages) - 1, *{tuple(sorted(stages[i].items())): i for i in reversed(range(len(stages)))}.values()}
    return max((_stage(w, index) for index in sorted(tried)), key=lambda memory: memory.total)


def _stage(w: Workload, index: int) -> Memory:
    a, layout = w.model, w.layout
    stages = a.stage_layers(layout.pipeline)
    layers, first, last = stages[index], index == 0, index == len(stages) - 1
    dense, experts = _local_parameters(w, layers, first, last)
    replicas = layout.data * layout.context
    expert_replicas = max(layout.world / layout.pipeline / layout.expert, 1)
    shares = (replicas, expert_replicas) if w.sharded_optimizer else (1, 1)
    kept = {kind: kept_bytes(w, kind) for kind in a.run_layers}
    # A stage begins a micro batch for itself and every later stage before it finishes one.
    in_flight = min(len(stages) - index, w.micro_batches)
    activations = sum(n * kept[kind] for kind, n in layers.items()) * in_flight
    if last:
        activations += mtp_kept_bytes(w) * a.mtp_depths
    logits = _loss_bytes(w) if last else 0.0
    own = dense / shares[0] + experts / shares[1]
    # The optimizer's step copies bf16 gradients to fp32 for the master weights (`DistributedOptimizer`,
    # `_copy_model_grads_to_main_grads`), when activations are gone.
    update = 4 * own if w.gradient_bytes < 4 else 0.0
    graphs = sum(n * graph_bytes(w, kind) for kind, n in layers.items())
    return Memory(
        weights=2 * (dense + experts),
        gradients=w.gradient_bytes * (dense + experts),
        optimizer=w.optimizer_bytes * own,
        activations=activations,
        temporary=max(_temporary_bytes(w, logits), update - activations),
        other=FIXED_BYTES + graphs,
    )


def _loss_bytes(w: Workload) -> float:
    """Return the bytes of the logits. Those of each depth of multi-token prediction wait for the backward pass."""
    a = w.model
    logits = w.tokens * a.vocab_size * (LOGIT_BYTES + MTP_LOGIT_BYTES * a.mtp_depths) / w.layout.tensor
    return logits + 4 * w.split_tokens * a.hidden_size


def _temporary_bytes(w: Workload, logits: float) -> float:
    """Return the bytes that are needed for a moment: by the loss, or by the backward pass of one layer.

    CUDA graphs have a pool of their own, which nothing else uses while they are idle.
    """
    working = {kind: working_bytes(w, kind) for kind in w.model.run_layers}
    pool = max([working[kind] for kind in working if w.is_graphed(kind)], default=0.0)
    return pool + max([logits, *(size for kind, size in working.items() if not w.is_graphed(kind))])


def _local_parameters(w: Workload, layers: Mapping[str, float], first: bool, last: bool) -> tuple[float, float]:
    """Return the parameters of one rank of a pipeline stage: without and of routed experts."""
    a, layout = w.model, w.layout
    one = a.layer_parameters

    def parameters(layers: Mapping[str, float]) -> tuple[float, float]:
        dense = sum(n * (one[kind].split / layout.tensor + one[kind].whole) for kind, n in layers.items())
        return dense, sum(n * w.local_experts * one[kind].expert for kind, n in layers.items())

    dense, experts = parameters(layers)
    if last:
        extra = parameters({kind: n - a.layers.get(kind, 0) for kind, n in a.held_layers.items()})
        dense, experts = dense + extra[0] + mtp_parameters(a) / layout.tensor, experts + extra[1]
    ends = 1 if a.tied and layout.pipeline == 1 else first + last
    # Multi-token prediction embeds the tokens, too: HybridModel gives its stage an embedding of its own.
    ends += last and not first and a.mtp_depths > 0
    return dense + ends * a.vocab_size * a.hidden_size / layout.tensor, experts


def _state_bytes(w: Workload) -> float:
    """Return the bytes of the state between two layers, of one micro batch on one rank, in bf16."""
    return 2 * w.split_tokens * w.model.hidden_size


def kept_bytes(w: Workload, kind: str) -> float:
    """Return the bytes that one layer keeps of one micro batch for the backward pass.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
    """
    entry = _state_bytes(w)  # the layer's input
    if w.recompute == FULL:
        return entry
    norm = 0.0 if "layernorm" in w.recompute and kind != "M" else entry
    inside = layer_bytes(w, kind)
    if kind == "E" and "moe" in w.recompute:
        inside = norm = 0.0
    return (entry + norm + inside) * KEPT_FACTOR[kind] * (FP8_FACTOR if w.fp8 else 1)


def graph_bytes(w: Workload, kind: str) -> float:
    """Return the bytes that the CUDA graphs of one layer keep between steps.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
    """
    if not w.is_graphed(kind):
        return 0.0
    return _state_bytes(w) * GRAPH_FACTOR[kind] + (mask_bytes(w) if kind == "*" else 0.0)


def mask_bytes(w: Workload) -> float:
    """Return the bytes of the mask that the CUDA graph of one attention layer takes.

    `get_layer_static_inputs` makes it even if attention is causal and has none. It is built on the host, in fp32.
    """
    return w.micro_batch_size * w.seq_length**2 / w.layout.context


def mtp_kept_bytes(w: Workload) -> float:
    """Return the bytes that one depth of multi-token prediction keeps of one micro batch, with its layers.

    Megatron-Core's `MultiTokenPredictionLayer` saves six states of hidden size: the inputs of the norms of embedding
    and state, both side by side for the projection, the input of the last norm, and the result, which is copied beside
    those of the other depths for the output matrix. Recomputing whole layers keeps embedding, state and result.
    """
    state = _state_bytes(w)
    if w.recompute == FULL:
        return 3 * state
    return 6 * state + sum(n * kept_bytes(w, kind) for kind, n in w.model.mtp_layers.items())


def layer_bytes(w: Workload, kind: str) -> float:
    """Return the bytes of the tensors that the modules of one layer save, besides its input and its norm's output.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
    """
    a: Architecture = w.model
    if kind == "M":
        # in_proj's output, the scan's output, and the gated norm's output; the convolution is computed again
        width = a.mamba_inner + a.mamba_conv + a.mamba_num_heads + 2 * a.mamba_inner
    elif kind == "*":
        width = 2 * a.num_attention_heads * a.kv_channels + 2 * a.num_query_groups * a.kv_channels
    elif kind == "-":
        width = (3 if a.gated else 2) * a.ffn_hidden_size
    else:
        # for each expert of a token its input, and the hidden layer before and after the activation; the shared expert
        width = a.moe_router_topk * (a.hidden_size + 2 * a.moe_ffn_hidden_size)
        width += 2 * a.moe_shared_expert_intermediate_size
    return 2 * w.tokens / w.layout.tensor * width


def working_bytes(w: Workload, kind: str) -> float:
    """Return the bytes that the backward pass of one layer needs while it runs, besides what was kept.

    Args:
        w: The workload.
        kind: Layer kind: M, E, * or -.
    """
    again = AGAIN_FACTOR[kind] * w.repeats_forward(kind)
    return layer_bytes(w, kind) * (WORKING_FACTOR[kind] + again)
