"""Failed saves of Megatron-Core: what is reported, what is removed, when the run ends.

tests/gpu runs the manager within Megatron-Bridge.
"""

import errno
import multiprocessing
import os
import signal
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch.distributed.checkpoint.api import CheckpointException
from training_processes import SERVER

from nano3.training.megatron import saving
from nano3.training.megatron.checkpoints import record_begun
from nano3.training.run.checkpoints import MARKER, folder_name
from nano3.training.run.failed_saves import FailedSaves, SaveError
from nano3.training.run.stop import SIGNALS
from nano3.utils.errors import Failure

FULL = CheckpointException("write", {0: (OSError(errno.ENOSPC, "No space left on device"), None)})


class Worker:
    """A writer process that is alive or not."""

    def __init__(self, alive: bool) -> None:
        self.alive, self.exitcode = alive, None if alive else -9

    def is_alive(self) -> bool:
        return self.alive


class Queue:
    """Megatron-Core's queue of background saves: each entry is pending, done, or an error."""

    def __init__(self, alive: bool = True) -> None:
        self.results: deque[Any] = deque()
        self.requests: list[Any] = []
        self.caller = SimpleNamespace(process=Worker(alive), cur_item=None)

    @property
    def async_calls(self) -> list[Any]:
        return [SimpleNamespace(async_caller=self.caller) for _ in self.results]

    def get_num_unfinalized_calls(self) -> int:
        return len(self.results)

    def schedule_async_request(self, request: Any) -> None:
        self.requests.append(request)
        self.results.append(None)


class Default:
    """Megatron-Bridge's default manager, with outcomes chosen by the test."""

    def __init__(self, queue: Queue, folder: Path, background: bool) -> None:
        self.queue, self.folder, self.fails = queue, folder, False
        self.checkpoint_config = SimpleNamespace(async_save=background)
        self.polls = 0

    def save(self, ctx: Any, callback_manager: Any) -> None:
        iteration = ctx.state.train_state.step
        (self.folder / folder_name(iteration)).mkdir(parents=True)
        record_begun(self.folder, iteration)
        if self.checkpoint_config.async_save:
            self.queue.results.append(FULL if self.fails else None)
        elif self.fails:
            raise FULL
        else:
            (self.folder / folder_name(iteration) / MARKER).touch()

    def finalize_async_saves(self, state: Any, blocking: bool = False, terminate: bool = False) -> None:
        self.polls += 1
        if self.queue.results and self.polls % 2 == 0:  # every other poll finds it done
            result = self.queue.results.popleft()
            if result is not None:
                raise result


def manager(folder: Path, background: bool, most: int = 3, alive: bool = True, last: int = 100) -> saving.SaveManager:
    made = saving.SaveManager.__new__(saving.SaveManager)
    made._run = saving.SaveContext(folder, FailedSaves(most), lambda iteration: iteration >= last)
    made._default = Default(Queue(alive), folder, background)
    made._pending, made._writer, made._writer_tied = None, None, True
    return made


def save(made: saving.SaveManager, iteration: int, fails: bool = False) -> Any:
    state = SimpleNamespace(train_state=SimpleNamespace(step=iteration), async_calls_queue=made._default.queue)
    made._default.fails = fails
    made.save(SimpleNamespace(state=state), None)
    for _ in range(4):
        made.finalize_async_saves(state)
    return state


