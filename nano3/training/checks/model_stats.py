"""Parameters, active parameters and FLOPs of a model, computed from its configuration without building it.

Layer kinds of a hybrid model: M Mamba-2, E mixture of experts, * attention, - dense MLP. A dense model (Qwen3) counts
as one attention and one MLP layer per block. Linear layers have no bias, and norms are RMSNorm.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from nano3.config import PretrainConfig
from nano3.config.pretrain import megatron_section

# Megatron rounds the rows of the embedding up to a multiple of this times the tensor-parallel size.
VOCAB_MULTIPLE = 128
CONV_WIDTH = 4  # of Mamba-2's causal convolution


class RecipeValues(Protocol):
    """The values of a recipe by dotted path; `megatron.schema.Schema` is one."""

    def value(self, path: str, default: Any = None) -> Any:
        """Return the recipe's value of a field, or `default`."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model, named as in Megatron-Bridge. `layers` maps a layer kind to its number of layers."""

    layers: dict[str, int]
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    ffn_hidden_size: int
    gated: bool = False
    qk_norm: bool = False
    tied: bool = False
    mamba_num_heads: int = 0
    mamba_head_dim: int = 0
    mamba_state_dim: int = 0
    mamba_num_groups: int = 0
    mamba_chunk_size: int = 128
    num_moe_experts: int = 0
    moe_router_topk: int = 0
    moe_ffn_hidden_size: int = 0
    moe_shared_expert_intermediate_size: int = 0

    @property
    def mamba_inner(self) -> int:
        """Width of the inner state x of a Mamba layer."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_conv(self) -> int:
        """Channels of the convolution over x, B and C."""
        return self.mamba_inner + 2 * self.mamba_num_groups * self.mamba_state_dim

    @property
    def activation_bytes_per_token(self) -> float:
        """Bytes that all layers keep for the backward pass: inputs and outputs of the matrix products in bf16."""
        n, h = self.layers, self.hidden_size
        attention = (
            2 * h + 2 * self.num_attention_heads * self.kv_channels + 2 * self.num_query_groups * self.kv_channels
        )
        mamba = 2 * h + 4 * self.mamba_inner + 2 * self.mamba_conv
        mlp = 2 * h + (3 if self.gated else 2) * self.ffn_hidden_size
        routed = self.moe_router_topk * (2 * h + 2 * self.moe_ffn_hidden_size)
        moe = 2 * h + routed + 2 * self.moe_shared_expert_intermediate_size
        return 2 * (n.get("*", 0) * attention + n.get("M", 0) * mamba + n.get("-", 0) * mlp + n.get("E", 0) * moe)


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters. `active` counts those that one token uses, including embedding and output matrix."""

    total: int
    active: int
    routed_experts: int


def architecture_from_config(
    config: PretrainConfig, known: RecipeValues | None, vocab_size: int
) -> Architecture | None:
    """Return the architecture of a run, or None if it depends on a recipe that is not recorded.

    A value in `model` overrides one in `megatron.model`, which overrides the recipe's.

    Args:
        config: The run's configuration.
        known: The recipe's values; None for the transformers backend.
        vocab_size: Ids of the tokenizer; the embedding is padded as in Megatron.
    """

    def value(name: str) -> int | None:
        own: int | None = getattr(config.model, name, None)
        if own is not None:
            return own
        override = megatron_section(config, "model").get(name)
        if isinstance(override, bool | int):  # `settings.setting_problems` reports any other type
            return override
        recipe_value: int | None = known.value(f"model.{name}") if known else None
        return recipe_value

    pattern = config.model.hybrid_layer_pattern or (known.value("model.hybrid_layer_pattern") if known else None)
    heads, hidden = value("num_attention_heads"), value("hidden_size")
    blocks = value("num_layers")
    if hidden is None or heads is None or (pattern is None and blocks is None):
        return None
    layers = (
        dict(Counter(c for c in str(pattern).split("/")[0] if c in "M*E-"))
        if pattern
        else {"*": int(blocks or 0), "-": int(blocks or 0)}
    )
    return Architecture(
        layers=layers,
        hidden_size=hidden,
        vocab_size=embedding_rows_for(config, known, vocab_size),
        num_attention_heads=heads,
        num_query_groups=value("num_query_groups") or heads,
        kv_channels=value("kv_channels") or hidden // max(heads, 1),
        ffn_hidden_size=value("ffn_hidden_size") or 4 * hidden,
        gated=bool(value("gated_linear_unit")) and not pattern,
        qk_norm=bool(value("qk_layernorm")) and not pattern,
        tied=bool(value("share_embeddings_and_output_weights")),
        mamba_num_heads=value("mamba_num_heads") or 0,
        mamba_head_dim=value("mamba_head_dim") or 0,
        mamba_state_dim=value("mamba_state_dim") or 0,
        mamba_num_groups=value("mamba_num_groups") or 0,
        mamba_chunk_size=value("mamba_chunk_size") or 128,
        num_moe_experts=value("num_moe_experts") or 0,
        moe_router_topk=value("moe_router_topk") or 0,
        moe_ffn_hidden_size=value("moe_ffn_hidden_size") or 0,
        moe_shared_expert_intermediate_size=value("moe_shared_expert_intermediate_size") or 0,
    )


