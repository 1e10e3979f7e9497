"""The training hooks, called in the order of Megatron-Bridge's events."""

import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nano3.training.megatron import callbacks, checkpoints
from nano3.training.megatron.callbacks import RunContext, StepTimer, TrainingHooks
from nano3.training.megatron.checkpoints import TRACKER, begun_iterations
from nano3.training.run.checkpoints import MARKER, read_checkpoint_info
from nano3.training.run.run_clock import RunClock
from nano3.utils.errors import Failure
from nano3.utils.files import read_json


def test_the_timer_excludes_validation_and_saving() -> None:
    times = iter([0.0, 1.0, 1.1, 2.0, 9.0, 10.0])
    timer = StepTimer(now=lambda: next(times))
    timer.start_step(), timer.end_step()
    timer.start_step(), timer.end_step()
    timer.interrupt()  # between 2 and 9
    timer.start_step(), timer.end_step()
    assert timer.take() == pytest.approx((1.0 + 1.0 + 1.0) / 3)
    assert timer.take() == 0.0


class Recorder:
    """Replaces Metrics and records the calls."""

    def __init__(self) -> None:
        self.valid: list[tuple] = []
        self.logged: list[dict[str, Any]] = []
        self.now = 0.0
        self.clock = RunClock(now=lambda: self.now, age=lambda: 0.0)

    def log(self, **values: Any) -> None:
        self.logged.append(values)

    def log_valid(self, iteration: int, losses: dict[str, float], shares: dict[str, float]) -> None:
        self.valid.append((iteration, losses, shares))

    def flush(self) -> None:
        pass


class Measured:
    shares = {"docs": 0.25, "code": 0.75}

    def __call__(self, context: Any) -> dict[str, float]:
        return {"docs": 2.0, "code": 3.0}


def context(step: int, **more: Any) -> SimpleNamespace:
    cfg = SimpleNamespace(train=SimpleNamespace(exit_interval=None))
    state = SimpleNamespace(train_state=SimpleNamespace(step=step), cfg=cfg)
    return SimpleNamespace(
        state=state, **({"loss_dict": {}, "grad_norm": 1.0, "total_loss_dict": {"lm loss": 2.5}} | more)
    )


def hooks(tmp_path: Path, reasons: dict[int, str] | None = None, saved: list | None = None) -> TrainingHooks:
    stop = SimpleNamespace(
        agreed=lambda iteration, any_rank: (any_rank(iteration in (reasons or {})) and reasons[iteration]) or "",
        exit_iteration=None,
    )
    run = RunContext(
        Recorder(),
        stop,
        lambda i, f: (saved if saved is not None else []).append((i, f)),
        tmp_path,
        tmp_path / "index_cache",
        1000,
        8,
        256,
        save_interval=10,
        train_iters=45,
        run_identity={"a": 1},
        mutable_settings={"b": 2},
    )
    return TrainingHooks(run)


@pytest.fixture
def single_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be the only rank, without a process group."""
    dist = pytest.importorskip("torch.distributed")
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)


def test_after_the_last_iteration_no_stop_is_requested(tmp_path: Path, single_rank: None) -> None:
    """The run has finished: Megatron-Bridge validates, and the exit code is 0."""
    own, last = hooks(tmp_path, {45: "signal SIGTERM"}), context(44)
    own.on_train_step_end(last)
    assert (own.iteration, own.reason, last.state.cfg.train.exit_interval) == (45, "", None)
    assert begun_iterations(tmp_path) == {45}


def test_an_agreed_stop_ends_the_loop_after_this_iteration(tmp_path: Path, single_rank: None) -> None:
    own = hooks(tmp_path, {7: "signal SIGTERM"})
    for step in (5, 6):
        now = context(step)
        own.on_train_step_start(now)
        own.on_train_step_end(now)
    assert (own.iteration, own.reason, now.state.cfg.train.exit_interval) == (7, "signal SIGTERM", 7)


def test_the_logged_rate_is_that_of_the_step(
    tmp_path: Path, single_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron-Bridge advances the schedule within the step; the other backend logs the rate of the step too."""
    own, logged = hooks(tmp_path), []
    own.run.log_interval = 2
    monkeypatch.setattr(own, "_log", lambda context, iteration, loss: logged.append((iteration, own._lr)))
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
    for step in range(4):
        optimizer.param_groups[0]["lr"] = step * 1e-4
        own.on_train_step_start(context(step, optimizer=optimizer))
        optimizer.param_groups[0]["lr"] = (step + 1) * 1e-4
        own.on_train_step_end(context(step, optimizer=optimizer, loss_dict={"lm loss": 2.0}))
    assert logged == [(2, pytest.approx(1e-4)), (4, pytest.approx(3e-4))]