@pytest.mark.parametrize("background", [False, True])
def test_a_failed_save_is_removed_and_repeated(
    tmp_path: Path, background: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    made = manager(tmp_path, background)
    for iteration, fails in [(10, True), (20, True), (30, False), (40, True), (50, True)]:
        save(made, iteration, fails)
        assert (tmp_path / folder_name(iteration)).exists() is not fails
    warnings = capsys.readouterr().err
    assert warnings.count("SAVE FAILED (1 of 3") == warnings.count("SAVE FAILED (2 of 3") == 2
    assert "iter_0000010: No space left on device" in warnings.replace("\n", " ")


@pytest.mark.parametrize("background", [False, True])
def test_too_many_failed_saves_end_the_run(tmp_path: Path, background: bool) -> None:
    made = manager(tmp_path, background, most=2)
    save(made, 10, fails=True)
    with pytest.raises(SaveError, match="2 saves in a row have failed"):
        save(made, 20, fails=True)


@pytest.mark.parametrize("background", [False, True])
def test_the_last_save_must_not_fail(tmp_path: Path, background: bool) -> None:
    with pytest.raises(SaveError, match="No space left on device"):
        save(manager(tmp_path, background, last=10), 10, fails=True)


def test_the_next_save_waits_for_a_slow_one(tmp_path: Path) -> None:
    made = manager(tmp_path, background=True)
    state = SimpleNamespace(train_state=SimpleNamespace(step=10), async_calls_queue=made._default.queue)
    made.save(SimpleNamespace(state=state), None)
    state.train_state.step = 20
    made.save(SimpleNamespace(state=state), None)
    assert made._default.queue.get_num_unfinalized_calls() == 1
    made.finalize_async_saves(state, blocking=True, terminate=True)
    assert made._default.queue.get_num_unfinalized_calls() == 0


@pytest.mark.parametrize("blocking", [False, True])
def test_a_dead_writer_is_a_failure_instead_of_an_endless_wait(tmp_path: Path, blocking: bool) -> None:
    made = manager(tmp_path, background=True, alive=False)
    state = SimpleNamespace(train_state=SimpleNamespace(step=10), async_calls_queue=made._default.queue)
    made.save(SimpleNamespace(state=state), None)
    with pytest.raises(Failure, match="ended with exit code -9"):
        made.finalize_async_saves(state, blocking=blocking)


def test_the_first_request_makes_the_writer_end_with_its_rank(tmp_path: Path) -> None:
    """It is sent once, before any save, in the class that Megatron-Core's writer takes."""
    made = manager(tmp_path, background=True)
    made._writer_tied = False
    made._default.checkpoint_config.async_strategy = "mcore"
    queue = made._default.queue
    state = SimpleNamespace(train_state=SimpleNamespace(step=0), async_calls_queue=queue)
    for _ in range(3):
        made.finalize_async_saves(state)
    (request,) = queue.requests
    assert isinstance(request, AsyncRequest)
    assert (request.async_fn, request.async_fn_args) == (saving.tie_to_rank, (os.getpid(),))
    assert request.preload_fn is None and request.finalize_fns == [] and not queue.results
    save(made, 10)
    made.finalize_async_saves(state, blocking=True, terminate=True)
    assert len(queue.requests) == 1


def test_other_tasks_of_the_writer_go_through_its_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = manager(tmp_path, background=True)
    made._default.checkpoint_config.async_strategy = "mcore"
    state = SimpleNamespace(async_calls_queue=made._default.queue)
    monkeypatch.setattr(saving, "_manager", None)  # a run without checkpoints
    saving.run_in_writer(state, print, "a", 1)
    assert not made._default.queue.requests
    monkeypatch.setattr(saving, "_manager", made)
    saving.run_in_writer(SimpleNamespace(async_calls_queue=None), print, "a", 1)  # saves in the foreground
    saving.run_in_writer(state, print, "a", 1)
    (request,) = made._default.queue.requests
    assert isinstance(request, AsyncRequest) and (request.async_fn, request.async_fn_args) == (print, ("a", 1))


def answer(rank: Connection) -> None:
    """Answer a rank as its writer does, which another interpreter runs."""
    saving.tie_to_rank(os.getppid())
    rank.send("ready")
    rank.send(rank.recv())


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_writer_ignores_what_stops_a_run(number: signal.Signals) -> None:
    """Slurm and terminals signal all processes; the rank needs its writer for the last checkpoint."""
    own, other = multiprocessing.Pipe()
    writer = SERVER.Process(target=answer, args=(other,))
    writer.start()
    assert writer.pid and own.recv() == "ready"
    os.kill(writer.pid, number)
    own.send("last checkpoint")
    assert own.recv() == "last checkpoint"
    writer.join()
    assert writer.exitcode == 0


def test_a_writer_that_has_died_before_the_first_save_is_a_failure(tmp_path: Path) -> None:
    """A save would wait for it forever."""
    made = manager(tmp_path, background=True)
    made._writer_tied = False
    made._default.checkpoint_config.async_strategy = "mcore"
    state = SimpleNamespace(train_state=SimpleNamespace(step=0), async_calls_queue=made._default.queue)
    for _ in range(2):
        made.finalize_async_saves(state)
    made._default.queue.caller.process.alive = False
    with pytest.raises(Failure, match="process that writes checkpoints ended"):
        made.save(SimpleNamespace(state=state), None)


def test_a_pending_save_can_be_completed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = manager(tmp_path, background=True)
    monkeypatch.setattr(saving, "_manager", made)
    state = SimpleNamespace(train_state=SimpleNamespace(step=10), async_calls_queue=made._default.queue)
    made.save(SimpleNamespace(state=state), None)
    saving.complete_pending_saves(state)
    assert made._default.queue.get_num_unfinalized_calls() == 0 and made._pending is None
    monkeypatch.setattr(saving, "_manager", None)  # a run without checkpoints
    saving.complete_pending_saves(state)


def test_without_background_saves_nothing_is_sent(tmp_path: Path) -> None:
    made = manager(tmp_path, background=False)
    made._writer_tied = False
    made.finalize_async_saves(SimpleNamespace(async_calls_queue=None))


def test_a_save_is_not_given_to_a_dead_writer(tmp_path: Path) -> None:
    made = manager(tmp_path, background=True)
    state = save(made, 10)
    made._default.queue.caller.process = made._writer = Worker(alive=False)
    state.train_state.step = 20
    with pytest.raises(Failure, match="ended with exit code -9"):
        made.save(SimpleNamespace(state=state), None)


def test_a_folder_of_another_program_is_not_removed(tmp_path: Path) -> None:
    foreign = tmp_path / folder_name(10)
    foreign.mkdir()
    saving.remove_failed(foreign)
    assert foreign.is_dir()


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        pytest.param({0: (OSError(errno.ENOSPC, "No space left on device"), None)}, "No space left", id="full-disk"),
        pytest.param({3: (RuntimeError("odd"), None)}, "rank 3: odd", id="anything-else"),
        pytest.param({}, "another rank failed to write", id="not-the-coordinator"),
    ],
)
def test_the_reason_is_that_of_the_disk(failures: dict[int, Any], reason: str) -> None:
    assert reason in saving.failure_reason(failures)
