"""Section `ladder`: smaller relatives of Nemotron 3 Nano, and the settings of their runs, by one rule.

A model of the ladder is Nemotron 3 Nano (arXiv:2512.20848, and Megatron-Bridge's recipe) with another width and depth.
What decides how much of the model a token uses is kept: 128 experts, of which a token takes 6 and a shared one, and the
ratios of layer types and of all widths to the hidden size. So every size has about the same share of active parameters,
and a law that is fitted on small sizes speaks of the same kind of model.

Sizes: width and depth grow together (hidden size / layers = 2688 / 52).
Tokens: 20 for each active parameter (Hoffmann et al., 2022, arXiv:2203.15556), or `ladder.tokens_per_parameter`.
Batch and learning rate: those of the recipe (25.2 M tokens and 1e-3 for 25 T tokens), scaled with the exponents of Step
Law (Li et al., 2025, arXiv:2503.04715, fitted on dense and on mixture-of-experts models): batch ~ D^0.571, learning
rate ~ N^-0.713 D^0.307.
Initial weights: 0.0173 at a width of 2688, as in the recipe, and otherwise in proportion to 1/sqrt(width).

Megatron-Core's muP is not used: megatron-core 0.19 calls it experimental for hybrid models, and Megatron-Bridge 0.6
does not apply its learning rates.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from nano3.utils.errors import UserError

# Nemotron 3 Nano, whose proportions the ladder keeps, and the tokens, batch and learning rate of its recipe.
NANO_WIDTH, NANO_PAIRS, NANO_LAYERS, NANO_INNER, NANO_EXPERT = 2688, 23, 52, 4096, 1856
NANO_TOKENS, NANO_BATCH, NANO_RATE, NANO_INIT = 25e12, 3072 * 8192, 1e-3, 0.0173
EXPERTS, TOP_K, QUERY_GROUPS = 128, 6, 2
# The Mamba layers of Nano, counted from 1, that an attention layer follows.
NANO_ATTENTION = (3, 6, 9, 12, 15, 19)
SMALLEST, LARGEST = 1e6, 31e9
# Exponents of Step Law.
BATCH_OF_TOKENS, RATE_OF_PARAMETERS, RATE_OF_TOKENS = 0.571, -0.713, 0.307
# Above this learning rate Step Law is an extrapolation to models much smaller than those that it was fitted on.
MAX_RATE = 4e-3
# The recipe's warmup is 334 iterations; short runs warm up for a twentieth of theirs.
WARMUP_ITERS, WARMUP_SHARE = 334, 20
# Tokens of a forward pass: the logits of more would take most of a GPU's memory.
MICRO_BATCH_TOKENS = 32_768
# Hidden sizes that GPUs multiply well; small ones in finer steps.
WIDTHS = (*range(32, 128, 4), *range(128, 256, 8), *range(256, 1024, 32), *range(1024, 2 * NANO_WIDTH, 64))
# Pairs of a Mamba layer and a layer of experts.
DEPTHS = range(2, 30)
SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmb])", re.IGNORECASE)
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass
class LadderConfig:
    """Size of a model of the ladder, for model=ladder and train=ladder (docs/which-size.md)."""

    # Size of the model of model=ladder: its parameters besides embedding and output matrix, from 1m to 31b, for example
    # 100m, 350m, 1b or 3b. null if the run is not of the ladder.
    size: str | None = None
    # Training tokens of train=ladder for each active parameter besides embedding and output matrix.
    tokens_per_parameter: float = 20.0
    # Samples of a validation with train=ladder. All sizes measure the same samples if every batch size times the number
    # of datasets divides it.
    eval_samples: int = 768


@dataclass(frozen=True)
class LadderShape:
    """The architecture of one size, with the names of Megatron-Bridge."""

    # Layer types in order.
    hybrid_layer_pattern: str
    # Width of the residual stream.
    hidden_size: int
    # Query heads of an attention layer.
    num_attention_heads: int
    # Width of an attention head.
    kv_channels: int
    # Heads of a Mamba layer.
    mamba_num_heads: int
    # Width of a Mamba head.
    mamba_head_dim: int
    # Size of the Mamba state.
    mamba_state_dim: int
    # Groups of Mamba heads that share B and C.
    mamba_num_groups: int
    # Width of a routed expert.
    moe_ffn_hidden_size: int

    @property
    def moe_shared_expert_intermediate_size(self) -> int:
        """Width of the shared expert."""
        return 2 * self.moe_ffn_hidden_size

    def parameters(self, experts: int = EXPERTS) -> int:
        """Return the parameters besides embedding and output matrix.

        Args:
            experts: Routed experts to count in each layer: all of them, or `TOP_K` for the active parameters.
        """
        h, heads, inner = self.hidden_size, self.mamba_num_heads, self.mamba_num_heads * self.mamba_head_dim
        conv = inner + 2 * self.mamba_num_groups * self.mamba_state_dim
        each = {
            "M": h * (2 * inner + conv + heads) + 5 * conv + 3 * heads + inner + h,
            "*": h * self.kv_channels * 2 * (self.num_attention_heads + QUERY_GROUPS) + h,
            "E": 2 * h * (experts * self.moe_ffn_hidden_size + self.moe_shared_expert_intermediate_size)
            + h * EXPERTS
            + h,
        }
        return sum(each[kind] for kind in self.hybrid_layer_pattern) + h


def shape_of_width(width: int, pairs: int) -> LadderShape:
    """Return the architecture of one width and depth.

    Heads keep the width of Nano's as far as the hidden size has room for several.

    Args:
        width: The hidden size.
        pairs: Number of pairs of a Mamba layer and a layer of experts.
    """
    scale = width / NANO_WIDTH
    kv_channels, head_dim = (_power_of_two(width / 4, 16, most) for most in (128, 64))
    groups = _power_of_two(8 * scale * math.sqrt(2), 1, 8)  # the nearest one
    step = 16 if width >= 256 else 8
    return LadderShape(
        hybrid_layer_pattern=layer_pattern(pairs),
        hidden_size=width,
        num_attention_heads=QUERY_GROUPS * _nearest(NANO_INNER * scale / kv_channels / QUERY_GROUPS),
        kv_channels=kv_channels,
        mamba_num_heads=groups * _nearest(NANO_INNER * scale / head_dim / groups),
        mamba_head_dim=head_dim,
        mamba_state_dim=_power_of_two(width / 2, 16, 128),
        mamba_num_groups=groups,
        moe_ffn_hidden_size=step * _nearest(NANO_EXPERT * scale / step),
    )


def layer_pattern(pairs: int) -> str:
    """Return the layers: pairs of Mamba and experts, and attention layers spread as in Nano."""
    count = max(1, round(len(NANO_ATTENTION) * pairs / NANO_PAIRS))
    chosen = [NANO_ATTENTION[int((i + 0.5) * len(NANO_ATTENTION) / count)] for i in range(count)]
    followed = {_nearest(number * pairs / NANO_PAIRS) for number in chosen}
    return "".join("M*E" if pair in followed else "ME" for pair in range(1, pairs + 1))


def _nearest(value: float) -> int:
    return max(1, round(value))


def _power_of_two(value: float, least: int, most: int) -> int:
    """Return the largest power of two up to a value, within bounds."""
    return int(min(max(2 ** math.floor(math.log2(value)), least), most))


def read_size(text: str) -> float:
    """Return the parameters that a size such as 350m stands for.

    Raises:
        UserError: It is no size, or out of range.
    """
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise UserError(f"ladder.size={text}: expected a number and k, m or b, for example 100m, 350m, 1b or 3b.")
    size = float(found[1]) * UNITS[found[2].lower()]
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"ladder.size={text}: sizes go from 1m to 31b, which is Nemotron 3 Nano itself.")
    return size


@cache
def shape_of_size(text: str) -> LadderShape:
    """Return the architecture of a size: the one nearest to it and to Nano's ratio of width to depth.

    Raises:
        UserError: It is no size, or out of range.
    """
    size = read_size(text)

    def misfit(shape: LadderShape) -> float:
        ratio = shape.hidden_size / len(shape.hybrid_layer_pattern) * NANO_LAYERS / NANO_WIDTH
        return abs(math.log(ratio)) + 8 * abs(math.log(shape.parameters() / size))

    return min((shape for pairs in DEPTHS for shape in _near(size, pairs)), key=misfit)


def _near(size: float, pairs: int) -> list[LadderShape]:
    """Return the shapes of a depth whose sizes are next to one."""
    first = bisect_left(WIDTHS, size, key=lambda width: shape_of_width(width, pairs).parameters())
    return [shape_of_width(width, pairs) for width in WIDTHS[max(first - 2, 0) : first + 2] or WIDTHS[-1:]]


@dataclass(frozen=True)
class LadderRun:
    """What the rule derives from: the section `ladder`, and settings of the run that are given or derived before."""

    # Size and tokens.
    ladder: LadderConfig
    # Tokens of a sample.
    seq_length: int
    # Samples of an iteration, if the rule needs them.
    global_batch_size: int = 1
    # Iterations, if the rule needs them.
    train_iters: int = 1

    @property
    def shape(self) -> LadderShape:
        """The architecture."""
        if self.ladder.size is None:
            raise UserError("model=ladder and train=ladder need a size: ladder.size=100m, for example.")
        return shape_of_size(self.ladder.size)

    @property
    def active(self) -> int:
        """Active parameters besides embedding and output matrix."""
        return self.shape.parameters(TOP_K)

    @property
    def tokens(self) -> float:
        """Tokens to train on."""
        if not 0 < self.ladder.tokens_per_parameter < math.inf:
            raise UserError(f"ladder.tokens_per_parameter={self.ladder.tokens_per_parameter:g} must be above 0.")
        return self.ladder.tokens_per_parameter * self.active

    @property
    def batch(self) -> int:
        """Samples of an iteration: the power of two that is nearest to Step Law's batch."""
        tokens = NANO_BATCH * (self.tokens / NANO_TOKENS) ** BATCH_OF_TOKENS
        return int(2 ** max(0, round(math.log2(tokens / max(self.seq_length, 1)))))

    @property
    def rate(self) -> float:
        """Maximum learning rate, with two significant digits."""
        nano = shape_of_width(NANO_WIDTH, NANO_PAIRS)
        size, tokens = self.active / nano.parameters(TOP_K), self.tokens / NANO_TOKENS
        return float(f"{min(MAX_RATE, NANO_RATE * size**RATE_OF_PARAMETERS * tokens**RATE_OF_TOKENS):.2g}")

    @property
    def eval_iters(self) -> int:
        """Global batches of a validation."""
        samples, batch = self.ladder.eval_samples, max(self.global_batch_size, 1)  # value_checks reports a 0
        if samples < 1 or samples % batch:
            raise UserError(
                f"ladder.eval_samples={samples} must be a multiple of train.global_batch_size={batch}, so that all "
                f"sizes are validated on the same samples: for example {max(1, -(-samples // batch)) * batch}."
            )
        return samples // batch


