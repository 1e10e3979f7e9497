"""Batch arithmetic: which samples each rank reads, micro step by micro step.

A sample is one sequence. One iteration consumes `global_batch_size` consecutive samples of the data order; micro step j
of rank r takes `micro_batch_size` of them, in the order of Megatron's pretraining sampler: the micro batches of all
ranks for step 0, then those for step 1, and so on.
"""

from dataclasses import dataclass

from nano3.training.checks.parallel_layout import batch_problem
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
        """Return the samples of one micro step as indices into the data order.

        Args:
            iteration: Iterations that are done.
            micro_step: The micro step, from 0.
            rank: The data-parallel rank.
        """
        step = self.micro_batch_size * self.data_parallel_size
        start = iteration * self.global_batch_size + micro_step * step + rank * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


def plan_batches(global_batch_size: int, micro_batch_size: int, data_parallel_size: int) -> BatchPlan:
    """Check the sizes and return the plan.

    Args:
        global_batch_size: Samples per iteration.
        micro_batch_size: Samples per rank and micro step.
        data_parallel_size: Ranks that read different samples.

    Raises:
        UserError: A size is below 1, or the batch cannot be divided; the message names sizes that fit.
    """
    sizes = {
        "train.global_batch_size": global_batch_size,
        "train.micro_batch_size": micro_batch_size,
        "data-parallel size": data_parallel_size,
    }
    bad = [f"{name}={value} must be at least 1." for name, value in sizes.items() if value < 1]
    if bad:
        raise UserError(bad)
    if problem := batch_problem(global_batch_size, micro_batch_size, data_parallel_size):
        raise UserError(problem)
    return BatchPlan(global_batch_size, micro_batch_size, data_parallel_size)
