"""Which sizes of a model and of its batch Transformer Engine can multiply in FP8, MXFP8 and NVFP4.

On every rank, both widths of each weight and the number of tokens must be multiples of 16 in FP8 ("Leading dimension
requirement on A for FP8 GEMM", from cuBLAS; `assert_dim_for_fp8_exec` in Transformer Engine 2.20), and of 32 in MXFP8
(the block of a scale) and NVFP4 (16 bytes of 4-bit values; `get_fp8_align_size` and `get_fp4_align_size` in
Megatron-Core 0.19). The embedding, the output matrix and the router are not multiplied in these precisions.
Megatron-Core pads the tokens of each expert itself.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from nano3.training.checks.model_stats import Architecture

BF16: Final = "bf16"
TO_BF16: Final = "++megatron.mixed_precision=bf16_mixed"
DELAYED: Final = "fp8_delayed"
MULTIPLES: Final[dict[str, int]] = {"fp8": 16, DELAYED: 16, "mxfp8": 32, "nvfp4": 32}
TITLES: Final[dict[str, str]] = {BF16: BF16, "fp8": "FP8", DELAYED: "FP8", "mxfp8": "MXFP8", "nvfp4": "NVFP4"}
# Transformer Engine needs at least 8 rows of a sequence-parallel rank's own tokens.
_ROWS: Final = 8
_SEARCHED: Final = 512


@dataclass(frozen=True)
class Width:
    """One width of a weight on one rank.

    Attributes:
        product: The matrix product.
        formula: Its width in keys of the section `model`.
        whole: Its width on all ranks together.
        divisor: Number of ranks that share it.
        key: The key to change.
        step: Its values are multiples of this, by other rules.
    """

    product: str
    formula: str
    whole: int
    divisor: int
    key: str
    step: int = 1

    @property
    def value(self) -> float:
        """Width on one rank; a fraction if the ranks cannot share it evenly."""
        return self.whole / self.divisor


def widths(a: Architecture, tensor: int) -> Iterator[Width]:
    """Yield the widths of all weights that are multiplied in low precision.

    Args:
        a: The architecture.
        tensor: Tensor-parallel size, in ranks.
    """
    kinds = a.run_layers
    yield Width("every layer", "hidden_size", a.hidden_size, 1, "hidden_size")
    if a.mtp_depths:
        yield Width("the projection of multi-token prediction", "hidden_size", a.hidden_size, tensor, "hidden_size")
    if kinds.get("M"):
        key, step = "mamba_num_heads", math.lcm(a.mamba_num_groups or 1, tensor)
        inner, projected = f"{key} x mamba_head_dim", a.mamba_inner + a.mamba_conv + a.mamba_num_heads
        formula = f"2 x {inner} + 2 x mamba_num_groups x mamba_state_dim + {key}"
        yield Width("Mamba's in_proj", formula, projected, tensor, key, step)
        yield Width("Mamba's out_proj", inner, a.mamba_inner, tensor, key, step)
    if kinds.get("*"):
        key, step = "num_attention_heads", math.lcm(a.num_query_groups or 1, tensor)
        heads, keys_and_values = a.num_attention_heads * a.kv_channels, 2 * a.num_query_groups * a.kv_channels
        formula = f"({key} + 2 x num_query_groups) x kv_channels"
        yield Width("attention's linear_qkv", formula, heads + keys_and_values, tensor, key, step)
        yield Width("attention's linear_proj", f"{key} x kv_channels", heads, tensor, key, step)
    if kinds.get("-"):
        yield Width("the dense MLP", "ffn_hidden_size", a.ffn_hidden_size, tensor, "ffn_hidden_size")
    if kinds.get("E"):
        yield Width("every expert", "moe_ffn_hidden_size", a.moe_ffn_hidden_size, 1, "moe_ffn_hidden_size")
        key = "moe_shared_expert_intermediate_size"
        yield Width("the shared expert", key, a.moe_shared_expert_intermediate_size, tensor, key)


def width_problems(a: Architecture, tensor: int, precision: str) -> list[str]:
    """Return which widths of a model cannot be multiplied in a precision, with values that can.

    Args:
        a: The architecture.
        tensor: Tensor-parallel size, in ranks.
        precision: One of `TITLES`.
    """
    multiple = MULTIPLES.get(precision)
    if multiple is None or tensor < 1:  # other checks report sizes below 1
        return []
    problems = []
    for width in widths(a, tensor):
        if width.value % multiple == 0:
            continue
        own = [f"model.{width.key}={value}" for value in _fitting_values(a, tensor, width, multiple)]
        divided = width.divisor > 1
        formula = f"({width.formula}) / model.tensor_model_parallel_size={width.divisor}" if divided else width.formula
        change = [*own, "a smaller model.tensor_model_parallel_size"] if divided else own
        problems.append(
            f"{TITLES[precision]} needs widths that are multiples of {multiple} on every rank, and {width.product} has "
            f"{formula} = {width.value:,g}. {f'Set {" or ".join(change)}, or train' if change else 'Train'} in bf16: "
            f"{TO_BF16}."
        )
    return problems


def _fitting_values(a: Architecture, tensor: int, width: Width, multiple: int) -> list[int]:
    """Return the values of a key next below and above its own with which its products fit; none if none is near."""

    def fits(value: int) -> bool:
        changes: dict[str, Any] = {width.key: value}
        changed = replace(a, **changes)
        return value > 0 and all(w.value % multiple == 0 for w in widths(changed, tensor) if w.key == width.key)

    own = getattr(a, width.key) // width.step
    below, above = range(own, own - _SEARCHED, -1), range(own + 1, own + _SEARCHED + 1)
    found = (next(filter(fits, (n * width.step for n in steps)), 0) for steps in (below, above))
    return [value for value in found if value]


def token_problems(tokens: float, split_tokens: float, precision: str) -> list[str]:
    """Return why the tokens of a micro batch cannot be multiplied in a precision.

    Args:
        tokens: Tokens of one micro batch on one rank.
        split_tokens: Those of one rank if sequence parallelism splits them.
        precision: One of `TITLES`.
    """
    multiple = MULTIPLES.get(precision)
    if multiple is None or (tokens % multiple == 0 and split_tokens % _ROWS == 0):
        return []
    return [
        f"{TITLES[precision]} needs a multiple of {multiple} tokens of a micro batch on one rank, and of {_ROWS} if "
        "sequence parallelism splits them: train.micro_batch_size x train.seq_length / model.context_parallel_size = "
        f"{tokens:,g}. Set another train.seq_length, or train in bf16: {TO_BF16}."
    ]
