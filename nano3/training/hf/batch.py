"""Batch arithmetic: which samples each rank reads, micro step by micro step.

A sample is one sequence. One iteration consumes `global_batch_size` consecutive samples of the data order; micro step j
of rank r takes `micro_batch_size` of them, in the order in which Megatron's pretraining sampler deals them out: all
ranks' micro batches of step 0, then those of step 1, and so on.
"""

from dataclasses import dataclass

from nano3.utils.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """Sizes in samples; `data_parallel_size` in ranks."""

    global_batch_size: int
    micro_batch_size: int
    data_parallel_size: int

    @property
    def accumulation(self) -> int:
        """Micro steps per iteration."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)

    def samples(self, iteration: int, micro_step: int, rank: int) -> range:
        """Indices into the data order for `micro_step` of `rank`, `iteration` iterations being finished."""
        step = self.micro_batch_size * self.data_parallel_size
        start = iteration * self.global_batch_size + micro_step * step + rank * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


def plan_batches(global_batch_size: int, micro_batch_size: int, data_parallel_size: int) -> BatchPlan:
    """Check the sizes and return the plan; raises `UserError` with the sizes that would fit."""
    sizes = {
        "train.global_batch_size": global_batch_size,
        "train.micro_batch_size": micro_batch_size,
        "the data-parallel size": data_parallel_size,
    }
    bad = [f"{name} is {value}: it must be at least 1." for name, value in sizes.items() if value < 1]
    if bad:
        raise UserError(bad)
    step = micro_batch_size * data_parallel_size
    if global_batch_size % step == 0:
        return BatchPlan(global_batch_size, micro_batch_size, data_parallel_size)
    raise UserError(
        f"train.global_batch_size={global_batch_size} cannot be dealt out evenly: "
        f"train.micro_batch_size={micro_batch_size} "
        f"x {data_parallel_size} data-parallel rank(s) = {step} samples per micro step, "
        f"and {global_batch_size} is not a multiple of {step}. What would fit: "
        f"{'; or '.join(_fits(global_batch_size, micro_batch_size, data_parallel_size))}."
    )


def _fits(global_batch_size: int, micro_batch_size: int, ranks: int) -> list[str]:
    """Changes of one size each that make the batch come out even."""
    fits = ["train.global_batch_size=" + multiples_around(global_batch_size, micro_batch_size * ranks)]
    if global_batch_size % ranks == 0:
        fits.append("train.micro_batch_size=" + _choices(_divisors(global_batch_size // ranks), micro_batch_size))
    if global_batch_size % micro_batch_size == 0:
        fits.append(_choices(_divisors(global_batch_size // micro_batch_size), ranks) + " rank(s)")
    return fits


def multiples_around(n: int, step: int) -> str:
    """The positive multiples of `step` next below and above `n`, which is none: "8 or 16"."""
    below = n // step * step
    return " or ".join(str(multiple) for multiple in (below, below + step) if multiple)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _choices(allowed: list[int], wanted: int, at_most: int = 4) -> str:
    """The allowed values nearest to the wanted one, smallest first."""
    nearest = sorted(sorted(allowed, key=lambda n: abs(n - wanted))[:at_most])
    return " or ".join(str(n) for n in nearest)
