"""Make the plan of a run from `train.mixture` and the data, and continue it with another mixture on a resume."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

from nano3.config import PretrainConfig
from nano3.config.mixture import EXAMPLE, KEY, LARGEST, Budget, StageBudgets, parse_mixture
from nano3.training.dataset import TrainingData
from nano3.training.order.interleave import LARGEST_STAGE
from nano3.training.order.plan import NANO3, DatasetShape, OrderPlan, Stage
from nano3.utils.errors import UserError, did_you_mean


def uses_plan(config: PretrainConfig) -> bool:
    """Return whether the run reads nano3's own order."""
    return config.train.sample_order == NANO3


def make_plan(
    config: PretrainConfig, data: TrainingData, recorded: OrderPlan | None = None, iteration: int = 0
) -> OrderPlan:
    """Return the order of a run from `iteration` on.

    Args:
        config: The configuration of the run.
        data: The prepared data.
        recorded: The plan in the checkpoint that the run resumes from.
        iteration: Iterations that are done.

    Raises:
        UserError: Lists every problem of the mixture, or names a dataset whose content has changed.
    """
    t = config.train
    shapes = dataset_shapes(data)
    unknown = name_problems(t.mixture, list(shapes))
    try:
        stages = parse_mixture(t.mixture, t.train_iters, t.global_batch_size * t.seq_length)
    except UserError as error:
        raise UserError([*error.problems, *unknown]) from None
    if problems := [*unknown, *_unmet_in_stages(stages, data)]:
        raise UserError(problems)
    names = stage_names(stages, data)
    stages = [replace(stage, blend=stage.blend or data_blend(data, stage.max_epochs)) for stage in stages]
    requested = {"train_iters": t.train_iters, "stages": [stage.to_json() for stage in stages]}
    past = OrderPlan(t.seed, t.seq_length, t.global_batch_size, {}, ())
    if recorded:
        _check_recorded(recorded, shapes, config)
        named = {name: shapes.get(name, shape) for name, shape in recorded.datasets.items()}
        past = replace(recorded, datasets=named)
        if recorded.requested == requested:
            return past
        past = past.cut(iteration)
    return _extend(replace(past, requested=requested), stages, shapes, iteration, names)


def data_blend(data: TrainingData, max_epochs: float | None = None) -> dict[str, Budget]:
    """Return the weight or the budget that the blend of the data gives each dataset with a train split.

    Args:
        data: The prepared data.
        max_epochs: `max_epochs` of all datasets, instead of those of the data.
    """
    found, shares = {}, data.shares("train")
    for name, shards in data.datasets("train").items():
        given = data.budgets.get(name, {})
        # Without budgets the shares are kept as earlier versions recorded them.
        weight = sum((shard.weight for shard in shards), 0.0) if data.budgets else shares[name]
        has_weight = not given.keys() & {"epochs", "tokens"}
        limits = given if max_epochs is None else {**given, "max_epochs": max_epochs}
        found[name] = Budget(weight=weight if has_weight else None, **limits)
    return found


def stage_names(stages: Sequence[StageBudgets], data: TrainingData) -> list[str]:
    """Return what each stage is called in messages."""
    if len(stages) == 1:
        return [KEY if stages[0].blend else f"the run with the blend of {data.folder}"]
    return [f"{KEY}, stage {number}" for number in range(1, len(stages) + 1)]


def megatron_order_problems(budgets: Mapping[str, Mapping[str, float]], blend: str) -> list[str]:
    """Return why Megatron's order of samples cannot give what a blend asks for.

    Args:
        budgets: epochs, tokens and max_epochs of the datasets that have any.
        blend: What the blend is called in the message.
    """
    asked = [f"{name}: {key}={value:g}" for name, given in budgets.items() for key, value in given.items()]
    if not asked:
        return []
    return [
        f"{blend} asks for {', '.join(asked)}, and Megatron's order of samples knows weights only. Set "
        f"train.sample_order={NANO3}, or prepare the data with weights (prepared data is not tokenized again)."
    ]


