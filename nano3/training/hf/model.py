"""Build `ModelConfig` as a Hugging Face NemotronH, so that one description serves both backends."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nano3.config.model import ModelConfig
from nano3.training.checks.model_stats import padded_vocab_size
from nano3.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import NemotronHConfig, NemotronHForCausalLM

# Megatron's name of a key -> that of transformers' NemotronHConfig.
HF_NAMES = {
    "hybrid_layer_pattern": "hybrid_override_pattern",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "mamba_num_heads": "mamba_num_heads",
    "mamba_head_dim": "mamba_head_dim",
    "mamba_state_dim": "ssm_state_size",
    "mamba_num_groups": "n_groups",
    "mamba_chunk_size": "chunk_size",
    "num_moe_experts": "n_routed_experts",
    "moe_router_topk": "num_experts_per_tok",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "moe_shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    "moe_router_topk_scaling_factor": "routed_scaling_factor",
    "init_method_std": "initializer_range",
    "layernorm_epsilon": "layer_norm_epsilon",
    "share_embeddings_and_output_weights": "tie_word_embeddings",
}
# The keys that each kind of layer needs.
REQUIRED_KEYS = {
    "M": ("mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups"),
    "E": (
        "num_moe_experts",
        "moe_router_topk",
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
        "moe_router_topk_scaling_factor",
    ),
    "*": ("num_attention_heads", "num_query_groups", "kv_channels"),
    "-": ("ffn_hidden_size",),
}
# The values of null keys: megatron.core's defaults.
DEFAULTS = {
    "mamba_chunk_size": 128,
    "moe_router_bias_update_rate": 1e-3,
    "init_method_std": 0.02,
    "layernorm_epsilon": 1e-5,
    "share_embeddings_and_output_weights": False,
}
PARALLEL = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
)


def embedding_rows(model: ModelConfig, data_vocab_size: int) -> int:
    """Return the rows of the embedding: model.vocab_size, or the data's vocabulary padded as Megatron pads it.

    Args:
        model: The configuration of the model.
        data_vocab_size: Ids of the data's tokenizer.

    Raises:
        UserError: model.vocab_size is too small for the data.
    """
    if model.vocab_size is None:
        return padded_vocab_size(data_vocab_size, model.tensor_model_parallel_size or 1)
    if model.vocab_size < data_vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is less than the data's vocabulary of {data_vocab_size}. Leave it "
            f"null (then it is {padded_vocab_size(data_vocab_size)}), or give at least {data_vocab_size}."
        )
    return model.vocab_size


def value_or_default(model: ModelConfig, key: str) -> Any:
    """Return the value of a key, or its default if it is null."""
    own = getattr(model, key)
    return DEFAULTS.get(key) if own is None else own


def model_problems(model: ModelConfig) -> list[str]:
    """Return why backend=transformers cannot build this model, or an empty list."""
    parallel = [f"model.{k}={v}" for k in PARALLEL if (v := getattr(model, k)) not in (None, 1)]
    problems = []
    if parallel or model.sequence_parallel:
        parallel += ["model.sequence_parallel=true"] if model.sequence_parallel else []
        problems.append(
            f"backend=transformers is data-parallel only; {', '.join(parallel)} needs backend=megatron (or set 1)."
        )
    if model.mtp_num_layers:
        problems.append(
            f"model.mtp_num_layers={model.mtp_num_layers}: backend=transformers has no multi-token prediction. Set "
            "model.mtp_num_layers=0 to train the model without it, or choose backend=megatron."
        )
    pattern = model.hybrid_layer_pattern
    unknown = sorted(set(pattern or "") - set(REQUIRED_KEYS))
    if unknown:
        problems.append(
            f"model.hybrid_layer_pattern={pattern} has {' '.join(unknown)}; allowed: M Mamba-2, E experts, * "
            f"attention, - dense MLP."
        )
    kinds = [k for k in REQUIRED_KEYS if pattern is None or k in pattern]
    needed = ["hybrid_layer_pattern", "hidden_size", *(key for kind in kinds for key in REQUIRED_KEYS[kind])]
    missing = [key for key in needed if getattr(model, key) in (None, "")]
    if missing:
        names = ", ".join(f"model.{key}" for key in missing)
        return [
            *problems,
            f"backend=transformers needs the whole architecture; not set: {names}. Try model=quickstart.",
        ]
    return problems + _shape_problems(model, pattern or "")


def _shape_problems(model: ModelConfig, pattern: str) -> list[str]:
    """Check divisibility and ranges of keys that are all set."""
    rules = [
        ("*", "num_attention_heads", "num_query_groups", "must be a multiple of"),
        ("M", "mamba_num_heads", "mamba_num_groups", "must be a multiple of"),
        ("E", "num_moe_experts", "moe_router_topk", "must not be less than"),
    ]
    problems = []
    for kind, left, right, rule in rules:
        if kind not in pattern:
            continue
        a, b = getattr(model, left), getattr(model, right)
        if b < 1:  # reported by checks/value_checks.py
            continue
        if a % b if "multiple" in rule else a < b:
            problems.append(f"model.{left}={a} {rule} model.{right}={b}.")
    if "E" in pattern and model.num_moe_experts == 1:
        problems.append(
            "model.num_moe_experts=1: the router needs at least 2 experts; use - (dense MLP) layers instead of E."
        )
    if model.share_embeddings_and_output_weights:
        problems.append(
            "model.share_embeddings_and_output_weights=true: transformers' NemotronH does not tie them; set false."
        )
    return problems


def hf_config(model: ModelConfig, rows: int, seq_length: int, eod_id: int | None = None) -> "NemotronHConfig":
    """Return the NemotronHConfig of a checked model: no position embedding, sigmoid router, squared ReLU.

    Args:
        model: The configuration of the model.
        rows: Rows of the embedding.
        seq_length: Tokens in a sample.
        eod_id: Id of the end-of-document token.
    """
    from transformers import NemotronHConfig

    known = {f.name for f in fields(model)}
    shape = {hf: v for key, hf in HF_NAMES.items() if key in known and (v := value_or_default(model, key)) is not None}
    return NemotronHConfig(
        architectures=["NemotronHForCausalLM"],
        vocab_size=rows,
        max_position_embeddings=seq_length,
        bos_token_id=eod_id,
        eos_token_id=eod_id,
        pad_token_id=eod_id,
        use_mamba_kernels=False,
        use_cache=False,
        **shape,
    )


def build_model(model: ModelConfig, rows: int, seq_length: int, eod_id: int | None = None) -> "NemotronHForCausalLM":
    """Return a freshly initialized fp32 model, drawn from torch's global generator.

    Args:
        model: The configuration of the model.
        rows: Rows of the embedding.
        seq_length: Tokens in a sample.
        eod_id: Id of the end-of-document token.

    Raises:
        UserError: Lists every problem with the model.
    """
    problems = model_problems(model)
    if problems:
        raise UserError(problems)
    from transformers import NemotronHForCausalLM

    config = hf_config(model, rows, seq_length, eod_id)
    built: NemotronHForCausalLM = NemotronHForCausalLM._from_config(
        config, attn_implementation="sdpa", experts_implementation="eager"
    )
    return built


def parameter_count(model: Any) -> int:
    """Return the number of trainable parameters of a torch module."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
