"""Group `model`: architecture and parallelism, named as in Megatron-Bridge's model provider."""

from dataclasses import dataclass
from typing import Final

# The keys of multi-token prediction. Until they became keys they were set under `megatron.model`, which is still read.
MTP_KEYS: Final = (
    "mtp_num_layers",
    "mtp_hybrid_override_pattern",
    "mtp_use_repeated_layer",
    "mtp_loss_scaling_factor",
)


def further_patterns(pattern: str | None) -> list[str]:
    """Return the parts of a hybrid pattern after `/`: for each further token, the layers that predict it."""
    return (pattern or "").split("/")[1:]


@dataclass
class ModelConfig:
    """Architecture and parallelism of the model, for both backends.

    With backend=megatron, null keeps the recipe's value. With backend=transformers, the whole architecture must be set.
    nano3/training/hf/model.py maps the names to those of Hugging Face.
    """

    # Layer types in order, one character per layer: M Mamba-2, E mixture of experts, * attention, - dense MLP.
    hybrid_layer_pattern: str | None = None
    # Width of the residual stream.
    hidden_size: int | None = None
    # Hidden width of a dense MLP layer.
    ffn_hidden_size: int | None = None
    # Number of query heads of an attention layer.
    num_attention_heads: int | None = None
    # Number of key/value heads of an attention layer (grouped-query attention).
    num_query_groups: int | None = None
    # Width of one attention head.
    kv_channels: int | None = None
    # Number of heads of a Mamba-2 layer.
    mamba_num_heads: int | None = None
    # Width of one Mamba-2 head.
    mamba_head_dim: int | None = None
    # Size of the Mamba-2 state.
    mamba_state_dim: int | None = None
    # Number of Mamba-2 groups that share B and C.
    mamba_num_groups: int | None = None
    # Chunk length of the Mamba-2 scan in tokens. It affects speed only, not results.
    mamba_chunk_size: int | None = None
    # Number of routed experts per mixture-of-experts layer.
    num_moe_experts: int | None = None
    # Number of routed experts per token.
    moe_router_topk: int | None = None
    # Hidden width of a routed expert.
    moe_ffn_hidden_size: int | None = None
    # Hidden width of the shared expert, which processes every token.
    moe_shared_expert_intermediate_size: int | None = None
    # Scaling factor of the routed experts' output.
    moe_router_topk_scaling_factor: float | None = None
    # Step size of the router bias that balances the load of the experts without an auxiliary loss.
    moe_router_bias_update_rate: float | None = None
    # Standard deviation of the initial weights.
    init_method_std: float | None = None
    # Epsilon of RMSNorm.
    layernorm_epsilon: float | None = None
    # Use one matrix for the embedding and the output layer.
    share_embeddings_and_output_weights: bool | None = None
    # Multi-token prediction (backend=megatron): number of tokens after the next one that each position predicts.
    # 0 turns it off in a recipe that has it.
    mtp_num_layers: int | None = None
    # Layer types of multi-token prediction, for one of these tokens.
    mtp_hybrid_override_pattern: str | None = None
    # Use the same layers of multi-token prediction for each of these tokens.
    mtp_use_repeated_layer: bool | None = None
    # Weight of the mean loss of multi-token prediction.
    mtp_loss_scaling_factor: float | None = None
    # Number of embedding rows; null uses the vocabulary size of the data, padded the way Megatron pads it.
    vocab_size: int | None = None

    # Tensor parallelism (backend=megatron): number of ranks that split each weight matrix.
    tensor_model_parallel_size: int | None = None
    # Pipeline parallelism (backend=megatron): number of ranks that split the layers.
    pipeline_model_parallel_size: int | None = None
    # Context parallelism (backend=megatron): number of ranks that split each sequence.
    context_parallel_size: int | None = None
    # Expert parallelism (backend=megatron): number of ranks that split the experts.
    expert_model_parallel_size: int | None = None
    # Sequence parallelism (backend=megatron): split the sequence dimension of norms and
    # dropout over the tensor-parallel ranks.
    sequence_parallel: bool | None = None
