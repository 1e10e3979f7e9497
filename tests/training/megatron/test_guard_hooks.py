"""The guard's callbacks, called in the order of Megatron-Bridge's events; the numbers travel without a GPU."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nano3.config import PretrainConfig
from nano3.training.megatron import recipe
from nano3.training.megatron.guard_hooks import Exchange, GuardHooks, RolledBack, put, skip_ahead
from nano3.training.run.guard import Guard, read_events
from nano3.training.run.skips import BY_USER, ROLLED_BACK, SkippedRange, SkipRecord, read_skips
from nano3.utils.errors import Failure


class HostExchange(Exchange):
    """Hands over the numbers of the only rank."""

    def send(self, loss: Any, grad_norm: float | None) -> None:
        self.sent = float(loss), float(grad_norm or 0.0)

    def receive(self) -> tuple[float, float]:
        return self.sent


def hooks(folder: Path, action: str, saves: tuple[int, ...] = (), train_iters: int = 100) -> GuardHooks:
    config = PretrainConfig()
    config.guard.action, config.guard.window, config.train.train_iters = action, 8, train_iters
    config.scheduler.lr_warmup_iters = 0
    window = [[i, 4.0 + 0.01 * (i % 3), 1.0] for i in range(1, 9)]
    guard = Guard(config, folder, 0, lambda iteration: [], window=window)
    return GuardHooks(guard, lambda iteration: iteration in saves, HostExchange())


def optimizer() -> SimpleNamespace:
    config = SimpleNamespace(grad_norm_skip_threshold=math.inf)
    return SimpleNamespace(chained_optimizers=[SimpleNamespace(config=config)])


def step(own: GuardHooks, iteration: int, loss: float = 4.0, norm: float = 1.0) -> bool:
    """Run the events of one iteration as Megatron-Bridge does, and return whether the optimizer left it out."""
    chained = optimizer()
    state = SimpleNamespace(train_state=SimpleNamespace(step=iteration - 1))
    own.on_train_step_start(SimpleNamespace(state=state, optimizer=chained))
    dropped = norm > chained.chained_optimizers[0].config.grad_norm_skip_threshold
    own.on_train_step_end(
        SimpleNamespace(state=state, loss_dict={"lm loss": loss}, grad_norm=norm, skipped_iter=dropped)
    )
    return dropped


@pytest.mark.parametrize("saves", [(), (21,)], ids=["decided by the next iteration", "decided before a save"])
def test_a_norm_on_the_gpu_is_not_waited_for(tmp_path: Path, saves: tuple[int, ...]) -> None:
    """With skip_sync_grad_norm_across_mp, Megatron-Bridge hands over a tensor."""
    torch = pytest.importorskip("torch")
    own = hooks(tmp_path, "warn", saves)
    step(own, 20, 4.0, torch.tensor([1.0]))
    if not saves:
        step(own, 21, math.nan, torch.tensor([math.nan]))
    with pytest.raises(Failure, match="diverged at iteration 21"):
        step(own, 22 if not saves else 21, math.nan, torch.tensor([math.nan]))


@pytest.mark.parametrize("shape", [None, (), (1,)], ids=["number", "no dimension", "one dimension"])
def test_numbers_and_tensors_of_one_element_are_sent(shape: tuple[int, ...] | None) -> None:
    """Megatron-Core's norm has one dimension if the loss scale does not make it a number."""
    torch = pytest.importorskip("torch")
    pair = torch.full((2,), -math.inf, dtype=torch.float64)
    put(pair[1], 1.5 if shape is None else torch.full(shape, 1.5))
    assert pair.tolist() == [-math.inf, 1.5]


@pytest.mark.parametrize(("loss", "norm"), [(9.0, 1.0), (4.0, 50.0), (math.nan, math.nan)])
def test_an_iteration_is_rolled_back_after_the_next_one(tmp_path: Path, loss: float, norm: float) -> None:
    own = hooks(tmp_path, "rollback")
    step(own, 20)
    step(own, 21, loss, norm)
    with pytest.raises(RolledBack):
        step(own, 22)
    (event,) = read_events(tmp_path)
    assert (event["iteration"], event["action"]) == (21, "rollback")
    assert [str(one) for one in read_skips(tmp_path).ranges] == ["21 (guard rollback)"]


