"""Parameters, active parameters and FLOPs of a model, computed from its configuration without building it.

Layer kinds of a hybrid model: M Mamba-2, E mixture of experts, * attention, - dense MLP. A dense model (Qwen3) counts
as one attention and one MLP layer per block. Linear layers have no bias, and norms are RMSNorm.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol

from nano3.config import ModelConfig, PretrainConfig
from nano3.config.model import further_patterns
from nano3.config.pretrain import megatron_section

# Megatron rounds the rows of the embedding up to a multiple of this times the tensor-parallel size.
VOCAB_MULTIPLE = 128
LAYER_KINDS = "M*E-"  # as in a hybrid pattern
MOST_STAGES = 1024  # pipeline stages of a model without a pattern, so that absurd numbers take no memory
CONV_WIDTH = 4  # of Mamba-2's causal convolution
# Fields of Megatron's model with which pipeline stages get unequal numbers of layers.
UNEVEN_STAGES = (
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "pipeline_model_parallel_layout",
)


class RecipeValues(Protocol):
    """The values of a recipe by dotted path; `megatron.schema.Schema` is one."""

    def value(self, path: str, default: Any = None) -> Any:
        """Return the recipe's value of a field, or `default`."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model, named as in Megatron-Bridge.

    `layers` maps a layer kind to its number of layers, and `pattern` is the main stack of a hybrid pattern. `stages` is
    the number of pipeline stages that it marks with |, or 0. Pipeline stages divide `stage_units` evenly: layers,
    blocks of a dense model, or `|` segments of the pattern; 0 if the stages are chosen otherwise. Multi-token
    prediction adds `mtp_depths` times `mtp_layers`, with weights of their own unless `mtp_shared`.
    """

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
    stage_units: int = 0
    stages: int = 0
    mtp_depths: int = 0
    mtp_layers: dict[str, int] = field(default_factory=dict)
    mtp_shared: bool = False
    pattern: str = ""

    # Cached, because `nano3 plan` asks for them in each of thousands of layouts.
    @cached_property
    def held_layers(self) -> dict[str, int]:
        """Number of layers with weights of their own by kind, with those of multi-token prediction."""
        return _sum_layers(
            self.layers, self.mtp_layers, min(self.mtp_depths, 1) if self.mtp_shared else self.mtp_depths
        )

    @cached_property
    def run_layers(self) -> dict[str, int]:
        """Number of layers that a token passes by kind, with those of multi-token prediction."""
        return _sum_layers(self.layers, self.mtp_layers, self.mtp_depths)

    @cached_property
    def layer_parameters(self) -> "dict[str, LayerParameters]":
        """Parameters of one layer of each kind that the model has."""
        return _layer_parameters(self)

    def stage_layers(self, pipeline: int) -> Sequence[Mapping[str, float]]:
        """Return the number of layers of each pipeline stage by kind, without those of multi-token prediction.

        Args:
            pipeline: Number of stages; one that the layers cannot be divided among is reported by other checks.
        """
        if pipeline > 1 and self.pattern and self.stage_units and self.stage_units % pipeline == 0:
            return _stage_layers(self.pattern, pipeline)
        stages = max(min(pipeline, sum(self.layers.values()), MOST_STAGES), 1)
        return [{kind: n / stages for kind, n in self.layers.items()}] * stages

    @property
    def mamba_inner(self) -> int:
        """Width of the inner state x of a Mamba layer."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_conv(self) -> int:
        """Channels of the convolution over x, B and C."""
        return self.mamba_inner + 2 * self.mamba_num_groups * self.mamba_state_dim


@cache
def _stage_layers(pattern: str, pipeline: int) -> Sequence[Mapping[str, float]]:
    parts = pattern.split("|") if "|" in pattern else [c for c in pattern if c in LAYER_KINDS]
    each = len(parts) // pipeline
    return [count_kinds("".join(parts[i : i + each])) for i in range(0, len(parts), each)]


def _sum_layers(main: dict[str, int], more: dict[str, int], times: int) -> dict[str, int]:
    return {
        kind: main.get(kind, 0) + times * more.get(kind, 0) for kind in [*main, *(k for k in more if k not in main)]
    }


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
    layers = count_kinds(str(pattern)) if pattern else {"*": int(blocks or 0), "-": int(blocks or 0)}
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
        stage_units=_stage_units(config, pattern, blocks),
        pattern=str(pattern or "").split("/")[0],
        stages=count_stages(str(pattern or "")),
        **_multi_token_prediction(config, known, pattern),
    )


def _multi_token_prediction(config: PretrainConfig, known: RecipeValues | None, pattern: Any) -> dict[str, Any]:
    """Return the layers of multi-token prediction: of a hybrid pattern's parts after /, or of the keys of the model."""
    parts = further_patterns(config.model.hybrid_layer_pattern)
    in_pattern = {"mtp_num_layers": len(parts), "mtp_hybrid_override_pattern": parts[0]} if parts else {}
    free = {**in_pattern, **megatron_section(config, "model")}
    names = ("mtp_num_layers", "mtp_hybrid_override_pattern", "mtp_use_repeated_layer")
    depths, layers, shared = (model_value(config.model, free, known, name) for name in names)
    if known is None or not pattern or not isinstance(depths, int) or depths < 1 or not isinstance(layers, str):
        return {}
    return {"mtp_depths": depths, "mtp_layers": count_kinds(layers), "mtp_shared": bool(shared)}


