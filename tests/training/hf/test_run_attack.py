"""Seeded faults during a run: the same command is repeated until it finishes, with the result of an undisturbed run.

The counts are in docs/reliability.md.
"""

import contextlib
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_train import bitwise
from training_processes import Child, losses, start_ranks, tiny_config, train_here
from wandb_server import WandbServer

from nano3.artifacts import wandb_run
from nano3.config import PretrainConfig
from nano3.training.hf import loop as hf_loop
from nano3.training.hf.backend import train
from nano3.training.reports.goodput import time_use
from nano3.training.run.checkpoints import latest_checkpoint
from nano3.training.run.hang_watch import watch_for_hangs
from nano3.training.run.metrics import read_metrics
from nano3.training.run.outcome import Outcome
from nano3.training.run.rank_log import rank_log
from nano3.training.run.skips import read_skips
from nano3.training.run.sound_checkpoints import DAMAGE_LOG
from nano3.utils.errors import HANG_EXIT_CODE, Nano3Error
from nano3.utils.files import read_json, write_json

MOST_STARTS = 4


ITERATIONS = 8
SHORT = {
    "train.train_iters": ITERATIONS,
    "train.eval_interval": ITERATIONS,
    "train.eval_iters": 1,
    "scheduler.lr_wsd_decay_iters": 2,
    "checkpoint.save_interval": 2,
}


def config(**changes: Any) -> PretrainConfig:
    """Save every second iteration, so that most kills are near a save; short, since each fault takes three starts."""
    return tiny_config(**{**SHORT, **changes})