def _micro_batch(run: LadderRun) -> int:
    """Return the largest power of two that divides the batch and keeps a forward pass small."""
    micro, batch = 1, run.global_batch_size
    while batch > 0 and batch % (2 * micro) == 0 and 2 * micro * run.seq_length <= MICRO_BATCH_TOKENS:
        micro *= 2
    return micro


# The values of `${ladder:NAME}` that are not fields of the shape.
RULES: dict[str, Callable[[LadderRun], Any]] = {
    "ffn_hidden_size": lambda run: run.shape.moe_ffn_hidden_size,
    "mamba_chunk_size": lambda run: run.shape.mamba_state_dim,
    "init_method_std": lambda run: float(f"{NANO_INIT * math.sqrt(NANO_WIDTH / run.shape.hidden_size):.3g}"),
    "train_iters": lambda run: math.ceil(run.tokens / max(run.global_batch_size * run.seq_length, 1)),
    "global_batch_size": lambda run: run.batch,
    "micro_batch_size": _micro_batch,
    "eval_iters": lambda run: run.eval_iters,
    "interval": lambda run: max(1, run.train_iters // 5),
    "lr": lambda run: run.rate,
    "min_lr": lambda run: float(f"{run.rate / 100:.2g}"),
    "lr_warmup_iters": lambda run: min(WARMUP_ITERS, run.train_iters // WARMUP_SHARE),
    # The bias has to balance the experts within the run: 9 / 300 iterations is what the quickstart needs
    # (docs/look-into-a-run.md), and the recipe's 1e-3 suits 9,000 iterations and more.
    "moe_router_bias_update_rate": lambda run: min(0.03, max(1e-3, float(f"{9 / max(run.train_iters, 1):.2g}"))),
}
# The settings of the run that a rule needs besides size and tokens; they may be derived by other rules.
NEEDS: dict[str, tuple[str, ...]] = {
    "train_iters": ("global_batch_size",),
    "micro_batch_size": ("global_batch_size",),
    "eval_iters": ("global_batch_size",),
    "interval": ("train_iters",),
    "lr_warmup_iters": ("train_iters",),
    "moe_router_bias_update_rate": ("train_iters",),
}


def ladder_value(name: str, ladder: LadderConfig, train: Callable[[str], int]) -> Any:
    """Return the value of one setting by the rule.

    Args:
        name: A field of `LadderShape` or a key of `RULES`.
        ladder: The section `ladder`.
        train: Returns a setting of the section `train`.

    Raises:
        UserError: The size or another key of the section is wrong, or there is no such rule.
    """
    run = LadderRun(ladder, train("seq_length"), **{need: train(need) for need in NEEDS.get(name, ())})
    if rule := RULES.get(name):
        return rule(run)
    if not hasattr(LadderShape, name) and name not in LadderShape.__dataclass_fields__:
        raise UserError(f"${{ladder:{name}}}: there is no such rule")
    return getattr(run.shape, name)