def test_a_gradient_norm_on_the_gpu_is_logged_as_a_number(
    tmp_path: Path, single_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With skip_sync_grad_norm_across_mp, Megatron-Bridge hands over a tensor, which no output can write."""
    torch = pytest.importorskip("torch")
    # These need the process groups of a model that is split over GPUs.
    monkeypatch.setattr(callbacks, "loss_from_last_stage", lambda loss: loss)
    monkeypatch.setattr(callbacks, "reads_own_samples", lambda: True)
    own = hooks(tmp_path)
    own.run.log_interval = 1
    now = context(4, optimizer=SimpleNamespace(param_groups=[{"lr": 1e-4}]))
    now.state.train_state.consumed_train_samples, now.grad_norm = 32, torch.tensor([1.5])
    now.loss_dict, now.state.cfg.model = {"lm loss": torch.tensor(2.0)}, SimpleNamespace()
    own.on_train_step_start(now)
    own.on_train_step_end(now)
    (line,) = own.run.metrics.logged
    assert json.loads(json.dumps(line))["grad_norm"] == 1.5
    assert f"{now.grad_norm:.3f}" == "1.500"  # as Megatron-Bridge's own line does next


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_non_finite_gradient_fails_with_the_iteration(tmp_path: Path, norm: float) -> None:
    with pytest.raises(Failure, match=f"iteration 5: gradient norm {norm}"):
        hooks(tmp_path).on_train_step_end(context(4, grad_norm=norm))


def test_with_a_guard_a_non_finite_gradient_is_the_guards_affair(tmp_path: Path, single_rank: None) -> None:
    own = hooks(tmp_path)
    own.run.guard = SimpleNamespace(action="warn")
    own.on_train_step_end(context(4, grad_norm=math.nan))
    assert own.iteration == 5


def test_a_non_finite_loss_fails_when_it_is_logged(tmp_path: Path) -> None:
    own = hooks(tmp_path)
    own.run.log_interval = 1
    with pytest.raises(Failure, match="iteration 5: loss nan"):
        own.on_train_step_end(context(4, loss_dict={"lm loss": math.nan}))


def test_validation_is_recorded_once_for_an_iteration(tmp_path: Path, single_rank: None) -> None:
    own = hooks(tmp_path)
    own.run.validation = Measured()
    own.on_eval_end(context(20))
    own.on_eval_end(context(20))  # Megatron-Bridge validates again at the end
    assert own.run.metrics.valid == [(20, {"docs": 2.0, "code": 3.0}, Measured.shares)]


def test_without_a_validation_of_its_own_nothing_is_recorded(tmp_path: Path, single_rank: None) -> None:
    own = hooks(tmp_path)
    own.on_eval_end(context(20))
    assert own.run.metrics.valid == []


def test_a_complete_checkpoint_is_marked_and_reported(tmp_path: Path, single_rank: None) -> None:
    folder = tmp_path / "iter_0000040"
    folder.mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    saved: list = []
    own = hooks(tmp_path, saved=saved)
    own.on_checkpoint_save(context(43))  # an asynchronous save completes some iterations later
    info = read_checkpoint_info(folder)
    assert (info.iteration, info.consumed_samples, info.consumed_tokens) == (40, 320, 320 * 256)
    assert (info.run_identity, info.mutable_settings) == ({"a": 1}, {"b": 2})
    assert saved == [(40, folder)] and own.saved == folder
    assert read_json(folder / MARKER)["iteration"] == 40


def test_a_save_is_recorded_before_it_starts(tmp_path: Path, single_rank: None) -> None:
    """At the interval, at the end and at a stop, so that the folder of a killed save is known to be nano3's."""
    own = hooks(tmp_path, {33: "signal SIGTERM"})
    for step in (8, 9, 10, 32, 44):
        own.on_train_step_end(context(step))
        own.reason = "" if step == 32 else own.reason
        if begun_iterations(tmp_path):
            folder_of(tmp_path, max(begun_iterations(tmp_path)))
    assert begun_iterations(tmp_path) == {10, 33, 45}


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No record of a checkpoint can be written."""

    def full(path: Path, *values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for name in ("record_begun", "write_checkpoint_info"):
        monkeypatch.setattr(callbacks, name, full)


def test_a_full_disk_before_a_save_leaves_the_decision_to_the_save(
    tmp_path: Path, single_rank: None, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    own = hooks(tmp_path)
    own.on_train_step_end(context(9))
    assert own.iteration == 10
    assert "no space left on the device, before iteration 10 is saved" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_marked_is_a_failed_save(
    tmp_path: Path, single_rank: None, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one of a run must be marked."""
    (tmp_path / TRACKER).write_text("40")
    checkpoints.record_begun(tmp_path, 40)
    folder_of(tmp_path, 40)
    saved: list = []
    own = hooks(tmp_path, saved=saved)
    own.on_checkpoint_save(context(43))
    assert saved == [] and own.saved is None and not (tmp_path / "iter_0000040").exists()
    assert "iter_0000040 could not be marked as complete, and was removed: no space" in capsys.readouterr().err
    folder_of(tmp_path, 40)
    own.iteration = 45
    with pytest.raises(OSError, match="No space left"):
        own.on_checkpoint_save(context(45))


def folder_of(root: Path, iteration: int) -> None:
    (root / f"iter_{iteration:07d}").mkdir(exist_ok=True)


def test_a_checkpoint_that_is_gone_is_not_marked(
    tmp_path: Path, single_rank: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / TRACKER).write_text("40")
    saved: list = []
    hooks(tmp_path, saved=saved).on_checkpoint_save(context(40))
    assert saved == [] and not (tmp_path / "iter_0000040").exists()
    assert "is already gone" in capsys.readouterr().err


def test_the_seconds_of_each_part(tmp_path: Path, single_rank: None) -> None:
    """Ten seconds of start, a step, a validation and a save before the next step."""
    own = hooks(tmp_path)
    own.run.validation = Measured()
    recorder = own.run.metrics

    def after(seconds: float, event: str, step: int) -> None:
        recorder.now += seconds
        getattr(own, event)(context(step))

    after(10, "on_train_step_end", 8)  # the first step is part of the start
    after(1, "on_train_step_start", 9)
    after(2, "on_train_step_end", 9)
    after(0, "on_eval_start", 10)
    after(4, "on_eval_end", 10)
    after(8, "on_train_step_start", 10)  # an asynchronous save may end later
    after(16, "on_train_step_end", 10)
    assert recorder.clock.take() == {
        "seconds/start": 10, "seconds/step": 19, "seconds/valid": 4, "seconds/save": 8
    }  # fmt: skip
