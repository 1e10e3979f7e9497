"""How Megatron-Bridge ends early, in nano3's terms: an agreed stop, a run that diverged, a GPU that is full."""

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Protocol

from nano3.utils.errors import Failure

DIVERGED = re.compile(r"found (?:NaN|Inf)[^')]*")
# The first sentences of torch.OutOfMemoryError; the advice that follows them is for those who write the model.
NUMBERS = re.compile(r"Tried to allocate .*?of which .*? is free\.")
OTHERS = re.compile(r"(?<!this )[Pp]rocess \d+ has ([\d.]+ \w+) memory in use")


class LoopProgress(Protocol):
    """What is known of a run from outside: the last iteration, and why a stop was agreed on ("" when none was)."""

    iteration: int
    reason: str


def divergence_message(iteration: int, what: str) -> str:
    """What a run that diverged says."""
    return (
        f"Training diverged at iteration {iteration}: {what}. The last checkpoint is from before it. Start again with "
        "a smaller optimizer.lr or longer scheduler.lr_warmup_iters, or look at the documents of that batch: "
        f"nano3 trace RUN --iteration {iteration}."
    )


def out_of_memory_message(iteration: int, micro_batch_size: int, told: str) -> str:
    """What a run says whose GPU is full. `told` is torch's message."""
    numbers = NUMBERS.search(told)
    parts = [f"The GPU is full in iteration {iteration}" + (f": {numbers[0]}" if numbers else ".")]
    if others := OTHERS.findall(told):
        parts.append(f"Other processes on this GPU hold {' and '.join(others)}.")
    smaller = f"a smaller train.micro_batch_size (now {micro_batch_size}), " if micro_batch_size > 1 else ""
    parts.append(
        f"What helps: {smaller}+megatron.model.recompute_granularity=selective or full, more ranks, or larger "
        "model.*_parallel_size; dry_run=true tells what a setting needs."
    )
    return " ".join(parts)


@contextlib.contextmanager
def translate_errors(hooks: LoopProgress, micro_batch_size: int) -> Iterator[None]:
    """An agreed stop is no error; a loss that is no number and a full GPU are a `Failure` that says what to do."""
    try:
        try:
            yield
        except BaseException as error:
            # The frames hold the data loaders. Let go of here, their workers end at once; found by a garbage
            # collection, or by the end of the process, each is waited for five seconds, for nobody tells it to end.
            traceback.clear_frames(error.__traceback__)
            raise
    except SystemExit as error:
        if not hooks.reason or error.code not in (0, None):
            raise Failure(
                f"Megatron-Bridge left at iteration {hooks.iteration} with exit code {error.code}; see the log above."
            ) from error
    except RuntimeError as error:
        if what := DIVERGED.search(str(error)):
            raise Failure(divergence_message(hooks.iteration + 1, what[0])) from error
        if is_out_of_memory(error):
            raise Failure(out_of_memory_message(hooks.iteration + 1, micro_batch_size, str(error))) from error
        raise


@contextlib.contextmanager
def hide_expected_tracebacks() -> Iterator[None]:
    """Keep tracebacks of foreseen ends out of the log: Megatron-Bridge reports SystemExit(0), by which it leaves its
    loop after an agreed stop, as an error, and nano3 tells the others in its own words.
    """

    def wanted(record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        stopped = isinstance(error, SystemExit) and error.code in (0, None)
        return not (stopped or isinstance(error, Failure) or DIVERGED.search(str(error)) or is_out_of_memory(error))

    logger = logging.getLogger("megatron.bridge.training.pretrain")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether torch could not get memory on a GPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)
