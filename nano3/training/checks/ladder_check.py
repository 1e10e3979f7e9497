"""Lines of the preflight about a model of the ladder: its size and tokens, and settings that do not follow the rule."""

from nano3.config import PretrainConfig
from nano3.config.ladder import LadderRun, ladder_value
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
    each = f"{config.ladder.tokens_per_parameter:g} tokens for each active one = {run.tokens / 1e6:,.0f} M tokens"
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