@pytest.fixture(scope="module")
def sound(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed run that saves every second iteration."""
    run_dir = tmp_path_factory.mktemp("sound")
    assert train_here(config(), data, run_dir).status == "finished"
    return run_dir


def die_after(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train, and be killed at a random file operation of its start, its saves or its records."""
    rng = random.Random(seed)
    names, most = rng.choice([(("open",), 40), (("os.rename", "os.mkdir", "os.remove"), 11)])
    left = [rng.randint(1, most)]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in names and str(run_dir) in str(args[0]):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return train(config, data, run_dir)


def die_in_time(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train, and be killed by a timer while an iteration, a save or a validation runs."""
    delay = random.Random(seed).uniform(0, 0.4)
    step, armed = hf_loop.Loop.step, threading.Event()

    def first_step(self: hf_loop.Loop) -> hf_loop.Step:
        if not armed.is_set():
            armed.set()
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        return step(self)

    hf_loop.Loop.step = first_step  # type: ignore[method-assign]
    return train(config, data, run_dir)


def fill_the_disk(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train while no file can exceed a random size, which fails some writes of a save in the middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = int(math.exp(random.Random(seed).uniform(math.log(20_000), math.log(400_000))))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return train(config, data, run_dir)


def fill_for_a_while(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train while the disk of the run is full from a random iteration on, for two iterations; a library prints."""
    at, filler, step = random.Random(seed).randrange(1, ITERATIONS - 2), run_dir / "filler", hf_loop.Loop.step

    def filling(self: hf_loop.Loop) -> hf_loop.Step:
        if self.iteration + 1 == at:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        if self.iteration + 1 == at + 2:
            filler.unlink()
        print("x" * 5000, flush=True)
        return step(self)

    hf_loop.Loop.step = filling  # type: ignore[method-assign]
    with rank_log(run_dir, 0):
        return train(config, data, run_dir)


def poison(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train with a weight gradient that is not a number in one iteration."""
    bad = random.Random(seed).randrange(2, ITERATIONS)
    values = hf_loop.Loop._values_of_rank0

    def poisoned(self: hf_loop.Loop, loss: float, norm: float) -> tuple[float, float]:
        return (math.nan, norm) if self.iteration + 1 == bad else values(self, loss, norm)

    hf_loop.Loop._values_of_rank0 = poisoned  # type: ignore[method-assign]
    return train(config, data, run_dir)


def hang(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train under the hang watch with a step that never returns."""
    bad, step = random.Random(seed).randrange(3, ITERATIONS), hf_loop.Loop.step

    def hanging(self: hf_loop.Loop) -> hf_loop.Step:
        if self.iteration + 1 == bad:
            time.sleep(600)
        return step(self)

    hf_loop.Loop.step = hanging  # type: ignore[method-assign]
    with watch_for_hangs(run_dir, 1.0):
        return train(config, data, run_dir)


def stop_rank_one(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train under the hang watch; rank 1 gets SIGSTOP in a random iteration."""
    bad, step = random.Random(seed).randrange(3, ITERATIONS), hf_loop.Loop.step

    def stopping(self: hf_loop.Loop) -> hf_loop.Step:
        if self.iteration + 1 == bad and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(self)

    hf_loop.Loop.step = stopping  # type: ignore[method-assign]
    with watch_for_hangs(run_dir, 1.0):
        return train(config, data, run_dir)


def jump(seed: int) -> float:
    """Return by how much a clock is wrong: seconds to years, in both directions."""
    rng = random.Random(seed)
    return rng.choice([-1, 1]) * math.exp(rng.uniform(math.log(2), math.log(1e8)))


def wrong_clock(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train while the wall clock is wrong from the start on, and jumps in a random iteration.

    The files of the starts before carry the times of another wrong clock.
    """
    real, offset, step = time.time, [jump(seed)], hf_loop.Loop.step
    at = random.Random(seed).randrange(1, ITERATIONS)
    for path in run_dir.rglob("*"):
        moment = max(real() + jump(seed + len(path.name)), 0)
        os.utime(path, (moment, moment), follow_symlinks=False)

    def jumping(self: hf_loop.Loop) -> hf_loop.Step:
        if self.iteration + 1 == at:
            offset[0] = jump(seed + 1000)
        return step(self)

    time.time = lambda: real() + offset[0]
    hf_loop.Loop.step = jumping  # type: ignore[method-assign]
    with watch_for_hangs(run_dir, 60.0):
        return train(config, data, run_dir)


def lose_wandb(config: PretrainConfig, data: Path, run_dir: Path, seed: int) -> Outcome:
    """Train with a W&B server that does not answer, goes away, hangs, or goes away and comes back."""
    kind, at, server, step = (
        seed % 4,
        random.Random(seed).randrange(2, ITERATIONS - 2),
        WandbServer(),
        hf_loop.Loop.step,
    )
    os.environ.update(server.env)
    server.hang = kind == 0
    # The bounds are what users wait for; here they only have to be there.
    if kind != 3:
        wandb_run.INIT_S, wandb_run.FINISH_S, wandb_run.LIMIT_S = 3.0, 2.0, 5.0

    def losing(self: hf_loop.Loop) -> hf_loop.Step:
        if kind and self.iteration + 1 == at:
            server.stop()
        if kind == 2 and self.iteration + 1 == at:
            server.start()
            server.hang = True
        if kind == 3 and self.iteration + 1 == at + 2:
            server.start()
        return step(self)

    hf_loop.Loop.step = losing  # type: ignore[method-assign]
    outcome = train(config, data, run_dir)
    taken = [line["iteration"] for run in server.runs.values() for line in run.history if "loss" in line]
    write_json(run_dir / "taken.json", taken)
    return outcome


@dataclass
class Result:
    """What happened to one run: whether the fault was hit, and what is wrong with the result ("" if nothing)."""

    hit: bool
    wrong: str = ""


def finish(data: Path, run_dir: Path, own: PretrainConfig) -> str:
    """Repeat the command until the run has finished; return why it did not."""
    for start in range(MOST_STARTS):
        child = Child(train, (own, data, run_dir), run_dir / f"log_{start}.txt")
        try:
            outcome = child.result()
        except (Nano3Error, AssertionError) as error:
            return f"start {start}: {type(error).__name__}: {error}"[:500]
        if outcome.status == "finished":
            return ""
    return f"not finished after {MOST_STARTS} starts"


def compare(run_dir: Path, sound: Path) -> str:
    """Return how a finished run differs from the undisturbed one."""
    if losses(run_dir) != losses(sound):
        return "other losses"
    return "" if bitwise(run_dir, sound, run_dir) else "another final checkpoint"


def disturb(
    job: Callable[..., Any], data: Path, sound: Path, run_dir: Path, seed: int, own: PretrainConfig | None = None
) -> Result:
    """Run a job with its fault once, then the undisturbed command until the run has finished."""
    own = own or config()
    child = Child(job, (own, data, run_dir, seed), run_dir / "log_fault.txt")
    child.process.join(120)
    hit = child.process.exitcode != 0
    if not hit:
        with contextlib.suppress(Nano3Error, OSError):  # rank_main explains an OSError
            child.result()
        text = child.output()
        hit = "SAVE FAILED" in text or "Traceback" in text
    return Result(hit, finish(data, run_dir, own) or compare(run_dir, sound))


def full_for_a_while(data: Path, sound: Path, run_dir: Path, seed: int) -> Result:
    """The run goes on through it, on a disk of its own, and has every line of its metrics."""
    run_dir.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", run_dir], check=False).returncode:
        return Result(False)
    try:
        child = Child(fill_for_a_while, (config(), data, run_dir, seed), run_dir / "log_fault.txt")
        status = child.result().status
        return Result(True, compare(run_dir, sound) if status == "finished" else f"the run is {status}")
    except (Nano3Error, OSError) as error:
        return Result(True, f"{type(error).__name__}: {error}")
    finally:
        subprocess.run(["umount", "--lazy", run_dir], check=True)


def damage_newest(data: Path, sound: Path, run_dir: Path, seed: int) -> Result:
    """Damage one file of the newest checkpoint of a stopped run, chosen by the seed; then finish the run."""
    rng = random.Random(seed)
    child = Child(train, (config(**{"train.exit_iteration": rng.choice([4, 6])}), data, run_dir),
                  run_dir / "log_fault.txt")  # fmt: skip
    assert child.result().status == "stopped"
    newest = latest_checkpoint(run_dir / "checkpoints")
    assert newest
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    path = files[seed % len(files)]
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: rng.randrange(len(content))])
    wrong = finish(data, run_dir, config()) or compare(run_dir, sound)
    reported = (run_dir / DAMAGE_LOG).is_file()
    return Result(True, wrong or ("" if reported else f"damage of {path.name} was not reported"))


def poisoned_run(data: Path, run_dir: Path, seed: int) -> Result:
    """A loss that is not a number is rolled back; the result is that of leaving the iteration out by hand."""
    own = config(**{"guard.action": "rollback", "train.eval_interval": 0})
    child = Child(poison, (own, data, run_dir / "guarded", seed), run_dir / "guarded/log_fault.txt")
    hit = child.result().status == "rolled back"
    wrong = finish(data, run_dir / "guarded", own)
    left_out = [[one.first, one.last] for one in read_skips(run_dir / "guarded").ranges]
    by_hand = config(**{"train.skip_iterations": left_out, "train.eval_interval": 0})
    train_here(by_hand, data, run_dir / "by_hand")
    return Result(hit, wrong or compare(run_dir / "guarded", run_dir / "by_hand"))


def jumping_clock(data: Path, sound: Path, run_dir: Path, seed: int) -> Result:
    """Three starts, each with a clock of its own; no part of the time that the report adds up is negative."""
    for start, last in enumerate((3, 6, ITERATIONS)):
        own = config(**{"train.exit_iteration": last})
        Child(wrong_clock, (own, data, run_dir, 10 * seed + start), run_dir / f"log_{start}.txt").result()
    use = time_use(read_metrics(run_dir))
    if use is None or min(use.seconds.values()) < 0 or len(use.starts) != 3:
        return Result(True, f"the report's times are {use}")
    return Result(True, compare(run_dir, sound))


def lost_wandb(data: Path, sound: Path, run_dir: Path, seed: int) -> Result:
    """The run finishes at once, and its log says how to send what W&B has not taken; a server that is back has it."""
    own = config(**{"run.wandb.mode": "online"})
    child = Child(lose_wandb, (own, data, run_dir, seed), run_dir / "log_fault.txt")
    status = child.result().status
    if status != "finished":
        return Result(True, f"the run is {status}")
    reported = "warning: W&B" in child.output()
    if not reported and read_json(run_dir / "taken.json") != [*range(1, ITERATIONS + 1)]:
        return Result(True, "W&B has not taken everything, and nothing is reported")
    return Result(True, compare(run_dir, sound))


def stopped_rank(data: Path, sound: Path, run_dir: Path, seed: int) -> Result:
    """Rank 0 ends since rank 1 is stopped; the launcher kills rank 1. The run is finished by one rank."""
    first, second = start_ranks(config(), data, run_dir, 2, job=partial(stop_rank_one, seed=seed))
    first.process.join(200)
    second.process.kill()
    second.process.join()
    hit = first.process.exitcode == HANG_EXIT_CODE
    return Result(hit, finish(data, run_dir, config()) or compare(run_dir, sound))


def attack(data: Path, sound: Path, folder: Path, counts: dict[str, int]) -> tuple[dict[str, int], list[str]]:
    """Run the faults of each kind; return how many were hit, and what was wrong."""
    kinds: dict[str, Callable[[Path, int], Result]] = {
        "kill at a file operation": lambda run, seed: disturb(die_after, data, sound, run, seed),
        "kill at a random time": lambda run, seed: disturb(die_in_time, data, sound, run, seed),
        "damaged checkpoint": lambda run, seed: damage_newest(data, sound, run, seed),
        "full disk": lambda run, seed: disturb(fill_the_disk, data, sound, run, seed),
        "full disk for a while": lambda run, seed: full_for_a_while(data, sound, run, seed),
        "poison": lambda run, seed: poisoned_run(data, run, seed),
        "step that never returns": lambda run, seed: disturb(hang, data, sound, run, seed),
        "SIGSTOP of rank 1": lambda run, seed: stopped_rank(data, sound, run, seed),
        "W&B outage": lambda run, seed: lost_wandb(data, sound, run, seed),
        "wrong clock": lambda run, seed: jumping_clock(data, sound, run, seed),
    }

    def one(fault: tuple[str, int]) -> Result:
        kind, seed = fault
        run = folder / f"{kind.replace(' ', '_')}_{seed}"
        result = kinds[kind](run, seed)
        if not result.wrong:
            shutil.rmtree(run, ignore_errors=True)
        return result

    faults = [(kind, seed) for kind, count in counts.items() for seed in range(count)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each start is a process; some wait for seconds
        results = [*zip(faults, pool.map(one, faults), strict=True)]
    hits = {kind: sum(result.hit for (own, _), result in results if own == kind) for kind in counts}
    return hits, [f"{kind}, seed {seed}: {result.wrong}" for (kind, seed), result in results if result.wrong]


def test_a_disturbed_run_ends_like_an_undisturbed_one(data: Path, sound: Path, tmp_path: Path) -> None:
    """A sample of the slow test below."""
    counts = {"kill at a file operation": 1, "damaged checkpoint": 1, "full disk": 1, "wrong clock": 1}
    counts |= {"full disk for a while": 1}
    assert attack(data, sound, tmp_path, counts)[1] == []


@pytest.mark.slow  # 134 faults, each with two or three starts: minutes
@pytest.mark.timeout(1800)
def test_no_fault_loses_a_run(data: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {
        "kill at a file operation": 40, "kill at a random time": 20, "damaged checkpoint": 30, "full disk": 16,
        "full disk for a while": 4, "poison": 8, "step that never returns": 2, "SIGSTOP of rank 1": 2, "W&B outage": 4,
        "wrong clock": 8,
    }  # fmt: skip
    hits, wrong = attack(data, sound, tmp_path, counts)
    with capsys.disabled():
        print(f"\n{sum(counts.values())} runs; faults hit: {hits}; {len(wrong)} lost")
    assert not wrong
    assert sum(hits.values()) >= 100