def _unmet_in_stages(stages: Sequence[StageBudgets], data: TrainingData) -> list[str]:
    """Return which budgets of the data no stage can take: they are for a whole run, or of a dataset without tokens."""
    budgets = {name: given for name, given in data.budgets.items() if "epochs" in given or "tokens" in given}
    without = [number for number, stage in enumerate(stages, 1) if not stage.blend]
    if not budgets or not without:
        return []
    if len(stages) > 1:
        return [
            f"{KEY}, stage {number} has no blend, and the blend of {data.folder} has budgets for a whole run "
            f"({', '.join(budgets)}). Give the stage a blend, as in {EXAMPLE}."
            for number in without
        ]
    empty = sorted(budgets.keys() - data.datasets("train").keys())
    return [f"the blend of {data.folder}: {name} has a budget and no train split." for name in empty]


def dataset_shapes(data: TrainingData) -> dict[str, DatasetShape]:
    """Return the train split of each dataset of the data."""
    return {
        name: DatasetShape(
            tokens=sum(shard.tokens for shard in shards),
            sequences=sum(shard.sequences for shard in shards),
            fingerprint=data.dataset_fingerprints[name],
            folder=str(data.folder),
        )
        for name, shards in data.datasets("train").items()
    }


def mixture_problems(config: PretrainConfig) -> list[str]:
    """Return what is wrong with `train.mixture` whatever the data is."""
    t = config.train
    try:
        parse_mixture(t.mixture, t.train_iters, t.global_batch_size * t.seq_length)
    except UserError as error:
        return error.problems
    return []


