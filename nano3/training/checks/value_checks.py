"""Checks of single keys before a run starts: numbers out of range and unknown choices."""

import math
from dataclasses import fields
from pathlib import Path

from nano3.artifacts import wandb_mirror
from nano3.artifacts.names import alias_for, alias_problem
from nano3.config.guard import ACTIONS
from nano3.config.model import ModelConfig
from nano3.config.pretrain import PretrainConfig, megatron_section
from nano3.config.train import BOUNDARIES
from nano3.training.order.plan import MEGATRON, ORDERS
from nano3.training.run.sound_checkpoints import ON_DAMAGE
from nano3.utils.errors import did_you_mean
from nano3.utils.provenance import install_command, is_installed

# The largest seed that numpy accepts.
LARGEST_SEED = 2**32 - 1
# Fields of Megatron-Bridge with which iteration i reads other samples than i * global_batch_size and the following
# ones, and the value with which it does not.
OTHER_ORDERS = (
    ("train", "rampup_batch_size", None),
    ("train", "step_batch_size_schedule", None),
    ("dataset", "dataloader_type", "single"),
)


def value_problems(config: PretrainConfig) -> list[str]:
    """Return a sentence for each number that is out of range."""
    t, o, c, g = config.train, config.optimizer, config.checkpoint, config.guard
    minimums: dict[str, tuple[float | None, float]] = {
        "train.train_iters": (t.train_iters, 1),
        "train.seq_length": (t.seq_length, 2),
        "train.eval_interval": (t.eval_interval, 0),
        "train.eval_iters": (t.eval_iters, 1 if t.eval_interval else 0),
        "train.threads": (t.threads, 1),
        "train.hang_timeout_s": (t.hang_timeout_s, 1),
        "train.exit_iteration": (t.exit_iteration, 1),
        "train.exit_duration_in_mins": (t.exit_duration_in_mins, 0),
        "logger.log_interval": (config.logger.log_interval, 1),
        "checkpoint.save_interval": (c.save_interval, 0 if config.backend == "megatron" else 1),
        "checkpoint.keep_last": (c.keep_last, 0),
        "checkpoint.max_failed_saves": (c.max_failed_saves, 1),
        "checkpoint.export_every": (c.export_every, 0),
        "guard.window": (g.window, 8),
        "guard.ignore_first": (g.ignore_first, 0),
        "guard.threshold": (g.threshold, 0),
        "guard.min_loss_rise": (g.min_loss_rise, 0),
        "guard.min_grad_norm_rise": (g.min_grad_norm_rise, 0),
        "guard.max_rollbacks": (g.max_rollbacks, 0),
        "guard.max_consecutive_skips": (g.max_consecutive_skips, 1),
        "optimizer.lr": (o.lr, 0),
        "optimizer.min_lr": (o.min_lr, 0),
        "optimizer.adam_eps": (o.adam_eps, 0),
        "optimizer.weight_decay": (o.weight_decay, 0),
        "optimizer.clip_grad": (o.clip_grad, 0),
    }
    problems = [
        f"{name}={value} must be at least {limit:g}."
        for name, (value, limit) in minimums.items()
        if value is not None and not value >= limit
    ]
    problems += [
        f"{name}={value} must be a number, not infinite."
        for name, (value, _) in minimums.items()
        if value == math.inf and name != "optimizer.clip_grad"  # an infinite limit disables clipping
    ]
    problems += order_problems(config)
    if not 0 <= t.seed <= LARGEST_SEED:
        problems.append(f"train.seed={t.seed} must be between 0 and {LARGEST_SEED}.")
    if t.document_boundaries not in BOUNDARIES:
        hint = did_you_mean(t.document_boundaries, BOUNDARIES)
        problems.append(f"train.document_boundaries={t.document_boundaries}: unknown.{hint}")
    if c.on_damage not in ON_DAMAGE:
        problems.append(f"checkpoint.on_damage={c.on_damage}: unknown.{did_you_mean(c.on_damage, ON_DAMAGE)}")
    if c.export_every and not c.save_interval:
        problems.append("checkpoint.export_every needs checkpoints to export, and checkpoint.save_interval is 0.")
    betas = {"optimizer.adam_beta1": o.adam_beta1, "optimizer.adam_beta2": o.adam_beta2}
    problems += [*guard_problems(config), *skip_problems(config)]
    return [*problems, *model_value_problems(config.model)] + [
        f"{name}={beta:g} must be at least 0 and below 1." for name, beta in betas.items() if not 0 <= beta < 1
    ]


def order_problems(config: PretrainConfig) -> list[str]:
    """Return what is wrong with train.sample_order, and with a mixture that it cannot read."""
    order = config.train.sample_order
    if order not in ORDERS:
        return [f"train.sample_order={order}: there is no such order.{did_you_mean(order, list(ORDERS))}"]
    if config.train.mixture and order == MEGATRON:
        return ["train.mixture needs nano3's own order of samples: set train.sample_order=nano3."]
    if order == MEGATRON or config.backend != "megatron":
        return []
    return [
        f"megatron.{section}.{key}={value}: with train.sample_order=nano3 each iteration reads its own "
        "train.global_batch_size samples of the plan. Leave it out, or set train.sample_order=megatron."
        for section, key, kept in OTHER_ORDERS
        if (value := megatron_section(config, section).get(key, kept)) != kept
    ]


