"""Translate how Megatron-Bridge ends early: an agreed stop, a diverged run, or a full GPU."""

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Protocol

from nano3.training.megatron.guard_hooks import RolledBack
from nano3.utils.errors import Failure

DIVERGED = re.compile(r"found (?:NaN|Inf)[^')]*")
# The first sentences of torch.OutOfMemoryError. The advice after them is meant for authors of models.
MEMORY_NUMBERS = re.compile(r"Tried to allocate .*?of which .*? is free\.")
OTHER_PROCESSES = re.compile(r"(?<!this )[Pp]rocess \d+ has ([\d.]+ \w+) memory in use")


class LoopProgress(Protocol):
    """The last finished iteration, and the reason for an agreed stop ("" without one)."""

    iteration: int
    reason: str


def divergence_message(iteration: int, what: str) -> str:
    """Return the message for a diverged run.

    Args:
        iteration: The iteration that diverged, from 1.
        what: What is not finite, such as "loss nan".
    """
    return (
        f"Training diverged at iteration {iteration}: {what}. The last checkpoint is older. Start again with a smaller "
        "optimizer.lr or a longer scheduler.lr_warmup_iters, or inspect the documents of that batch: "
        f"nano3 trace RUN --iteration {iteration}."
    )


def out_of_memory_message(iteration: int, micro_batch_size: int, torch_message: str) -> str:
    """Return the message for a full GPU, with torch's numbers and nano3's keys.

    Args:
        iteration: The iteration that failed, from 1.
        micro_batch_size: Samples per micro step.
        torch_message: Text of torch.OutOfMemoryError.
    """
    numbers = MEMORY_NUMBERS.search(torch_message)
    sentences = [f"The GPU is full in iteration {iteration}" + (f": {numbers[0]}" if numbers else ".")]
    if others := OTHER_PROCESSES.findall(torch_message):
        sentences.append(f"Other processes on this GPU hold {' and '.join(others)}.")
    smaller = f"a smaller train.micro_batch_size (now {micro_batch_size}), " if micro_batch_size > 1 else ""
    sentences.append(
        f"What helps: {smaller}+megatron.model.recompute_granularity=selective or full, more ranks, or larger "
        "model.*_parallel_size; dry_run=true estimates the memory of a setting."
    )
    return " ".join(sentences)


@contextlib.contextmanager
def translate_errors(hooks: LoopProgress, micro_batch_size: int) -> Iterator[None]:
    """Suppress the exit after an agreed stop, and raise Failure for divergence, a full GPU or an unexpected exit.

    Args:
        hooks: The progress of the training loop.
        micro_batch_size: Samples per micro step, for the message about memory.

    Raises:
        Failure: Megatron-Bridge ended early; the message says what to do.
    """
    try:
        try:
            yield
        except BaseException as error:
            # The frames hold the data loaders. Release them here so that their workers end at once. If the garbage
            # collector or the end of the process releases them, each worker delays the exit by five seconds.
            traceback.clear_frames(error.__traceback__)
            raise
    except SystemExit as error:
        if not hooks.reason or error.code not in (0, None):
            raise Failure(
                f"Megatron-Bridge exited at iteration {hooks.iteration} with exit code {error.code}; see the log above."
            ) from error
    except RuntimeError as error:
        if what := DIVERGED.search(str(error)):
            raise Failure(divergence_message(hooks.iteration + 1, what[0])) from error
        if is_out_of_memory(error):
            raise Failure(out_of_memory_message(hooks.iteration + 1, micro_batch_size, str(error))) from error
        raise


@contextlib.contextmanager
def hide_expected_tracebacks() -> Iterator[None]:
    """Keep tracebacks of expected ends out of the log.

    Megatron-Bridge logs SystemExit(0), with which it leaves its loop after an agreed stop, as an error. nano3 reports
    the other expected ends itself.
    """

    def is_unexpected(record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        stopped = isinstance(error, SystemExit) and error.code in (0, None)
        reported = isinstance(error, Failure | RolledBack) or is_out_of_memory(error)
        return not (stopped or reported or DIVERGED.search(str(error)))

    logger = logging.getLogger("megatron.bridge.training.pretrain")
    logger.addFilter(is_unexpected)
    try:
        yield
    finally:
        logger.removeFilter(is_unexpected)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether torch failed to allocate GPU memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)
