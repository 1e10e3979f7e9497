"""Early ends of Megatron-Bridge become messages with a remedy, and no other error is hidden."""

import contextlib
import gc
import logging
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from nano3.training.megatron.errors import (
    divergence_message,
    hide_expected_tracebacks,
    out_of_memory_message,
    translate_errors,
)
from nano3.utils.errors import Failure

# As torch 2.11 said it on an H100.
FULL = (
    "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 2.58 GiB is free."
    "{others} Including non-PyTorch memory, this process has 70.28 GiB memory in use. Of the allocated memory "
    "60.47 GiB is allocated by PyTorch, and 5.86 GiB is reserved by PyTorch but unallocated. If reserved but "
    "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
OTHERS = " Process 641 has 6.28 GiB memory in use. Process 7 has 512.00 MiB memory in use."
LOGGER = "megatron.bridge.training.pretrain"


def hooks(iteration: int = 4, reason: str = "") -> SimpleNamespace:
    return SimpleNamespace(iteration=iteration, reason=reason)


def test_the_message_for_divergence_names_the_trace_command() -> None:
    message = divergence_message(3, "loss nan")
    assert (
        "iteration 3: loss nan" in message and "optimizer.lr" in message and "nano3 trace RUN --iteration 3" in message
    )


def test_the_message_for_a_full_gpu_has_torchs_numbers_and_nano3s_keys() -> None:
    message = out_of_memory_message(5, 16, FULL.format(others=OTHERS))
    assert message.startswith(
        "The GPU is full in iteration 5: Tried to allocate 4.00 GiB. GPU 0 has a total capacity of"
    )
    assert "Other processes on this GPU hold 6.28 GiB and 512.00 MiB." in message
    assert "train.micro_batch_size (now 16)" in message and "PYTORCH" not in message


def test_other_processes_and_a_smaller_batch_are_named_only_if_they_apply() -> None:
    message = out_of_memory_message(1, 1, FULL.format(others=""))
    assert "Other processes" not in message and "micro_batch_size" not in message
    assert "recompute_granularity" in message


def test_an_unknown_torch_message_gives_no_numbers() -> None:
    assert out_of_memory_message(2, 1, "no memory").startswith("The GPU is full in iteration 2. What helps:")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(torch.OutOfMemoryError(FULL.format(others="")), "The GPU is full in iteration 5", id="memory"),
        pytest.param(RuntimeError("('found NaN in local grad norm')"), "iteration 5: found NaN in local", id="nan"),
        pytest.param(RuntimeError("Rank 0: found Inf in loss"), "iteration 5: found Inf in loss", id="inf"),
        pytest.param(SystemExit(0), "exited at iteration 4 with exit code 0", id="unasked exit"),
        pytest.param(SystemExit(3), "exited at iteration 4 with exit code 3", id="failing exit"),
    ],
)
def test_an_early_end_is_a_failure_that_keeps_its_cause(error: BaseException, words: str) -> None:
    with pytest.raises(Failure, match=words) as caught, translate_errors(hooks(), 1):
        raise error
    assert caught.value.__cause__ is error


def test_an_agreed_stop_is_no_failure() -> None:
    with translate_errors(hooks(reason="SIGTERM"), 1):
        raise SystemExit(0)
    with pytest.raises(Failure, match="exit code 1"), translate_errors(hooks(reason="SIGTERM"), 1):
        raise SystemExit(1)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape '[3]' is invalid"), ValueError("found NaN"), KeyboardInterrupt()]
)
def test_other_errors_are_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate_errors(hooks(), 1):
        raise error
    assert caught.value is error


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Megatron-Bridge disables the garbage collector and runs it itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(SystemExit(0), id="agreed stop"),
        pytest.param(RuntimeError("found NaN in local grad norm"), id="diverged"),
        pytest.param(ValueError("not expected"), id="not expected"),
    ],
)
def test_data_loaders_are_released_at_once(error: BaseException, no_collection: None) -> None:
    """Otherwise a garbage collection closes the queue that ends their workers first.

    The exit then waited five seconds for each of eight workers after every stop on an H100.
    """
    held = []

    def train() -> None:
        batches = iter(DataLoader(torch.arange(64), batch_size=2, num_workers=1, persistent_workers=True))
        held.append((weakref.ref(batches), batches._workers))
        next(batches)
        raise error

    with contextlib.suppress(BaseException), hide_expected_tracebacks(), translate_errors(hooks(reason="SIGTERM"), 1):
        train()
    ((batches, workers),) = held
    assert batches() is None
    assert [w.exitcode for w in workers] == [0]


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        pytest.param(SystemExit(0), True, id="agreed stop"),
        pytest.param(SystemExit(1), False, id="failing exit"),
        pytest.param(Failure("message"), True, id="nano3's own"),
        pytest.param(RuntimeError("found NaN in local grad norm"), True, id="diverged"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory."), True, id="memory"),
        pytest.param(RuntimeError("NCCL error"), False, id="not expected"),
    ],
)
def test_only_expected_ends_are_hidden_from_the_log(
    error: BaseException, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with hide_expected_tracebacks(), contextlib.suppress(BaseException):
        try:
            raise error
        except BaseException:
            logging.getLogger(LOGGER).error("Pretrain failed")
            raise
    assert (not caplog.records) is silent
    logging.getLogger(LOGGER).error("after it")
    assert caplog.records[-1].message == "after it"