def guard_problems(config: PretrainConfig) -> list[str]:
    """Return why guard.action is unknown or cannot be carried out."""
    action = config.guard.action
    if action not in ACTIONS:
        return [f"guard.action={action}: no such action.{did_you_mean(action, ACTIONS)}"]
    if action == "rollback" and not config.checkpoint.save_interval:
        return [
            "guard.action=rollback needs checkpoints to return to, and checkpoint.save_interval is 0. Set a "
            "checkpoint.save_interval, or guard.action=warn."
        ]
    return []


def skip_problems(config: PretrainConfig) -> list[str]:
    """Return what is wrong with the pairs of train.skip_iterations."""
    problems, last = [], config.train.train_iters
    for pair in config.train.skip_iterations:
        if len(pair) != 2 or not 1 <= pair[0] <= pair[1]:
            problems.append(
                f"train.skip_iterations: {list(pair)} is not a pair of a first and a last iteration. Write [[5,6]] for "
                "iterations 5 and 6, and [[5,5]] for one iteration."
            )
        elif pair[1] >= last:
            problems.append(
                f"train.skip_iterations: {list(pair)} must end before the last iteration (train.train_iters={last}), "
                "after which the run is saved."
            )
    return problems


def model_value_problems(model: ModelConfig) -> list[str]:
    """Return a sentence for each size that is too small and each factor below 0 or not finite. Ignore nulls."""
    problems = []
    for name, value in ((f.name, getattr(model, f.name)) for f in fields(model)):
        least = 0 if name == "mtp_num_layers" else 1
        if type(value) is int and value < least:
            problems.append(f"model.{name}={value} must be at least {least}.")
        elif type(value) is float and not 0 <= value < math.inf:
            problems.append(f"model.{name}={value} must be at least 0, and not infinite.")
    return problems


def vocabulary_problems(config: PretrainConfig, data_vocab_size: int) -> list[str]:
    """Return why model.vocab_size is too small for the data.

    Args:
        config: The run's configuration.
        data_vocab_size: Ids of the data's tokenizer.
    """
    size = config.model.vocab_size
    if size is None or size >= data_vocab_size:
        return []
    return [
        f"model.vocab_size={size} is less than the data's vocabulary of {data_vocab_size}. Leave it null, or give at "
        f"least {data_vocab_size}."
    ]


def blend_file_problems(config: PretrainConfig) -> list[str]:
    """Return why recipe.per_split_data_args_path is not the blend of run.data, the only data trained on."""
    given, data = Path(config.recipe.per_split_data_args_path), Path(config.run.data)
    if not data.is_dir() or given.absolute() == (data / "blend.json").absolute():
        return []
    if given.exists() and given.samefile(data / "blend.json"):
        return []
    return [
        f"recipe.per_split_data_args_path={given} is not the blend of run.data ({data / 'blend.json'}), and recipes do "
        "not read it. Leave it out, and choose the data with run.data=FOLDER."
    ]


def initial_weights_problems(config: PretrainConfig) -> list[str]:
    """Return why the configuration does not name one source of initial weights."""
    c, weights = config.checkpoint, megatron_section(config, "checkpoint").get("pretrained_checkpoint")
    if c.keep_iteration and c.load in (None, c.save):
        return [
            "checkpoint.keep_iteration=true (set by train=phase2) continues another run's schedule: set "
            "checkpoint.load=OTHER/checkpoints to the checkpoint folder of that run."
        ]
    if weights and c.load and c.load != c.save:
        return [
            f"checkpoint.load={c.load} and megatron.checkpoint.pretrained_checkpoint={weights} both name weights to "
            "start from: set only one of them."
        ]
    return []


def run_section_problems(config: PretrainConfig, here: bool) -> list[str]:
    """Return what is wrong with run.name and run.wandb.

    Args:
        config: The run's configuration.
        here: Whether the ranks use this Python, so that wandb must be installed in it.
    """
    problems = []
    mode = config.run.wandb.mode
    if mode not in wandb_mirror.MODES:
        problems.append(f"run.wandb.mode={mode}: no such mode.{did_you_mean(mode, wandb_mirror.MODES)}")
    elif mode != "disabled" and here and not is_installed("wandb"):
        problems.append(
            f"run.wandb.mode={mode} needs wandb, not installed in this Python: "
            f"{install_command('wandb')}, or run.wandb.mode=disabled."
        )
    return problems + run_name_problems(config.run.name)


def run_name_problems(name: str) -> list[str]:
    """Return why `name` cannot be the alias of the run's checkpoints (`ModelArtifact-pretrain:NAME`)."""
    problem = alias_problem(name)
    if problem is None:
        return []
    allowed = alias_for(name)[0] or "run-1"
    return [f"run.name names the run's checkpoints, but {problem}. Use another one, for example run.name={allowed}."]