def model_value(model: ModelConfig, free: Mapping[str, Any], known: RecipeValues | None, name: str) -> Any:
    """Return a setting of a model: the typed one, else that of `megatron.model`, else the recipe's.

    Args:
        model: The typed section.
        free: The section `megatron.model`.
        known: The recipe's values, None if there are none.
        name: The setting, which is a key of the typed section.
    """
    own = getattr(model, name)
    if own is not None or name in free:
        return own if own is not None else free[name]
    return known.value(f"model.{name}") if known else None


def _stage_units(config: PretrainConfig, pattern: Any, blocks: int | None) -> int:
    if any(megatron_section(config, "model").get(key) for key in UNEVEN_STAGES):
        return 0
    if not pattern:
        return int(blocks or 0)
    return count_stages(str(pattern)) or count_layers(str(pattern))


def count_kinds(pattern: str) -> dict[str, int]:
    """Return the number of layers of each kind in the main stack of a hybrid pattern.

    `|` only separates pipeline stages, and `/` ends the main stack.
    """
    return dict(Counter(c for c in pattern.split("/")[0] if c in LAYER_KINDS))


def count_layers(pattern: str) -> int:
    """Return the number of layers in the main stack of a hybrid pattern."""
    return sum(count_kinds(pattern).values())


def count_stages(pattern: str) -> int:
    """Return the number of pipeline stages that a hybrid pattern marks with `|` in its main stack; 0 without any."""
    cuts = pattern.split("/")[0].count("|")
    return cuts + 1 if cuts else 0


def divisibility_problems(
    model: Architecture, tensor: int, expert: int = 1, pipeline: int = 1, context: int = 1
) -> list[str]:
    """Return which sizes of a model Megatron cannot divide among groups or ranks.

    Args:
        model: The architecture, including the values of the recipe.
        tensor: Tensor-parallel size, in ranks.
        expert: Expert-parallel size, in ranks.
        pipeline: Pipeline-parallel size, in ranks.
        context: Context-parallel size, in ranks.
    """
    rules = [
        ("*", "num_attention_heads", "model.num_query_groups", model.num_query_groups),
        ("*", "num_attention_heads", "model.tensor_model_parallel_size", tensor),
        ("M", "mamba_num_heads", "model.mamba_num_groups", model.mamba_num_groups),
        ("M", "mamba_num_heads", "model.tensor_model_parallel_size", tensor),
        ("M", "mamba_num_groups", "model.tensor_model_parallel_size", tensor),
        ("E", "num_moe_experts", "model.expert_model_parallel_size", expert),
        ("E", "moe_shared_expert_intermediate_size", "model.tensor_model_parallel_size", tensor),
        ("-", "ffn_hidden_size", "model.tensor_model_parallel_size", tensor),
    ]
    problems = []
    for kind, name, divisor_key, divisor in rules:
        size = getattr(model, name)
        if model.layers.get(kind) and divisor > 0 and size % divisor:
            problems.append(f"model.{name}={size} must be a multiple of {divisor_key}={divisor}.")
    if tensor > 0 and model.vocab_size % tensor:
        problems.append(
            f"model.vocab_size={model.vocab_size} must be a multiple of model.tensor_model_parallel_size={tensor}."
        )
    if expert > 1 and not model.held_layers.get("E"):
        problems.append(f"model.expert_model_parallel_size={expert} needs a model with experts; set it to 1.")
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
    if pipeline > 1 and not model.stages and model.stage_units % pipeline:
        problems.append(
            f"model.pipeline_model_parallel_size={pipeline} must divide the model's {model.stage_units} layers. A "
            "hybrid pattern may mark the stages with | instead."
        )
    return problems + _context_problems(model, tensor, context)


