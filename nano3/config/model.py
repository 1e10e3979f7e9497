"""Group `model`: architecture and parallelism, named as in Megatron-Bridge's model provider.

A value of null leaves a field to the recipe (backend=megatron); backend=transformers needs all of the architecture.
"""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """One description for both backends; the mapping to Hugging Face names is in nano3/training/hf_model.py."""

    # Layer kinds in order: M Mamba-2, E mixture of experts, * attention, - dense MLP.
    hybrid_layer_pattern: str | None = None
    # Width of the residual stream.
    hidden_size: int | None = None
    # Width of a dense MLP layer.
    ffn_hidden_size: int | None = None
    # Attention: query heads, key/value groups, width of one head.
    num_attention_heads: int | None = None
    num_query_groups: int | None = None
    kv_channels: int | None = None
    # Mamba-2: heads, width of one head, state size, groups, and chunk length of the scan (speed only, same results).
    mamba_num_heads: int | None = None
    mamba_head_dim: int | None = None
    mamba_state_dim: int | None = None
    mamba_num_groups: int | None = None
    mamba_chunk_size: int | None = None
    # Mixture of experts: routed experts, experts per token, width of a routed and of the shared expert.
    num_moe_experts: int | None = None
    moe_router_topk: int | None = None
    moe_ffn_hidden_size: int | None = None
    moe_shared_expert_intermediate_size: int | None = None
    # Factor on the routed experts' output, and step of the bias that balances their load without an auxiliary loss.
    moe_router_topk_scaling_factor: float | None = None
    moe_router_bias_update_rate: float | None = None
    # Standard deviation of the initial weights; epsilon of RMSNorm.
    init_method_std: float | None = None
    layernorm_epsilon: float | None = None
    # Use one matrix for embedding and output.
    share_embeddings_and_output_weights: bool | None = None
    # Rows of the embedding; null takes the data's vocabulary, padded as Megatron pads it.
    vocab_size: int | None = None

    # Parallelism (backend=megatron): tensor, pipeline, context and expert parallel sizes.
    tensor_model_parallel_size: int | None = None
    pipeline_model_parallel_size: int | None = None
    context_parallel_size: int | None = None
    expert_model_parallel_size: int | None = None
    # Split the sequence dimension of norms and dropout over the tensor-parallel ranks.
    sequence_parallel: bool | None = None
