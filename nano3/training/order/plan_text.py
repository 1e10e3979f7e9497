"""What a plan gives, in words and tables: for the log, the preflight, `nano3 trace` and `nano3 report`."""

from nano3.training.order.plan import OrderPlan


def stage_sentence(plan: OrderPlan, iteration: int) -> str:
    """Return what the mixture is from an iteration on, if a stage begins there; else an empty string.

    Args:
        plan: The plan of a run.
        iteration: The iteration that comes next, counted from 1.
    """
    number = plan.stage_at(iteration)
    stage = plan.stages[number]
    if iteration != stage.first + 1:
        return ""
    whole = sum(stage.samples.values())
    shares = sorted(((count / whole, name) for name, count in stage.samples.items() if count), reverse=True)
    text = ", ".join(f"{name} {share:.1%}" for share, name in shares)
    return f"stage {number + 1} of {len(plan.stages)}, iterations {stage.first + 1:,} to {stage.end:,}: {text}"


def change_sentence(before: OrderPlan, now: OrderPlan, iteration: int) -> str:
    """Return how the plan of a resumed run differs from the one in its checkpoint; empty if it does not.

    Args:
        before: The plan in the checkpoint.
        now: The plan of this start.
        iteration: Iterations that are done.
    """
    if before.stages == now.stages:
        return ""
    new, left = sorted(now.datasets.keys() - before.datasets.keys()), sorted(leaving(before, now, iteration))
    names = [f"{', '.join(new)} joins" if new else "", f"{', '.join(left)} leaves" if left else ""]
    more = "; ".join(name for name in names if name)
    return f"the mixture changes after iteration {iteration:,}" + (f": {more}" if more else "")


def leaving(before: OrderPlan, now: OrderPlan, iteration: int) -> set[str]:
    """Return the datasets that were still to be read and are not any more."""
    wanted, kept = before.consumed(before.stages[-1].end), now.consumed(now.stages[-1].end)
    done = before.consumed(iteration)
    return {name for name in done if wanted[name] > done[name] and kept.get(name, 0) == done[name]}


def mixture_rows(plan: OrderPlan) -> list[tuple[str, str]]:
    """Return rows (what, value): share, tokens and epochs of each dataset in each stage, and since the start."""
    rows = []
    for number, stage in enumerate(plan.stages, 1):
        size = (stage.end - stage.first) * plan.global_batch_size
        rows.append((f"stage {number}", f"iterations {stage.first + 1:,} to {stage.end:,}"))
        before, after = plan.consumed(stage.first), plan.consumed(stage.end)
        for name in plan.datasets:
            if count := after[name] - before[name]:
                tokens = count * plan.seq_length
                text = f"{count / size:.1%} of the samples, {tokens:,} tokens, {plan.epochs(name, count):,.2f} epochs"
                if given := stage.budgets.get(name):
                    text += f" for {', '.join(f'{key}={value:g}' for key, value in given.items())}"
                if before[name]:
                    text += f", {plan.epochs(name, after[name]):,.2f} since the start"
                rows.append((f"  {name}", text))
    return rows


CONSUMED_COLUMNS = ["dataset", "planned tokens", "consumed tokens", "planned epochs", "consumed epochs"]


def consumed_rows(plan: OrderPlan, iteration: int) -> list[list[str]]:
    """Return the rows of `CONSUMED_COLUMNS` after an iteration, one per dataset.

    Args:
        plan: The plan of a run.
        iteration: Iterations that are done.
    """
    planned, consumed = plan.consumed(plan.stages[-1].end), plan.consumed(iteration)
    return [
        [
            name,
            f"{planned[name] * plan.seq_length:,}",
            f"{consumed[name] * plan.seq_length:,}",
            f"{plan.epochs(name, planned[name]):,.3f}",
            f"{plan.epochs(name, consumed[name]):,.3f}",
        ]
        for name in plan.datasets
    ]