def divisibility_problems(model: Architecture, tensor: int, expert: int = 1) -> list[str]:
    """Return which sizes of a model Megatron cannot divide among groups or ranks.

    Args:
        model: The architecture, including the values of the recipe.
        tensor: Tensor-parallel size, in ranks.
        expert: Expert-parallel size, in ranks.
    """
    rules = [
        ("*", "num_attention_heads", "model.num_query_groups", model.num_query_groups),
        ("*", "num_attention_heads", "model.tensor_model_parallel_size", tensor),
        ("M", "mamba_num_heads", "model.mamba_num_groups", model.mamba_num_groups),
        ("M", "mamba_num_heads", "model.tensor_model_parallel_size", tensor),
        ("M", "mamba_num_groups", "model.tensor_model_parallel_size", tensor),
        ("E", "num_moe_experts", "model.expert_model_parallel_size", expert),
    ]
    problems = []
    for kind, name, divisor_key, divisor in rules:
        size = getattr(model, name)
        if model.layers.get(kind) and divisor > 0 and size % divisor:
            problems.append(f"model.{name}={size} must be a multiple of {divisor_key}={divisor}.")
    groups = model.num_query_groups
    if model.layers.get("*") and tensor > 0 and groups > 0 and groups % tensor and tensor % groups:
        problems.append(
            f"model.num_query_groups={groups} must be a multiple or a divisor of model.tensor_model_parallel_size="
            f"{tensor}."
        )
    if model.layers.get("E") and model.moe_router_topk > model.num_moe_experts > 0:
        problems.append(
            f"model.moe_router_topk={model.moe_router_topk} must not be greater than model.num_moe_experts="
            f"{model.num_moe_experts}."
        )
    return problems


def embedding_rows_for(config: PretrainConfig, known: RecipeValues | None, vocab_size: int) -> int:
    """Return the rows of the embedding: model.vocab_size, or the tokenizer's size padded as Megatron pads it.

    Args:
        config: The run's configuration.
        known: The recipe's values; None for the transformers backend.
        vocab_size: Ids of the tokenizer.
    """
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    if known is None:
        return padded_vocab_size(vocab_size)
    tensor = config.model.tensor_model_parallel_size or known.value("model.tensor_model_parallel_size", 1)
    multiple = known.value("model.make_vocab_size_divisible_by", VOCAB_MULTIPLE)
    return padded_vocab_size(vocab_size, int(tensor), int(multiple))


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int = 1, multiple: int = VOCAB_MULTIPLE) -> int:
    """Return the embedding rows for `vocab_size` ids, padded as Megatron pads them.

    Args:
        vocab_size: Ids of the tokenizer.
        tensor_parallel_size: Ranks that share the embedding.
        multiple: Megatron's make_vocab_size_divisible_by.
    """
    step = multiple * tensor_parallel_size
    return -(-vocab_size // step) * step


def count_parameters(a: Architecture) -> ParameterCounts:
    """Return the exact parameter counts of Megatron's and Hugging Face's modules for this architecture."""
    h = a.hidden_size
    attention = h * a.kv_channels * (2 * a.num_attention_heads + 2 * a.num_query_groups) + 2 * a.kv_channels * a.qk_norm
    projected = a.mamba_inner + a.mamba_conv + a.mamba_num_heads
    # in_proj, convolution with bias, A and D and dt_bias per head, gated norm, out_proj
    mamba = h * projected + a.mamba_conv * (CONV_WIDTH + 1) + 3 * a.mamba_num_heads + a.mamba_inner + a.mamba_inner * h
    mlp = (3 if a.gated else 2) * h * a.ffn_hidden_size
    expert = 2 * h * a.moe_ffn_hidden_size
    shared = 2 * h * a.moe_shared_expert_intermediate_size
    router = h * a.num_moe_experts
    n = a.layers
    embeddings = a.vocab_size * h * (1 if a.tied else 2)
    norms = h * (sum(n.values()) + 1)
    fixed = n.get("*", 0) * attention + n.get("M", 0) * mamba + n.get("-", 0) * mlp + n.get("E", 0) * (shared + router)
    experts = n.get("E", 0) * a.num_moe_experts * expert
    used = n.get("E", 0) * a.moe_router_topk * expert
    rest = embeddings + norms + fixed
    return ParameterCounts(rest + experts, rest + used, experts)


def flops_per_token(a: Architecture, seq_length: int) -> float:
    """Return the floating-point operations of forward and backward pass per token; causal attention counts half.

    A matrix product of [1, k] with [k, n] costs 2kn, and the backward pass twice the forward pass. The scan is the
    chunked form of Mamba-2 (Dao and Gu, 2024): within a chunk, C·B and the product with x over half the chunk, plus
    the states into and out of the chunk.

    Args:
        a: The architecture.
        seq_length: Tokens per sample.
    """
    h, n = a.hidden_size, a.layers
    heads = a.num_attention_heads * a.kv_channels
    attention = 2 * h * a.kv_channels * (2 * a.num_attention_heads + 2 * a.num_query_groups) + 2 * heads * seq_length
    projected = a.mamba_inner + a.mamba_conv + a.mamba_num_heads
    chunk = min(a.mamba_chunk_size, seq_length)
    scan = chunk * (a.mamba_num_groups * a.mamba_state_dim + a.mamba_inner) + 4 * a.mamba_inner * a.mamba_state_dim
    mamba = 2 * h * (projected + a.mamba_inner) + 2 * a.mamba_conv * CONV_WIDTH + scan
    mlp = 2 * (3 if a.gated else 2) * h * a.ffn_hidden_size
    width = a.moe_router_topk * a.moe_ffn_hidden_size + a.moe_shared_expert_intermediate_size
    moe = 4 * h * width + 2 * h * a.num_moe_experts
    forward = n.get("*", 0) * attention + n.get("M", 0) * mamba + n.get("-", 0) * mlp + n.get("E", 0) * moe
    return 3.0 * (forward + 2 * h * a.vocab_size)
