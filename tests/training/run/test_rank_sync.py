"""Decisions that all ranks share: the resume point, decided on rank 0, and when to poll for a stop."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_processes import free_port, start_ranks, tiny_config

from nano3.config import PretrainConfig
from nano3.training.run import rank_sync, sound_checkpoints
from nano3.training.run.checkpoints import CheckpointInfo, complete_checkpoints, write_checkpoint_info
from nano3.training.run.rank_sync import StopPoller, agree_on_rank0, map_over_ranks
from nano3.training.run.sound_checkpoints import checkpoint_problems, describe_files
from nano3.utils.errors import Failure, UserError

WORKER = """
import os, sys
from nano3.training.run.rank_sync import agree_on_rank0
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
told = agree_on_rank0(lambda: {"folder": f"attempt {attempt} seen by " + os.environ["RANK"]})
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
dist.barrier()
os.write(1, f"{told['folder']} {int(total)}\\n".encode())  # in one piece: both ranks write to this pipe
dist.destroy_process_group()
sys.exit(77 if attempt < sys.argv[1] else 0)
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


def label(items: list[str]) -> list[str]:
    import os

    return [f"{item} by {os.environ['RANK']}" for item in items]


def share(config: PretrainConfig, data: Path, run_dir: Path) -> dict:
    def decide() -> dict:
        return {"first": map_over_ranks(label, list("abcde")), "second": map_over_ranks(label, ["x"])}

    return agree_on_rank0(decide) | {"alone": map_over_ranks(label, ["y", "z"])}


def test_every_rank_does_a_part_of_what_rank_zero_shares(tmp_path: Path) -> None:
    first, second = ["a by 0", "b by 1", "c by 2", "d by 0", "e by 1"], ["x by 0"]
    for rank, child in enumerate(start_ranks(tiny_config(), tmp_path, tmp_path, 3, job=share)):
        assert child.result() == {"first": first, "second": second, "alone": [f"y by {rank}", f"z by {rank}"]}


def verify(config: PretrainConfig, data: Path, run_dir: Path) -> dict:
    import os

    (folder,) = complete_checkpoints(data)
    reads: list[str] = []
    checksum = sound_checkpoints.checksum

    def read(path: Path) -> str:
        reads.append(path.name)
        if config.run.name == "another view" and os.environ["RANK"] == "1":
            if path.name == "part_2":
                raise PermissionError(path)
            return "an older state of the file"
        return checksum(path)

    sound_checkpoints.checksum = read
    return agree_on_rank0(lambda: {"problems": checkpoint_problems(folder)}) | {"read": sorted(reads)}


