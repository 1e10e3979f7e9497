"""`train.mixture`: the stages of a run, each with the budgets of its datasets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from nano3.utils.errors import UserError, did_you_mean

KEY = "train.mixture"
LARGEST = 1e18  # more epochs, tokens and iterations than any run has, and products of two such numbers are finite
EXAMPLE = "{until: 60%, blend: {docs: 0.7, code: {epochs: 2.5}}}"


@dataclass(frozen=True)
class Budget:
    """How much a stage reads of a dataset: a number of epochs or of tokens, or a weighted share of what is left."""

    # Share of what the budgets in epochs and tokens leave, relative to the other weights.
    weight: float | None = None
    # Passes over the dataset in this stage.
    epochs: float | None = None
    # Tokens of the dataset in this stage.
    tokens: float | None = None
    # Most passes over the dataset from the start of the run to the end of this stage.
    max_epochs: float | None = None

    def to_json(self) -> dict[str, float]:
        """Return the values that are set."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class StageBudgets:
    """A stage of a run."""

    # Its last iteration.
    until: int
    # The budget of each dataset; None for the blend of the data.
    blend: Mapping[str, Budget] | None
    # max_epochs of the datasets that have none of their own.
    max_epochs: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stage as values that JSON can hold."""
        blend = {name: budget.to_json() for name, budget in (self.blend or {}).items()}
        return {"until": self.until, "blend": blend}


def parse_mixture(entries: Sequence[Any], train_iters: int, tokens_per_iteration: int) -> list[StageBudgets]:
    """Return the stages of `train.mixture`; one stage with the blend of the data if there are none.

    Args:
        entries: The value of the key.
        train_iters: Iterations of the run.
        tokens_per_iteration: Tokens of one global batch.

    Raises:
        UserError: Lists every problem.
    """
    problems: list[str] = []
    stages: list[StageBudgets] = []
    for number, entry in enumerate(entries, 1):
        where, last = f"{KEY}, stage {number}", number == len(entries)
        if not isinstance(entry, Mapping):
            problems.append(f"{where}: expected keys and values such as {EXAMPLE}, found {entry!r}.")
            continue
        known = ["until", "blend", "max_epochs"]
        problems += [f"{where}: no key {key!r}.{did_you_mean(str(key), known)}" for key in entry if key not in known]
        limit, found = _number(entry.get("max_epochs"), f"{where}: max_epochs")
        blend, more = _parse_blend(entry.get("blend"), where, limit)
        until, wrong = _parse_until(entry.get("until"), where, train_iters, tokens_per_iteration, last)
        problems += [*found, *more, *wrong]
        if until is not None:
            if stages and until <= stages[-1].until:
                before = stages[-1].until
                problems.append(f"{where} ends at iteration {until:,}, not after the stage before it ({before:,}).")
            stages.append(StageBudgets(until, blend, limit))
    if problems:
        raise UserError(problems)
    return stages or [StageBudgets(train_iters, None)]


def _parse_blend(value: Any, where: str, max_epochs: float | None) -> tuple[dict[str, Budget] | None, list[str]]:
    """Return the budgets of a stage, and what is wrong with them."""
    if value is None:
        return None, []
    if not isinstance(value, Mapping) or not value:
        return None, [f"{where}: blend must name datasets, as in {EXAMPLE}, found {value!r}."]
    found, problems = {}, []
    for name, entry in value.items():
        budget, wrong = _parse_budget(entry, f"{where}, dataset {name}", max_epochs)
        found[str(name)] = budget
        problems += wrong
    return found, problems


def _parse_budget(value: Any, where: str, max_epochs: float | None) -> tuple[Budget, list[str]]:
    entry = value if isinstance(value, Mapping) else {"weight": value}
    known = [f.name for f in fields(Budget)]
    problems = [f"{where}: no key {key!r}.{did_you_mean(str(key), known)}" for key in entry if key not in known]
    numbers: dict[str, float | None] = {"max_epochs": max_epochs}
    for key in known:
        if key in entry:
            numbers[key], wrong = _number(entry[key], f"{where}: {key}")
            hint = " Leave out a dataset that the stage does not read." if entry[key] == 0 else ""
            problems += [problem + hint for problem in wrong]
    if not problems and sum(numbers.get(key) is not None for key in ("weight", "epochs", "tokens")) != 1:
        problems.append(f"{where}: give one of weight, epochs and tokens.")
    return Budget(**numbers), problems


def _parse_until(
    value: Any, where: str, train_iters: int, tokens_per_iteration: int, last: bool
) -> tuple[int | None, list[str]]:
    """Return the last iteration of a stage, and what is wrong with it."""
    forms = "60% (of train.train_iters), 1200 (iterations) or '3e9 tokens'"
    if value is None:
        return (train_iters, []) if last else (None, [f"{where}: until is missing. Write {forms}."])
    words = str(value).split() or [""]
    number, unit = (words[0][:-1], "%") if len(words) == 1 and words[0].endswith("%") else (words[0], words[-1])
    amount, wrong = _number(number, f"{where}: until")
    if amount is None or wrong or isinstance(value, bool) or len(words) > 2:
        return None, [f"{where}: until={value!r} is not understood. Write {forms}."]
    amount = min(amount, LARGEST)
    if unit == "%":
        until = round(train_iters * amount / 100)
    elif unit == "tokens":
        until = round(amount / tokens_per_iteration)
    elif len(words) == 1 and amount == int(amount):
        until = int(amount)
    else:
        return None, [f"{where}: until={value!r} is not understood. Write {forms}."]
    if not 1 <= until <= train_iters:
        return None, [
            f"{where}: until={value} is iteration {until:,}, and the run has iterations 1 to {train_iters:,} "
            "(train.train_iters)."
        ]
    if last and until != train_iters:
        return None, [
            f"{where} is the last one and ends at iteration {until:,} of {train_iters:,} (train.train_iters). Leave "
            "out its until, or add a stage."
        ]
    return until, []


def _number(value: Any, where: str) -> tuple[float | None, list[str]]:
    """Return a positive number, given as such or as text."""
    if value is None:
        return None, []
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        return None, [f"{where} must be a number above 0, found {value!r}."]
    return number, []