def _context_problems(model: Architecture, tensor: int, context: int) -> list[str]:
    """Return why context parallelism cannot split Mamba's heads and groups (Megatron's mamba_context_parallel.py)."""
    heads, groups = model.mamba_num_heads // max(tensor, 1), model.mamba_num_groups // max(tensor, 1)
    if not model.layers.get("M") or context <= 1 or not heads or not groups:
        return []
    problems = []
    if heads % context:
        problems.append(
            f"model.mamba_num_heads={model.mamba_num_heads} must be a multiple of model.tensor_model_parallel_size x "
            f"model.context_parallel_size = {tensor} x {context}."
        )
    if groups % context and context % groups:
        problems.append(
            f"model.mamba_num_groups={model.mamba_num_groups} / model.tensor_model_parallel_size={tensor} must be a "
            f"multiple or a divisor of model.context_parallel_size={context}."
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


@dataclass(frozen=True)
class LayerParameters:
    """Numbers of parameters of one layer, without its routed experts except in `expert`.

    `split` counts those that tensor parallelism divides, `whole` those that every rank holds, and `expert` those of one
    routed expert.
    """

    split: int
    whole: int
    expert: int = 0


def _layer_parameters(a: Architecture) -> dict[str, LayerParameters]:
    h = a.hidden_size
    attention = h * a.kv_channels * (2 * a.num_attention_heads + 2 * a.num_query_groups)
    projected = a.mamba_inner + a.mamba_conv + a.mamba_num_heads
    # in_proj, convolution with bias, A and D and dt_bias per head, gated norm, out_proj
    mamba = h * projected + a.mamba_conv * (CONV_WIDTH + 1) + 3 * a.mamba_num_heads + a.mamba_inner + a.mamba_inner * h
    shared = 2 * h * a.moe_shared_expert_intermediate_size
    of_kind = {
        "*": LayerParameters(attention, h + 2 * a.kv_channels * a.qk_norm),
        "M": LayerParameters(mamba, h),
        "-": LayerParameters((3 if a.gated else 2) * h * a.ffn_hidden_size, h),
        "E": LayerParameters(shared, h + h * a.num_moe_experts, 2 * h * a.moe_ffn_hidden_size),
    }
    return {kind: of_kind[kind] for kind in a.held_layers if kind in of_kind}


def mtp_parameters(a: Architecture) -> int:
    """Return the parameters of multi-token prediction besides its layers: projection of two states, and three norms."""
    copies = min(a.mtp_depths, 1) if a.mtp_shared else a.mtp_depths
    return copies * (2 * a.hidden_size**2 + 3 * a.hidden_size)


def count_parameters(a: Architecture) -> ParameterCounts:
    """Return the exact parameter counts of Megatron's and Hugging Face's modules for this architecture."""
    h = a.hidden_size
    rest = a.vocab_size * h * (1 if a.tied else 2) + h + mtp_parameters(a)  # embeddings and the last norm
    experts = used = 0
    for kind, one in a.layer_parameters.items():
        n = a.held_layers[kind]
        rest += n * (one.split + one.whole)
        experts += n * a.num_moe_experts * one.expert
        used += n * a.moe_router_topk * one.expert
    return ParameterCounts(rest + experts, rest + used, experts)


@dataclass(frozen=True)
class LayerFlops:
    """Floating-point operations of the forward pass of one layer per token, by what bounds their speed.

    `products` are matrix products with weights, `routed` those of routed experts, `core` the core of attention, and
    `scan` Mamba's convolution and scan.
    """

    products: float = 0
    routed: float = 0
    core: float = 0
    scan: float = 0

    @property
    def total(self) -> float:
        """All operations."""
        return self.products + self.routed + self.core + self.scan


def layer_flops(a: Architecture, seq_length: int) -> dict[str, LayerFlops]:
    """Return the operations of one layer of each kind; causal attention counts half.

    A matrix product of [1, k] with [k, n] costs 2kn. The scan is the chunked form of Mamba-2 (Dao and Gu, 2024): within
    a chunk, C·B and the product with x over half the chunk, plus the states into and out of the chunk.

    Args:
        a: The architecture.
        seq_length: Tokens per sample.
    """
    h = a.hidden_size
    projected = a.mamba_inner + a.mamba_conv + a.mamba_num_heads
    chunk = min(a.mamba_chunk_size, seq_length)
    scan = chunk * (a.mamba_num_groups * a.mamba_state_dim + a.mamba_inner) + 4 * a.mamba_inner * a.mamba_state_dim
    return {
        "*": LayerFlops(
            products=2 * h * a.kv_channels * (2 * a.num_attention_heads + 2 * a.num_query_groups),
            core=2 * a.num_attention_heads * a.kv_channels * seq_length,
        ),
        "M": LayerFlops(products=2 * h * (projected + a.mamba_inner), scan=2 * a.mamba_conv * CONV_WIDTH + scan),
        "-": LayerFlops(products=2 * (3 if a.gated else 2) * h * a.ffn_hidden_size),
        "E": LayerFlops(
            products=4 * h * a.moe_shared_expert_intermediate_size + 2 * h * a.num_moe_experts,
            routed=4 * h * a.moe_router_topk * a.moe_ffn_hidden_size,
        ),
    }


def flops_per_token(a: Architecture, seq_length: int) -> float:
    """Return the floating-point operations of forward and backward pass per token.

    The backward pass costs twice the forward pass (`layer_flops`).

    Args:
        a: The architecture.
        seq_length: Tokens per sample.
    """
    one = layer_flops(a, seq_length)
    forward = sum(n * one[kind].total for kind, n in a.run_layers.items() if kind in one)
    forward += a.mtp_depths * 4 * a.hidden_size**2  # the projection of hidden state and embedding
    return 3.0 * (forward + (1 + a.mtp_depths) * 2 * a.hidden_size * a.vocab_size)