def write_checkpoint(folder: Path) -> list[str]:
    """Write a checkpoint of six files and return their names."""
    folder.mkdir(parents=True)
    names = [f"part_{i}" for i in range(6)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(b"x" * 1000 * (i + 1))
    info = CheckpointInfo(2, 8, 512, 1.0, 10, {}, {}, files=describe_files(folder))
    write_checkpoint_info(folder, info)
    return names


def test_the_ranks_together_verify_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "iter_0000002"
    names = write_checkpoint(folder)
    for name in ("part_1", "part_4"):
        (folder / name).write_bytes(b"y" * (folder / name).stat().st_size)
    ranks = [r.result() for r in start_ranks(tiny_config(), tmp_path / "checkpoints", tmp_path, 2, job=verify)]
    changed = [f"{folder / name} has changed (its checksum differs)" for name in ("part_1", "part_4")]
    assert [rank["problems"] for rank in ranks] == [changed, changed]
    assert [rank["read"] for rank in ranks] == [sorted([*names[1::2], "part_1", "part_4"]), names[::2]]


def test_what_one_rank_alone_cannot_read_is_no_damage(tmp_path: Path) -> None:
    """Another node may see an older state of a shared folder, or fail; rank 0 reads those files, too."""
    names = write_checkpoint(tmp_path / "checkpoints" / "iter_0000002")
    config = tiny_config(**{"run.name": "another view"})
    ranks = [r.result() for r in start_ranks(config, tmp_path / "checkpoints", tmp_path, 2, job=verify)]
    assert [rank["problems"] for rank in ranks] == [[], []]
    assert [rank["read"] for rank in ranks] == [names, names[::2]]


def decide_late(config: PretrainConfig, data: Path, run_dir: Path) -> dict:
    import contextlib
    import time

    if config.run.name == "silent":
        rank_sync._Ranks._alive = lambda self, every_s: contextlib.nullcontext()  # type: ignore[method-assign]

    def decide() -> dict:
        time.sleep(4)
        return {"late": True}

    return agree_on_rank0(decide, timeout=timedelta(seconds=1.5))


def test_rank_zero_may_take_longer_than_the_others_wait_for_a_sign(tmp_path: Path) -> None:
    ranks = start_ranks(tiny_config(**{"run.name": "slow"}), tmp_path, tmp_path, 2, job=decide_late)
    assert [r.result() for r in ranks] == [{"late": True}] * 2


def test_a_silent_rank_zero_is_given_up(tmp_path: Path) -> None:
    first, second = start_ranks(tiny_config(**{"run.name": "silent"}), tmp_path, tmp_path, 2, job=decide_late)
    with pytest.raises(Failure, match=r"Rank 1 has no answer from rank 0 for 0:00:01.500000, at the start\."):
        second.result()
    assert first.result() == {"late": True}


def end_while_others_work(items: list[str]) -> list[str]:
    import os
    import time

    time.sleep(0.5)
    if os.environ["RANK"] == "0":
        os._exit(1)
    time.sleep(1)
    return items


def lose_rank_zero(config: PretrainConfig, data: Path, run_dir: Path) -> dict:
    return agree_on_rank0(
        lambda: {"found": map_over_ranks(end_while_others_work, ["a", "b"])}, timeout=timedelta(seconds=3)
    )


def test_rank_zero_ends_while_others_work(tmp_path: Path) -> None:
    second = start_ranks(tiny_config(), tmp_path, tmp_path, 2, job=lose_rank_zero)[1]
    with pytest.raises(Failure, match=r"Rank 1 has no answer from rank 0 \(.*\), at the start\."):
        second.result()
    assert "Exception in thread" not in second.output()


def agree_twice(config: PretrainConfig, data: Path, run_dir: Path) -> list[dict]:
    return [agree_on_rank0(partial(dict, agreement=number)) for number in (1, 2)]


def test_a_second_agreement_of_a_process_is_its_own(tmp_path: Path) -> None:
    ranks = start_ranks(tiny_config(), tmp_path, tmp_path, 2, job=agree_twice)
    assert [rank.result() for rank in ranks] == [[{"agreement": 1}, {"agreement": 2}]] * 2


def agree_under_torchrun(config: PretrainConfig, data: Path, run_dir: Path) -> dict:
    import os
    import time

    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "1"}
    os.environ["MASTER_PORT"] = (data / "port").read_text()

    def decide() -> dict:
        time.sleep(0.5)  # the other rank could read what an earlier attempt left
        return {"attempt": run_dir.name}

    return agree_on_rank0(decide) | {"left": os.environ["MASTER_PORT"] != (data / "port").read_text()}


def test_what_an_earlier_attempt_of_torchrun_agreed_on_is_not_read(tmp_path: Path) -> None:
    """The store of torchrun lasts for all attempts; so do the addresses that process groups leave in it."""
    import torch.distributed as dist

    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (tmp_path / "port").write_text(str(agent.port))
    for attempt in ("0", "1"):
        ranks = start_ranks(tiny_config(), tmp_path, tmp_path / attempt, 3, job=agree_under_torchrun)
        assert [rank.result() for rank in ranks] == [{"attempt": attempt, "left": True}] * 3


@pytest.mark.slow
@pytest.mark.parametrize("meeting", ["--standalone", "--master-port=0"])
@pytest.mark.parametrize("restarts", [0, 1])
def test_the_same_under_torchrun(tmp_path: Path, meeting: str, restarts: int) -> None:
    """There the store belongs to torchrun's own process, and is the same after a restart of the ranks."""
    (tmp_path / "worker.py").write_text(WORKER)
    meeting = meeting.replace("=0", f"={free_port()}")
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={restarts}", meeting]
    words = [sys.executable, *command, str(tmp_path / "worker.py"), str(restarts)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.count(f"attempt {restarts} seen by 0 2\n") == 2


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
