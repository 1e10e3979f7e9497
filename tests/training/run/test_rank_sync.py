"""Decisions that all ranks share: the resume point, decided on rank 0, and when to poll for a stop."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_processes import start_ranks, tiny_config

from nano3.config import PretrainConfig
from nano3.training.run.rank_sync import StopPoller, agree_on_rank0
from nano3.utils.errors import Failure, UserError

WORKER = """
import os, sys
from nano3.training.run.rank_sync import agree_on_rank0
told = agree_on_rank0(lambda: {"folder": "seen by " + os.environ["RANK"]})
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
dist.barrier()
os.write(1, f"{told['folder']} {int(total)}\\n".encode())  # in one piece: both ranks write to this pipe
dist.destroy_process_group()
"""


def own_sight(config: PretrainConfig, data: Path, run_dir: Path) -> dict:
    """A rank that would see something of its own; afterwards torch.distributed must still start."""
    import os

    import torch
    import torch.distributed as dist

    if config.run.name == "refused":

        def refuse() -> dict:
            raise (UserError if config.train.seed else Failure)(["no", f"not rank {os.environ['RANK']} either"])

        return agree_on_rank0(refuse)
    message = agree_on_rank0(lambda: {"folder": f"seen by {os.environ['RANK']}"})
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.barrier()
    dist.destroy_process_group()
    return {**message, "ranks": int(total)}


def test_all_ranks_start_where_rank_zero_says(tmp_path: Path) -> None:
    ranks = start_ranks(tiny_config(), tmp_path, tmp_path, 3, job=own_sight)
    assert [r.result() for r in ranks] == [{"folder": "seen by 0", "ranks": 3}] * 3


@pytest.mark.parametrize("kind", [UserError, Failure])
def test_what_rank_zero_refuses_ends_every_rank(tmp_path: Path, kind: type[Exception]) -> None:
    config = tiny_config(**{"run.name": "refused", "train.seed": int(kind is UserError)})
    for rank in start_ranks(config, tmp_path, tmp_path, 2, job=own_sight):
        with pytest.raises(kind) as caught:
            rank.result()
        assert caught.value.problems == ["no", "not rank 0 either"]


@pytest.mark.slow
def test_the_same_under_torchrun(tmp_path: Path) -> None:
    """There the store belongs to torchrun's own process."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(tmp_path / "worker.py")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.count("seen by 0 2\n") == 2


def test_alone_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert agree_on_rank0(lambda: json.loads('{"a": 1}')) == {"a": 1}


class Ranks:
    """Several ranks with clocks of their own, exchanging what one would exchange through a process group."""

    def __init__(self, step_s: list[float], **options: float) -> None:
        self.step_s, self.now = step_s, [0.0] * len(step_s)
        self.asked: list[list[float]] = []
        self.paces = [StopPoller(self.exchange, None, now=self.clock(r), **options) for r in range(len(step_s))]

    def clock(self, rank: int) -> Callable[[], float]:
        return lambda: self.now[rank]

    def exchange(self, values: list[float]) -> list[float]:
        return self.greatest(values)

    def run(self, iterations: int, told_at: dict[int, int]) -> tuple[int, list[int]]:
        """The iteration at which all stop (0: never), and those at which they asked; `told_at` rank -> iteration."""
        asked = []
        for iteration in range(1, iterations + 1):
            for rank, seconds in enumerate(self.step_s):
                self.now[rank] += seconds
            due = [pace.due(iteration) for pace in self.paces]
            assert len(set(due)) == 1, "all ranks ask, or none: anything else would hang"
            if not due[0]:
                continue
            asked.append(iteration)
            flags = [iteration >= told_at.get(rank, iterations + 1) for rank in range(len(self.paces))]
            stop = self.ask(iteration, flags)
            assert len(set(stop)) == 1
            if stop[0]:
                return iteration, asked
        return 0, asked

    def ask(self, iteration: int, flags: list[bool]) -> list[bool]:
        """Every rank's values are gathered first, then each gets the maximum, as in an all-reduce."""
        sent: list[list[float]] = []
        for pace, flag in zip(self.paces, flags, strict=True):
            self.greatest = lambda values: sent.append(values) or values  # type: ignore[func-returns-value]
            before = dict(vars(pace))
            pace.any_rank(iteration, flag)
            vars(pace).update(before)
        most = [max(column) for column in zip(*sent, strict=True)]
        self.greatest = lambda values: most
        return [pace.any_rank(iteration, flag) for pace, flag in zip(self.paces, flags, strict=True)]


@given(
    st.lists(st.floats(0.001, 20), min_size=2, max_size=4),
    st.integers(0, 3),
    st.integers(1, 200),
)
def test_all_ranks_stop_together_and_soon(step_s: list[float], rank: int, message: int) -> None:
    ranks = Ranks(step_s)
    stopped, _ = ranks.run(message + 101, {min(rank, len(step_s) - 1): message})
    assert message <= stopped <= message + 100
    assert (stopped - message) * min(step_s) <= 5 or stopped - message <= 1


def test_fast_steps_are_not_interrupted_every_time() -> None:
    _, asked = Ranks([0.5, 0.4]).run(40, {})
    assert asked == [1, 11, 21, 31]
    _, asked = Ranks([0.001, 0.001]).run(250, {})
    assert asked == [1, 101, 201]
    assert Ranks([10.0, 0.1]).run(4, {})[1] == [1, 2, 3, 4]
    assert Ranks([0.001], seconds=0.0).run(4, {})[1] == [1, 2, 3, 4]


def test_the_iteration_to_stop_at_is_never_passed_over() -> None:
    pace = StopPoller(lambda values: values, exit_iteration=7)
    assert pace.due(1) and not pace.any_rank(1, False)
    assert [i for i in range(2, 10) if pace.due(i)] == [7, 8, 9]
