"""The transformers backend as a whole: real processes, real data, real kills."""

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_processes import Child, losses, start, start_ranks, tiny_config, train_here, wait_for_iteration

from nano3.config import PretrainConfig
from nano3.training.hf import checkpoints
from nano3.training.hf.backend import train
from nano3.training.run.checkpoints import complete_checkpoints, latest_checkpoint
from nano3.training.run.metrics import Metrics, read_metrics, slowest_resume_s
from nano3.training.run.outcome import Outcome
from nano3.utils.errors import Failure, UserError


def same_tensors(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same model, optimizer and schedule, bit for bit."""
    return _equal(checkpoints.load_state(a), checkpoints.load_state(b))


def _equal(a: object, b: object) -> bool:
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def last(run_dir: Path) -> Path:
    folder = latest_checkpoint(run_dir / "checkpoints")
    assert folder is not None
    return folder


def bitwise(a: Path, b: Path, scratch: Path) -> bool:
    """`same_tensors` of the last checkpoints of two runs, in a process that has torch already."""
    return Child(same_tensors, (last(a), last(b)), scratch / "compare.txt").result()


SHARES = {"docs": 0.5, "code": 0.3, "math": 0.2}


def test_loss_falls_and_everything_is_recorded(undisturbed: Path) -> None:
    lines = read_metrics(undisturbed)
    steps = [line for line in lines if "loss" in line]
    valid = [line for line in lines if "valid_loss" in line]
    assert [line["iteration"] for line in steps] == list(range(1, 13))
    assert [line["iteration"] for line in valid] == [0, 6, 12]
    assert valid[0]["valid_loss"] == pytest.approx(math.log(4096), abs=0.05)
    assert valid[-1]["valid_loss"] < valid[0]["valid_loss"] - 0.01
    assert set(valid[0]) >= {"valid_loss/docs", "valid_loss/code", "valid_loss/math"}
    weighted = sum(share * valid[0][f"valid_loss/{name}"] for name, share in SHARES.items())
    assert valid[0]["valid_loss"] == pytest.approx(weighted)
    assert steps[-1]["consumed_samples"] == 48
    assert steps[-1]["consumed_tokens"] == 48 * 32
    experts = {"expert_imbalance", "expert_min_load", "expert_entropy", "expert_dropped"}
    stages = {f"startup/{name}" for name in ("checks", "imports", "data", "model_and_checkpoint", "first_step")}
    assert {"lr", "grad_norm", "tokens_per_s", "bits_per_byte", *experts, *stages} <= set(steps[0])
    assert not stages & set(steps[1])
    assert {"seconds/step", "seconds/data"} <= set(steps[1])
    assert 0 <= steps[-1]["expert_min_load"] <= 1 <= steps[-1]["expert_imbalance"] <= 2
    per_token = {name: valid[-1][f"valid_loss/{name}"] / valid[-1][f"valid_bits_per_byte/{name}"] for name in SHARES}
    blend = sum(share * per_token[name] for name, share in SHARES.items())  # nats per bit: ln 2 x bytes per token
    assert valid[-1]["valid_loss"] / valid[-1]["valid_bits_per_byte"] == pytest.approx(blend, rel=1e-4)
    assert list((undisturbed / "tensorboard").glob("events.*"))
    assert [p.name for p in complete_checkpoints(undisturbed / "checkpoints")] == ["iter_0000008", "iter_0000012"]
    log = (undisturbed / "log.txt").read_text()
    assert log.splitlines()[0] == "fresh start"
    assert "Warning" not in log


def test_killed_run_continues_bit_for_bit(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL at about iteration 6; the checkpoint is of iteration 4, so the rest is done again."""
    child = Child(train_and_die, (tiny_config(), data, tmp_path), tmp_path / "log.txt")
    child.process.join(200)
    assert child.process.exitcode == -signal.SIGKILL
    reached = max(line["iteration"] for line in read_metrics(tmp_path))
    assert reached >= 6
    assert last(tmp_path).name == "iter_0000004"
    assert train_here(tiny_config(), data, tmp_path).iteration == 12
    assert "resuming from iteration 4 of" in child.output()
    assert losses(tmp_path) == losses(undisturbed)
    assert bitwise(tmp_path, undisturbed, tmp_path)
    first, second = [line for line in read_metrics(tmp_path) if "start" in line]
    assert (first["start"], second["start"], second["iteration"]) == (1, 2, 4)
    assert second["lost_iterations"] == reached - 4 and second["lost_s"] > 0
    assert second["interrupted_s"] > 0 and "down_s" not in second
    resumed = next(line for line in read_metrics(tmp_path) if line["iteration"] == 5)
    assert slowest_resume_s(tmp_path) == sum(v for k, v in resumed.items() if k.startswith("startup/")) > 0


def test_two_killed_ranks_continue_bit_for_bit(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Rank 0 is killed; rank 1 must not hang, and both go on where one undisturbed rank would be."""
    first, second = start_ranks(tiny_config(), data, tmp_path, 2, job=train_and_die)
    first.process.join(200)
    assert first.process.exitcode == -signal.SIGKILL
    with pytest.raises(RuntimeError):
        second.result()
    assert [r.result().status for r in start_ranks(tiny_config(), data, tmp_path, 2)] == ["finished", "finished"]
    assert losses(tmp_path) == losses(undisturbed)
    assert bitwise(tmp_path, undisturbed, tmp_path)


def train_and_die(config: PretrainConfig, data: Path, run_dir: Path) -> None:
    """Train; rank 0 kills itself when iteration 6 has been logged, between two checkpoints."""
    when_logged(6, lambda: os.kill(os.getpid(), signal.SIGKILL), rank="0")
    train(config, data, run_dir)


def signal_rank_one(config: PretrainConfig, data: Path, run_dir: Path) -> Outcome:
    """Train; rank 1 gets a signal at the end of its third iteration."""
    when_logged(3, lambda: os.kill(os.getpid(), signal.SIGUSR2), rank="1")
    return train(config, data, run_dir)


def when_logged(iteration: int, act: Callable[[], None], rank: str) -> None:
    """In this process and this rank of it, do `act` right after the metrics of `iteration` are recorded."""
    if os.environ.get("RANK", "0") != rank:
        return
    record = Metrics.log

    def log(self: Metrics, **values: Any) -> None:
        record(self, **values)
        if values["iteration"] == iteration:
            act()

    Metrics.log = log  # type: ignore[method-assign]


def test_finished_run_does_nothing_again(data: Path, undisturbed: Path) -> None:
    before = losses(undisturbed)
    outcome = train_here(tiny_config(), data, undisturbed)
    assert (outcome.status, outcome.iteration) == ("finished", 12)
    assert losses(undisturbed) == before
    assert "already finished" in (undisturbed / "log.txt").read_text()


def test_two_ranks_equal_one_rank(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Of two gloo ranks one receives a stop signal: both stop and save, and later match one rank bit for bit."""
    config = tiny_config()
    stopped = [r.result() for r in start_ranks(config, data, tmp_path, 2, job=signal_rank_one)]
    assert {(o.status, o.iteration) for o in stopped} == {("stopped", 4)}
    assert stopped[0].reason == "another rank requested the stop"
    assert stopped[1].reason == "signal SIGUSR2"
    assert [r.result().status for r in start_ranks(config, data, tmp_path, 2)] == ["finished", "finished"]
    assert losses(tmp_path) == losses(undisturbed)
    assert bitwise(tmp_path, undisturbed, tmp_path)
    assert "loss" not in (tmp_path / "log_1.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT], ids=lambda s: s.name)
def test_signal_saves_and_stops(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = tiny_config(**{"train.train_iters": 500, "checkpoint.save_interval": 1000, "train.eval_interval": 0})
    child = start(config, data, tmp_path)
    wait_for_iteration(tmp_path, 2, child)
    os.kill(child.process.pid or 0, number)
    outcome = child.result()
    assert (outcome.status, outcome.exit_code(), outcome.reason) == ("stopped", 75, f"signal {number.name}")
    assert outcome.checkpoint == last(tmp_path)
    end = read_metrics(tmp_path)[-1]
    assert end["iteration"] == outcome.iteration < 500 and end["exit_code"] == 75


def test_limits_stop_without_changing_the_schedule(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    outcome = train_here(tiny_config(**{"train.exit_iteration": 5}), data, tmp_path)
    assert (outcome.status, outcome.iteration, outcome.reason) == ("stopped", 5, "train.exit_iteration=5")
    assert read_metrics(tmp_path)[-1]["exit_code"] == 0, "all that was asked for"
    again = train_here(tiny_config(**{"train.exit_iteration": 5}), data, tmp_path)
    assert (again.status, again.iteration) == ("stopped", 5)
    timed = train_here(tiny_config(**{"train.exit_duration_in_mins": 0.0}), data, tmp_path)
    assert (timed.status, timed.iteration) == ("stopped", 6), "ranks agree on it after a step"
    assert read_metrics(tmp_path)[-1]["exit_code"] == 75
    assert train_here(tiny_config(), data, tmp_path).status == "finished"
    assert losses(tmp_path) == losses(undisturbed)


def test_nan_stops_and_names_the_iteration(data: Path, tmp_path: Path) -> None:
    """A rate of 1e38 sends the weights beyond fp32's range."""
    config = tiny_config(**{"optimizer.lr": 1e38, "optimizer.clip_grad": 0.0, "checkpoint.save_interval": 1})
    with pytest.raises(Failure, match=r"diverged at iteration \d+: .* (nan|inf)\..*optimizer\.lr"):
        train_here(config, data, tmp_path)
    assert all(math.isfinite(line["loss"]) for line in read_metrics(tmp_path) if "loss" in line)


def test_the_save_hook_is_called_for_every_checkpoint(data: Path, tmp_path: Path) -> None:
    changes = {"train.train_iters": 5, "scheduler.lr_wsd_decay_iters": 2}
    config = tiny_config(**changes, **{"checkpoint.save_interval": 2, "train.eval_interval": 0})
    assert Child(train_and_collect, (config, data, tmp_path), tmp_path / "log.txt").result() == [
        (2, "iter_0000002", True),
        (4, "iter_0000004", True),
        (5, "iter_0000005", True),
    ]


def train_and_collect(config: PretrainConfig, data: Path, run_dir: Path) -> list[tuple[int, str, bool]]:
    seen: list[tuple[int, str, bool]] = []

    def hook(iteration: int, folder: Path) -> None:
        seen.append((iteration, folder.name, (folder / "checkpoint.json").is_file()))

    train(config, data, run_dir, on_save=hook)
    return seen


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train.seed": 2}, ["train.seed: 1234 in the checkpoint, now 2"]),
        ({"train.global_batch_size": 8, "train.seq_length": 16}, ["train.global_batch_size", "train.seq_length"]),
        ({"model.hidden_size": 32, "model.num_moe_experts": 8}, ["model.hidden_size: 16", "model.num_moe_experts: 4"]),
    ],
    ids=["seed", "batch and length", "shape"],
)
def test_checkpoint_of_another_run_is_refused(data: Path, undisturbed: Path, changes: dict, named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        train(tiny_config(**changes), data, undisturbed)
    assert all(n in str(caught.value) for n in [*named, "iter_0000012", "May change on a resume: train.train_iters"])


def test_longer_run_says_what_changes(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    longer = tiny_config(**{"train.train_iters": 14, "train.threads": 2})
    child = start(longer, data, tmp_path / "run")
    assert child.result().iteration == 14
    assert "train.train_iters was 12 when iter_0000012 was saved and is 14 now" in child.output()
    assert "threads per rank was 1" in child.output()


def test_next_phase_begins_at_iteration_0_with_the_weights(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Another length, batch, schedule and seed, and fewer iterations than the checkpoint has; stopped, it resumes."""
    own = {"train.train_iters": 4, "train.seq_length": 16, "train.global_batch_size": 8, "train.seed": 5}
    own |= {"optimizer.lr": 1e-3, "scheduler.lr_wsd_decay_iters": 1, "train.eval_interval": 4}
    phase = {"checkpoint.load": str(undisturbed / "checkpoints"), **own}
    child = start(tiny_config(**phase, **{"train.exit_iteration": 2}), data, tmp_path)
    assert child.result().iteration == 2
    line = f"new phase: iteration 0 with the weights and optimizer of {undisturbed}/checkpoints/iter_0000012"
    assert child.output().splitlines()[0] == line
    child = start(tiny_config(**phase), data, tmp_path)
    assert child.result().iteration == 4
    assert f"resuming from iteration 2 of {tmp_path}" in child.output()
    steps = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert [line["iteration"] for line in steps] == [1, 2, 3, 4]
    assert [line["lr"] for line in steps[:3]] == pytest.approx([0.0, 5e-4, 1e-3])
    assert steps[-1]["consumed_tokens"] == 4 * 8 * 16
    learnt = [line["valid_loss"] for line in read_metrics(undisturbed) if "valid_loss" in line]
    first = next(line["valid_loss"] for line in read_metrics(tmp_path) if "valid_loss" in line)
    assert first < (learnt[0] + learnt[-1]) / 2


def test_next_phase_of_another_model_is_refused(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    config = tiny_config(**{"checkpoint.load": str(undisturbed / "checkpoints"), "model.hidden_size": 32})
    with pytest.raises(UserError, match=r"holds another model: model\.hidden_size: 16 in the checkpoint, now 32"):
        train(config, data, tmp_path)


def test_the_rest_of_a_schedule_keeps_its_iteration(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    changes = {"checkpoint.load": str(undisturbed / "checkpoints"), "train.train_iters": 14, "train.seed": 5}
    child = start(tiny_config(**changes, **{"checkpoint.keep_iteration": True}), data, tmp_path)
    assert child.result().iteration == 14
    assert "resuming from iteration 12" in child.output()
    assert [line["iteration"] for line in read_metrics(tmp_path) if "loss" in line] == [13, 14]
    with pytest.raises(UserError, match=r"has 12 iterations already, train\.train_iters is 12"):
        train(
            tiny_config(**changes | {"checkpoint.keep_iteration": True, "train.train_iters": 12}), data, tmp_path / "b"
        )


@pytest.mark.slow
def test_two_ranks_killed_under_torchrun(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The same through torchrun itself: torchrun and its ranks are killed, started again, and ends the same."""
    import subprocess
    import sys

    script = Path(__file__).parents[1] / "torchrun_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    first = subprocess.Popen([*command, str(data), str(tmp_path)])
    try:
        while not any(line["iteration"] >= 6 for line in read_metrics(tmp_path)):
            assert first.poll() is None, "torchrun ended before it could be killed"
            time.sleep(0.01)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            torchrun = psutil.Process(first.pid)
            for process in [torchrun, *torchrun.children(recursive=True)]:  # each rank has a session of its own
                process.kill()
        first.wait()
    subprocess.run([*command, str(data), str(tmp_path)], check=True, timeout=240)
    assert losses(tmp_path) == losses(undisturbed)
