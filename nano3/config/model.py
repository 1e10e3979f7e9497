"""Group `model`: architecture and parallelism, named as in Megatron-Bridge's model provider.

A value of null leaves a field to the recipe (backend=megatron); backend=transformers needs all of the architecture.
"""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """One description for both backends; the mapping to Hugging Face names is in nano3/training/hf/model.py."""

    # Layer kinds in order: M Mamba-2, E mixture of experts, * attention, - dense MLP.
    hybrid_layer_pattern: str | None = None
    # Width of the residual stream.
    hidden_size: int | None = None
    # Width of a dense MLP layer.
    ffn_hidden_size: int | None = None
    # Attention: query heads.
    num_attention_heads: int | None = None
    # Attention: groups of key/value heads.
    num_query_groups: int | None = None
    # Attention: width of one head.
    kv_channels: int | None = None
    # Mamba-2: heads.
    mamba_num_heads: int | None = None
    # Mamba-2: width of one head.
    mamba_head_dim: int | None = None
    # Mamba-2: size of the state.
    mamba_state_dim: int | None = None
    # Mamba-2: groups that share B and C.
    mamba_num_groups: int | None = None
    # Mamba-2: tokens of one chunk of the scan; speed only, same results.
    mamba_chunk_size: int | None = None
    # Mixture of experts: routed experts of a layer.
    num_moe_experts: int | None = None
    # Routed experts that each token visits.
    moe_router_topk: int | None = None
    # Width of a routed expert.
    moe_ffn_hidden_size: int | None = None
    # Width of the shared expert that every token visits.
    moe_shared_expert_intermediate_size: int | None = None
    # Factor on the routed experts' output.
    moe_router_topk_scaling_factor: float | None = None
    # Step of the bias that balances the experts' load without an auxiliary loss.
    moe_router_bias_update_rate: float | None = None
    # Standard deviation of the initial weights.
    init_method_std: float | None = None
    # Epsilon of RMSNorm.
    layernorm_epsilon: float | None = None
    # Use one matrix for embedding and output.
    share_embeddings_and_output_weights: bool | None = None
    # Rows of the embedding; null takes the data's vocabulary, padded as Megatron pads it.
    vocab_size: int | None = None

    # Parallelism (backend=megatron): ranks that share each weight matrix.
    tensor_model_parallel_size: int | None = None
    # Ranks that share the layers.
    pipeline_model_parallel_size: int | None = None
    # Ranks that share each sequence.
    context_parallel_size: int | None = None
    # Ranks that share the experts.
    expert_model_parallel_size: int | None = None
    # Split the sequence dimension of norms and dropout over the tensor-parallel ranks.
    sequence_parallel: bool | None = None
