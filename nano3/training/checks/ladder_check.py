"""Lines of the preflight about a model of the ladder: its size and tokens, and settings that do not follow the rule."""

from dataclasses import asdict, replace

from nano3.config import PretrainConfig
from nano3.config.ladder import LARGEST, LadderRun, ladder_value, read_size, shape_of_size
from nano3.training.checks.low_precision import TITLES, width_problems
from nano3.training.checks.model_stats import Architecture
from nano3.utils.console import short_number
from nano3.utils.errors import UserError, list_some

# The settings that model=ladder and train=ladder derive, by section; the name of the rule where it is another one.
DERIVED = {
    "model": {
        name: name
        for name in (
            "hybrid_layer_pattern", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels",
            "mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups", "moe_ffn_hidden_size",
            "moe_shared_expert_intermediate_size", "init_method_std",
        )
    },
    "train": {"global_batch_size": "global_batch_size", "train_iters": "train_iters"},
    "optimizer": {"lr": "lr"},
}  # fmt: skip


def ladder_rows(config: PretrainConfig) -> list[tuple[str, str]]:
    """Return rows (name, value) for the table of the preflight; none if the run is not of the ladder.

    Raises:
        UserError: The section `ladder` is wrong.
    """
    if config.ladder.size is None:
        return []
    run = LadderRun(config.ladder, config.train.seq_length)
    total, active = run.shape.parameters(), run.active
    size = f"{config.ladder.size}: {total / 1e6:,.1f} M parameters besides the embeddings, {active / 1e6:,.2f} M active"
    each = f"{config.ladder.tokens_per_parameter:g} tokens for each active one = {short_number(run.tokens)} tokens"
    rows = [("ladder", f"{size}; {each}")]
    if others := differences(config):
        rows.append(("  not by its rule", list_some(others)))
    return rows


def differences(config: PretrainConfig) -> list[str]:
    """Return the settings that are not those of the rule, with the values that it gives: "train.train_iters=9 (50)"."""
    found = []
    for section, names in DERIVED.items():
        for key, rule in names.items():
            own = getattr(getattr(config, section), key)
            given = ladder_value(rule, config.ladder, lambda name: int(getattr(config.train, name)))
            if own != given:
                found.append(f"{section}.{key}={own} ({given})")
    return found


def ladder_problems(config: PretrainConfig) -> list[str]:
    """Return what is wrong with the section `ladder` of a run."""
    try:
        ladder_rows(config)
    except UserError as error:
        return error.problems
    return []


def validation_warnings(config: PretrainConfig, datasets: int) -> list[str]:
    """Return a warning if other sizes of the ladder would be validated on other samples.

    Each dataset gets the same number of global batches, rounded up, so it is the batch size that would decide.

    Args:
        config: The run's configuration.
        datasets: Number of validation sets.
    """
    train = config.train
    if config.ladder.size is None or not train.eval_interval or not datasets or train.eval_iters % datasets == 0:
        return []
    step = train.global_batch_size * datasets
    samples = -(-config.ladder.eval_samples // step) * step
    return [
        f"{train.eval_iters} batches of validation cannot be divided among {datasets} datasets: sizes with another "
        "batch would be validated on other samples, and their losses could not be compared. Set ladder.eval_samples "
        f"to a multiple of the largest batch of the sweep times {datasets}, for example {samples}."
    ]


def precision_hints(config: PretrainConfig, model: Architecture, tensor: int, precision: str) -> list[str]:
    """Return the sizes next to a run's own whose widths fit a precision, if its own do not.

    Args:
        config: The run's configuration.
        model: Its architecture.
        tensor: Tensor-parallel size, in ranks.
        precision: bf16, fp8, mxfp8 or nvfp4.
    """
    size = config.ladder.size
    if size is None or not width_problems(model, tensor, precision):
        return []

    def fits(candidate: float) -> bool:
        shape = asdict(shape_of_size(f"{candidate:g}m"))
        shape.pop("hybrid_layer_pattern")
        changed = replace(model, **shape, moe_shared_expert_intermediate_size=2 * shape["moe_ffn_hidden_size"])
        return not width_problems(changed, tensor, precision)

    own = read_size(size) / 1e6
    round_sizes = [n * 10.0**power for power in range(4) for n in range(1, 100) if n * 10.0**power <= LARGEST / 1e6]
    below = (n for n in sorted({*round_sizes}, reverse=True) if n < own)
    above = (n for n in sorted({*round_sizes}) if n > own)
    found = [next(filter(fits, sizes), None) for sizes in (below, above)]
    near = " or ".join(f"ladder.size={n:g}m" for n in found if n)
    title = TITLES[precision]
    return [
        f"ladder.size={size}: {f'the sizes next to it that fit {title}: {near}' if near else f'no size fits {title}'}."
    ]
