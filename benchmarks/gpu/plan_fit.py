"""Fit the constants of the cost model to the points with the role "calibrate", and print them:

    plan_fit.py [POINTS.json]

Coordinate descent on the squared logarithm of predicted over measured seconds, from the constants in use. Points with
the role "test", recorded runs and published figures are not used. `nano3/training/cost/step_time.py` and
`memory.py` hold the result, rounded.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plan_accuracy import POINTS, Measured, points, workload

from nano3.training.cost.step_time import MEASURED, Constants, estimate_step
from nano3.training.cost.workload import Workload

# Communication cannot be seen on one GPU, and FP8 is not among the points.
FITTED = ("products", "half_rows", "core", "residual", "mamba", "attention", "dense", "routed", "alltoall", "logits",
          "gradients", "host_graph", "host_expert", "host_step")  # fmt: skip
HOST_KINDS = ("M", "*", "E")
ROUNDS = 60


def with_value(constants: Constants, name: str, value: float) -> Constants:
    """Return the constants with one replaced; `host.E` is the entry of a layer kind."""
    key, _, kind = name.partition(".")
    if kind:
        return replace(constants, host={**constants.host, kind: value})
    return replace(constants, **{key: value})  # type: ignore[arg-type]


def value_of(constants: Constants, name: str) -> float:
    """Return one of the constants by its name."""
    key, _, kind = name.partition(".")
    value = getattr(constants, key)
    return float(value[kind] if kind else value)


def loss_of(measured: list[tuple[Measured, Workload]]) -> Callable[[Constants], float]:
    """Return the function to minimize. A weak pull to the constants in use settles what the points do not."""

    def loss(constants: Constants) -> float:
        total = 0.0
        for m, w in measured:
            assert m.seconds is not None
            here = replace(constants, host_factor=m.host_factor)
            total += math.log(estimate_step(w, m.gpu, here).total / m.seconds) ** 2
        names = [*FITTED, *(f"host.{kind}" for kind in HOST_KINDS)]
        return total + sum(2e-4 * math.log(value_of(constants, n) / value_of(MEASURED, n)) ** 2 for n in names)

    return loss


def fit(measured: list[tuple[Measured, Workload]]) -> Constants:
    """Return the constants that fit best."""
    loss, best, step = loss_of(measured), MEASURED, 1.3
    names = [*FITTED, *(f"host.{kind}" for kind in HOST_KINDS)]
    least = loss(best)
    for _ in range(ROUNDS):
        before = least
        for name in names:
            for factor in (step, 1 / step):
                while (now := loss(candidate := with_value(best, name, value_of(best, name) * factor))) < least:
                    best, least = candidate, now
        if before - least < 1e-6:
            step = math.sqrt(step)
    return best


def main() -> None:
    chosen = [m for m in points(Path(sys.argv[1]) if len(sys.argv) > 1 else POINTS) if m.role == "calibrate"]
    fitted = fit([(m, workload(m)) for m in chosen])
    for name in [*FITTED, *(f"host.{kind}" for kind in HOST_KINDS)]:
        print(f"{name:<14} {value_of(MEASURED, name):>12.4g} -> {value_of(fitted, name):.3g}")


if __name__ == "__main__":
    main()
