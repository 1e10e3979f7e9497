"""The learning-rate schedule of both backends: OptimizerParamScheduler of megatron.core, counted in samples."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nano3.config.pretrain import PretrainConfig
from nano3.utils.errors import did_you_mean

if TYPE_CHECKING:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

DECAY_STYLES = ("WSD", "cosine", "linear", "inverse-square-root", "constant")
WSD_DECAY_STYLES = ("minus_sqrt", "linear", "cosine", "exponential")


def with_default_decay(config: PretrainConfig) -> PretrainConfig:
    """Return the configuration with a null scheduler.lr_wsd_decay_iters replaced by a fifth of the run (WSD only)."""
    s = config.scheduler
    if s.lr_decay_style != "WSD" or s.lr_wsd_decay_iters is not None:
        return config
    return replace(config, scheduler=replace(s, lr_wsd_decay_iters=max(1, config.train.train_iters // 5)))


def schedule_summary(config: PretrainConfig) -> str:
    """Return the schedule in words.

    For example "WSD: 32 iterations of warmup, 1,328 stable, 340 of decay (minus_sqrt); 0.001 to 1e-05".
    """
    s, o, iters = config.scheduler, config.optimizer, config.train.train_iters
    parts = [f"{s.lr_warmup_iters:,} iterations of warmup"]
    if s.lr_decay_style == "WSD" and s.lr_wsd_decay_iters is not None:
        parts.append(f"{iters - s.lr_warmup_iters - s.lr_wsd_decay_iters:,} stable")
        parts.append(f"{s.lr_wsd_decay_iters:,} of decay ({s.lr_wsd_decay_style})")
    rates = f"{o.lr:g}" if s.lr_decay_style == "constant" else f"{o.lr:g} to {o.min_lr:g}"
    return f"{s.lr_decay_style}: {', '.join(parts)}; {rates}"


def schedule_problems(config: PretrainConfig) -> list[str]:
    """Return what is wrong with `scheduler`, `optimizer.lr` and `optimizer.min_lr`, with the values to type instead."""
    s, o, iters = config.scheduler, config.optimizer, config.train.train_iters
    problems = []
    if s.lr_decay_style not in DECAY_STYLES:
        problems.append(f"scheduler.lr_decay_style={s.lr_decay_style}:{did_you_mean(s.lr_decay_style, DECAY_STYLES)}")
    if 0 <= o.lr < o.min_lr:  # value_checks reports negative rates
        problems.append(f"optimizer.min_lr={o.min_lr:g} must not be greater than optimizer.lr={o.lr:g}.")
    if not 0 <= s.lr_warmup_iters < iters:
        problems.append(
            f"scheduler.lr_warmup_iters={s.lr_warmup_iters} must be at least 0 and less than train.train_iters={iters}."
        )
    if s.lr_decay_style == "WSD":
        problems += _wsd_problems(config)
    return problems


def _wsd_problems(config: PretrainConfig) -> list[str]:
    s, iters = config.scheduler, config.train.train_iters
    problems = []
    if s.lr_wsd_decay_style not in WSD_DECAY_STYLES:
        hint = did_you_mean(s.lr_wsd_decay_style, WSD_DECAY_STYLES)
        problems.append(f"scheduler.lr_wsd_decay_style={s.lr_wsd_decay_style}:{hint}")
    room = iters - s.lr_warmup_iters
    if s.lr_wsd_decay_iters is None:
        problems.append(
            "scheduler.lr_decay_style=WSD needs the length of its decay: "
            f"for example scheduler.lr_wsd_decay_iters={max(1, iters // 5)} (a fifth of train.train_iters)."
        )
    elif room >= 1 and not 1 <= s.lr_wsd_decay_iters <= room:  # without room, the warmup is reported
        problems.append(
            f"scheduler.lr_wsd_decay_iters={s.lr_wsd_decay_iters} must be between 1 and {room} "
            f"(train.train_iters={iters} minus scheduler.lr_warmup_iters={s.lr_warmup_iters})."
        )
    return problems


def make_scheduler(optimizer: Any, config: PretrainConfig) -> "OptimizerParamScheduler":
    """Return the scheduler of a torch optimizer. It counts samples: call `step(global_batch_size)` per iteration.

    Iteration k (from 1) uses the rate after (k - 1) * global_batch_size samples, as in Megatron, so with warmup the
    first rate is 0. The shape follows the configuration, not a checkpoint, so a resumed run may train longer.

    Args:
        optimizer: A torch.optim.Optimizer.
        config: The run's configuration.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _make(optimizer, config)


def _make(optimizer: Any, config: PretrainConfig) -> "OptimizerParamScheduler":
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    s, o, size = config.scheduler, config.optimizer, config.train.global_batch_size
    total = config.train.train_iters * size
    decay = s.lr_wsd_decay_iters
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=o.lr,
        min_lr=o.min_lr,
        lr_warmup_steps=s.lr_warmup_iters * size,
        lr_decay_steps=total,
        lr_decay_style=s.lr_decay_style,
        start_wd=o.weight_decay,
        end_wd=o.weight_decay,
        wd_incr_steps=total,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=None if decay is None else decay * size,
        lr_wsd_decay_style=s.lr_wsd_decay_style,
    )
