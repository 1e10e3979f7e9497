"""The memory that the process that writes checkpoints allocates ahead. tests/gpu checks that a copy takes it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nano3.training.megatron import writer_memory
from nano3.training.megatron.writer_memory import ReserveMemory, block_size, blocks_of_a_save, reserve

SHAPES = [(512, 2560), (512,), (1000, 3)]


def stepped(dtype: torch.dtype, device: str = "meta") -> torch.optim.Optimizer:
    """Return an optimizer after a step, of tensors that are not on the host."""
    parameters = [torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device)) for shape in SHAPES]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    return optimizer


def chained(*parts: Any) -> SimpleNamespace:
    return SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=part) for part in parts])


@pytest.mark.parametrize(
    ("size", "block"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192), (512 * 2560 * 4, 2**23)]
)
def test_blocks_are_powers_of_two(size: int, block: int) -> None:
    assert block_size(size) == block


def test_weights_master_weights_and_moments_are_counted() -> None:
    """bf16 weights with masters and two moments in fp32: 14 bytes per parameter."""
    blocks = blocks_of_a_save(chained(stepped(torch.float32), None), weight_bytes=2)
    assert blocks == {2**23: 3, 2**22: 1, 2**11: 3, 2**10: 1, 2**14: 3, 2**13: 1}
    parameters = sum(torch.Size(shape).numel() for shape in SHAPES)
    assert 14 * parameters <= sum(size * number for size, number in blocks.items()) < 2 * 14 * parameters


def test_weights_that_the_optimizer_updates_itself_are_counted_once() -> None:
    blocks = blocks_of_a_save(SimpleNamespace(optimizer=stepped(torch.float32)), weight_bytes=4)
    assert blocks == {2**23: 3, 2**11: 3, 2**14: 3}


def test_optimizers_in_optimizers_and_state_on_the_host() -> None:
    """State that is offloaded to the host needs no copy; its weights are on the GPU."""
    nested = SimpleNamespace(chained_optimizers=[chained(stepped(torch.float32)), chained()])
    assert sum(blocks_of_a_save(nested, weight_bytes=4).values()) == 9
    offloaded = blocks_of_a_save(chained(stepped(torch.float32, "cpu")), weight_bytes=2)
    assert offloaded == {2**22: 1, 2**10: 1, 2**13: 1}


def test_memory_that_is_not_there_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reserve({2**60: 1})
    assert "pinned memory for checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("least", [1, 2**40])
def test_one_request_after_the_first_step(
    least: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank with little to reserve sends an empty one: the ranks' numbers of requests must agree."""
    monkeypatch.setattr(writer_memory, "LEAST_BYTES", least)
    sent: list[Any] = []
    callback = ReserveMemory(lambda state, function, blocks: sent.append((state, function, blocks)))
    model = torch.nn.ModuleList(
        [torch.nn.Linear(2, 2, dtype=torch.float32), torch.nn.Linear(2, 2, dtype=torch.bfloat16)]
    )
    context = SimpleNamespace(
        state="state", model=[model], optimizer=chained(stepped(torch.float32)), skipped_iter=True
    )
    callback.on_train_step_end(context)
    assert not sent
    context.skipped_iter = False
    for _ in range(3):
        callback.on_train_step_end(context)
    expected = blocks_of_a_save(context.optimizer, 2) if least == 1 else {}
    assert sent == [("state", reserve, expected)]
    assert ("reserving" in capsys.readouterr().out) is bool(expected)