def name_problems(mixture: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Return a problem for each dataset of `train.mixture` that the data does not have.

    Args:
        mixture: The value of the key.
        names: The datasets of the data.
    """
    blends = [entry.get("blend") for entry in mixture if isinstance(entry, Mapping)]
    unknown = sorted({str(name) for blend in blends if isinstance(blend, Mapping) for name in blend} - {*names})
    return [
        f"{KEY}: the data has no dataset {name!r} with a train split, only {', '.join(names)}."
        f"{did_you_mean(name, names)}"
        for name in unknown
    ]


def _check_recorded(recorded: OrderPlan, shapes: Mapping[str, DatasetShape], config: PretrainConfig) -> None:
    """Raise UserError if the positions in a recorded plan mean other samples now."""
    problems = [
        f"{shapes[name].folder}: the train split of {name} is not the one that the run has read ({shape.folder}), so "
        "its position there means nothing here. Prepare it with the same options and num_shards, or give the dataset "
        "another name."
        for name, shape in recorded.datasets.items()
        if name in shapes and shapes[name].fingerprint != shape.fingerprint
    ]
    t = config.train
    if (recorded.seq_length, recorded.global_batch_size) != (t.seq_length, t.global_batch_size):
        problems.append(
            f"the run's order is of samples of {recorded.seq_length} tokens and batches of "
            f"{recorded.global_batch_size}: restore train.seq_length and train.global_batch_size."
        )
    if problems:
        raise UserError(problems)


def _extend(
    plan: OrderPlan,
    stages: Sequence[StageBudgets],
    shapes: Mapping[str, DatasetShape],
    iteration: int,
    names: Sequence[str],
) -> OrderPlan:
    """Return a plan with the stages, or what is left of them, after an iteration."""
    problems: list[str] = []
    begin = 0
    for number, stage in enumerate(stages, 1):
        first, begin = max(begin, iteration), stage.until
        if stage.until <= first:
            continue
        blend = stage.blend or {}
        size = (stage.until - first) * plan.global_batch_size
        known = replace(plan, datasets={**{name: shapes[name] for name in blend}, **plan.datasets})
        read = known.consumed(iteration) if plan.stages else dict.fromkeys(known.datasets, 0)
        began = stages[number - 2].until if number > 1 else 0
        before = known.consumed(began) if plan.stages else read
        try:
            samples = share_samples(known, blend, size, read, before, names[number - 1])
        except UserError as error:
            problems += error.problems
            samples = share_evenly(size, dict.fromkeys(blend, 1.0))  # so that later stages are checked too
        given = {name: budget.to_json() for name, budget in blend.items()}
        used = {
            name: known.datasets[name]
            for name in [*plan.datasets, *(name for name in shapes if name not in plan.datasets)]
            if samples.get(name) or name in plan.datasets
        }
        plan = replace(
            plan, datasets=used, stages=(*plan.stages, Stage(first, stage.until, stage.until - first, samples, given))
        )
        iteration = stage.until
    if problems:
        raise UserError(problems)
    return plan


def share_samples(
    plan: OrderPlan,
    blend: Mapping[str, Budget],
    size: int,
    read: Mapping[str, int],
    before: Mapping[str, int],
    where: str,
) -> dict[str, int]:
    """Return the samples of each dataset in a stage, or in what is left of it.

    Budgets in epochs and tokens count what the stage has read already. Weights share the rest; a dataset that would
    exceed its max_epochs gets no more than that, and the other weights share what it leaves.

    Args:
        plan: The plan so far, with the sizes of the datasets.
        blend: The budgets of the stage.
        size: Samples of the stage.
        read: Samples of each dataset that the run has read.
        before: Those that it had read when the stage began.
        where: Name of the stage in messages.

    Raises:
        UserError: Lists every budget that cannot be met.
    """
    if size > LARGEST_STAGE:
        raise UserError(f"{where} has {size:,} samples, more than {LARGEST_STAGE:,}. Divide it into several stages.")
    caps = _caps(plan, blend, read)
    fixed, problems = _fixed_samples(plan, blend, read, before, where)
    exceeded = [
        f"{where}, dataset {name}: its budget is {plan.epochs(name, read[name] + fixed[name]):,.2f} epochs of the run, "
        f"more than max_epochs={blend[name].max_epochs:g}."
        for name in fixed
        if _exceeds_max_epochs(plan, name, blend[name], before[name])
    ]
    fixed = {name: min(count, caps.get(name, count)) for name, count in fixed.items()}
    done = {name: read[name] - before[name] for name in blend}
    scaled = len(fixed) == len(blend) and _scale_to_iterations(size, fixed, done, caps, plan.global_batch_size)
    if scaled and not exceeded:
        return scaled
    if problems + exceeded:
        raise UserError(problems + exceeded)
    weights = {name: budget.weight for name, budget in blend.items() if budget.weight is not None}
    wanted, batch = sum(fixed.values()), plan.global_batch_size
    if wanted and not weights and abs(size - wanted) <= batch:
        # Rounding to whole iterations.
        weights, fixed, wanted = {name: count for name, count in fixed.items() if count}, {}, 0
    if wanted > size or (wanted < size and not weights):
        raise UserError(_misfit(wanted, size, batch, where, resumed=read != before))
    shared, left = share_capped(size - wanted, weights, caps)
    if left:
        raise UserError(
            f"{where}: max_epochs leaves {left / batch:,.1f} of its {size // batch:,} iterations without samples. "
            "Raise it, add a dataset, or make it shorter (train.train_iters, until)."
        )
    return {name: fixed.get(name, shared.get(name, 0)) for name in blend}


def _misfit(wanted: int, size: int, batch: int, where: str, resumed: bool) -> str:
    """Return why budgets in epochs and tokens do not fit their stage.

    Args:
        wanted: Samples that they ask for.
        size: Samples of the stage, or of what is left of it.
        batch: Samples of an iteration.
        where: Name of the stage.
        resumed: Whether the stage has been read in part.
    """
    if wanted > size:
        return (
            f"{where}: its budgets in epochs and tokens need {-(-wanted // batch):,} iterations, and it has "
            f"{size // batch:,}{' left' if resumed else ''}. Lower them, or make it longer (train.train_iters, until)."
        )
    return (
        f"{where}: its budgets fill {wanted / size:.1%} of its samples. Give one dataset a weight, raise a budget, "
        "or make it shorter."
    )


def _scale_to_iterations(
    size: int, fixed: Mapping[str, int], done: Mapping[str, int], caps: Mapping[str, int], batch: int
) -> dict[str, int] | None:
    """Return what is left of budgets that are scaled to the whole iterations of their stage.

    A resume in the stage gets what the first start planned.

    Args:
        size: Samples that are left of the stage.
        fixed: Samples that each budget still asks for; negative if scaling has given it more.
        done: Samples of each dataset that the stage has read.
        caps: The most samples that each dataset with max_epochs may still give.
        batch: Samples of an iteration.

    Returns:
        None if the budgets differ from the stage by more than an iteration, or cannot be scaled.
    """
    budgets = {name: count + done[name] for name, count in fixed.items()}
    whole, wanted = size + sum(done.values()), sum(budgets.values())
    if not wanted or abs(whole - wanted) > batch:
        return None
    limits = {name: cap + done[name] for name, cap in caps.items()}
    shares, left = share_capped(whole, {name: count for name, count in budgets.items() if count}, limits)
    rest = {name: shares.get(name, 0) - count for name, count in done.items()}
    return None if left or min(rest.values()) < 0 else rest


def _caps(plan: OrderPlan, blend: Mapping[str, Budget], read: Mapping[str, int]) -> dict[str, int]:
    """Return the most samples that each dataset with max_epochs may still give."""
    return {
        name: max(floor(min(budget.max_epochs, LARGEST) * plan.datasets[name].tokens / plan.seq_length) - read[name], 0)
        for name, budget in blend.items()
        if budget.max_epochs is not None
    }


def _fixed_samples(
    plan: OrderPlan, blend: Mapping[str, Budget], read: Mapping[str, int], before: Mapping[str, int], where: str
) -> tuple[dict[str, int], list[str]]:
    """Return the samples that budgets in epochs and tokens still ask for, and the budgets that are exceeded."""
    fixed, problems = dict[str, int](), list[str]()
    for name, budget in blend.items():
        tokens = _budget_tokens(plan, name, budget)
        if tokens is None:
            continue
        done = read[name] - before[name]
        fixed[name] = round(tokens / plan.seq_length) - done
        if fixed[name] < 0:
            what = f"epochs={budget.epochs:g}" if budget.epochs is not None else f"tokens={budget.tokens:g}"
            problems.append(
                f"{where}, dataset {name}: {what}, but this stage has already read {plan.epochs(name, done):,.2f} "
                f"epochs ({done * plan.seq_length:,} tokens) of it."
            )
    return fixed, problems


def _budget_tokens(plan: OrderPlan, name: str, budget: Budget) -> float | None:
    """Return the tokens that a budget in epochs or tokens asks for; None for a weight."""
    if budget.epochs is not None:
        return min(budget.epochs, LARGEST) * plan.datasets[name].tokens
    return None if budget.tokens is None else min(budget.tokens, LARGEST)


def _exceeds_max_epochs(plan: OrderPlan, name: str, budget: Budget, before: int) -> bool:
    """Return whether a budget exceeds max_epochs by more than the rounding of the stages before it to samples."""
    tokens = _budget_tokens(plan, name, budget)
    if tokens is None or budget.max_epochs is None:
        return False
    limit = min(budget.max_epochs, LARGEST) * plan.datasets[name].tokens
    return (before - len(plan.stages) / 2) * plan.seq_length + tokens > limit


def share_capped(total: int, weights: Mapping[str, float], caps: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Divide `total` by weights with upper bounds. Return the shares, and what no dataset can take.

    Args:
        total: Samples to divide.
        weights: Weight of each dataset.
        caps: The most that a dataset may get, if there is a bound.
    """
    capped: dict[str, int] = {}
    while True:
        free = {name: weight for name, weight in weights.items() if name not in capped}
        rest = total - sum(capped.values())
        if not free:
            return capped, rest
        shares = share_evenly(rest, free)
        over = {name: caps[name] for name, share in shares.items() if share > caps.get(name, share)}
        if not over:
            return {**capped, **shares}, 0
        capped |= over


def share_evenly(total: int, weights: Mapping[str, Any]) -> dict[str, int]:
    """Divide `total` in proportion to weights into whole numbers that add up to it, by largest remainders.

    Args:
        total: What to divide.
        weights: Positive numbers by name.
    """
    fractions = {name: Fraction(weight) for name, weight in weights.items()}  # floats may add up to more than the total
    whole = sum(fractions.values())
    exact = {name: total * weight / whole for name, weight in fractions.items()}
    shares = {name: floor(share) for name, share in exact.items()}
    missing = total - sum(shares.values())
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for number in range(missing):
        shares[by_remainder[number % len(by_remainder)]] += 1
    return shares


def mixture_warnings(plan: OrderPlan) -> list[str]:
    """Return a warning for each dataset that a stage cannot read, or only up to its max_epochs."""
    asked = {name for stage in plan.stages for name in stage.budgets if not stage.samples.get(name)}
    read = plan.consumed(plan.stages[-1].end)
    found = [
        f"{name} is never read: its share or budget is less than one sample of {plan.seq_length:,} tokens."
        for name in sorted(asked)
        if not read.get(name)
    ]
    for number, stage in enumerate(plan.requested.get("stages", []), 1):
        for name, budget in stage["blend"].items():
            limit = budget.get("max_epochs")
            if limit is None or "weight" not in budget or name not in plan.datasets:
                continue
            after = plan.consumed(stage["until"])[name]
            if after >= floor(limit * plan.datasets[name].tokens / plan.seq_length):
                found.append(
                    f"stage {number}: {name} ends at its max_epochs={limit:g}; the other weights share the rest."
                )
    return found