def test_the_checkpoint_that_is_being_written_is_completed_before_a_rollback(tmp_path: Path) -> None:
    """It is the newest one before the anomaly; given up, the run would repeat one interval more."""
    own, completed = hooks(tmp_path, "rollback"), []
    own._before_rollback = lambda state: completed.append(int(state.train_state.step))
    step(own, 21, norm=50.0)
    assert completed == []
    with pytest.raises(RolledBack):
        step(own, 22)
    assert completed == [21]


@pytest.mark.parametrize("saves", [(21,), ()], ids=["saved", "last"])
def test_no_checkpoint_and_no_end_comes_before_the_decision(tmp_path: Path, saves: tuple[int, ...]) -> None:
    own = hooks(tmp_path, "rollback", saves, train_iters=100 if saves else 21)
    if saves:
        with pytest.raises(RolledBack):
            step(own, 21, 9.0)
    else:
        step(own, 21, 9.0)
        assert read_events(tmp_path)[0]["action"] == "warn"  # the last iteration cannot be left out


def test_a_step_is_left_out_by_the_optimizers_own_threshold(tmp_path: Path) -> None:
    own = hooks(tmp_path, "skip")
    assert [step(own, 20), step(own, 21, norm=50.0), step(own, 22), step(own, 23, norm=math.inf)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert [(event["iteration"], event["action"]) for event in read_events(tmp_path)] == [(21, "skip"), (23, "skip")]
    assert [str(one) for one in read_skips(tmp_path).ranges] == ["21 (guard skip)", "23 (guard skip)"]


def test_what_the_optimizer_cannot_leave_out_is_reported_or_rolled_back(tmp_path: Path) -> None:
    own = hooks(tmp_path, "skip")
    assert step(own, 20, loss=9.0) is False
    with pytest.raises(RolledBack):
        step(own, 21, math.nan, math.nan)
    assert [event["action"] for event in read_events(tmp_path)] == ["warn", "rollback"]


def test_a_lower_threshold_of_the_user_stays(tmp_path: Path) -> None:
    own, chained = hooks(tmp_path, "skip"), optimizer()
    chained.chained_optimizers[0].config.grad_norm_skip_threshold = 1.5
    state = SimpleNamespace(train_state=SimpleNamespace(step=20))
    own.on_train_step_start(SimpleNamespace(state=state, optimizer=chained))
    assert chained.chained_optimizers[0].config.grad_norm_skip_threshold == 1.5


def test_with_warn_nan_fails_at_once(tmp_path: Path) -> None:
    own = hooks(tmp_path, "warn")
    step(own, 20, loss=9.0)
    with pytest.raises(Failure, match="diverged at iteration 21"):
        step(own, 21, math.nan, math.nan)
    assert [event["action"] for event in read_events(tmp_path)] == ["warn", "fail"]


def test_iterations_directly_after_the_checkpoint_are_passed_before_the_data_is_opened() -> None:
    record = SkipRecord(
        (SkippedRange(11, 12, BY_USER), SkippedRange(13, 13, ROLLED_BACK), SkippedRange(20, 20, BY_USER))
    )
    assert skip_ahead(record, 9, 32) == []
    (ahead,) = skip_ahead(record, 10, 32)
    state = SimpleNamespace(step=10, consumed_train_samples=320, skipped_train_samples=0)
    ahead.on_data_init_start(SimpleNamespace(state=SimpleNamespace(train_state=state)))
    assert vars(state) == {"step": 13, "consumed_train_samples": 416, "skipped_train_samples": 96}
    assert record.after(13) == [20]


@pytest.mark.parametrize("guarded", [True, False])
def test_megatrons_own_checks_of_losses_and_gradients_make_way_for_the_guard(guarded: bool) -> None:
    names = ("rerun_state_machine.check_for_nan_in_loss", "ddp.check_for_nan_in_grad", "ddp.check_for_large_grads")
    values = dict.fromkeys(names, True)
    found = recipe.adaptations(values.get, 8, lambda name: True, guarded)
    assert [(s.path, s.value) for s in found] == ([(path, False) for path in values] if guarded else [])
