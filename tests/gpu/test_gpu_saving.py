"""Saving in the background on a real GPU: kills while a checkpoint is written, a dead writer, a full disk."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gpu_runs import MARKS, ROOT, Runs, gpus

from nano3.training.megatron.checkpoints import LEDGER, begun_iterations
from nano3.training.run.checkpoints import MARKER, complete_checkpoints, iteration_folders, iteration_of
from nano3.training.run.exports import read_export_info

pytestmark = MARKS
INTERVAL = 3
LONG = [
    "train.train_iters=5000",
    "train.eval_interval=0",
    "logger.log_interval=1",
    f"checkpoint.save_interval={INTERVAL}",
]
# Runs side by side; a start takes half a minute alone, and a minute beside so many others.
RUNS = 18 if gpus() > 1 else 9
KILLS = 36 // RUNS
# Kills are spread over this many seconds after the beginning of a save, which takes about one.
SPREAD_S = 0.8


def newest(folder: Path) -> int:
    """Return the iteration of the newest complete checkpoint, 0 without one."""
    found = complete_checkpoints(folder)
    return iteration_of(found[-1]) if found else 0


def ledger_version(folder: Path) -> int:
    """Return a number that changes when a save begins: a start finds the iteration that the killed one had begun."""
    path = folder / LEDGER
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_save(folder: Path, version: int, process: "subprocess.Popen[str]", seconds: float = 240) -> int:
    """Wait until another save than that of `version` has begun, and return the new version."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "ended too early:\n" + process.communicate()[0][-4000:]
        if (latest := ledger_version(folder)) != version:
            return latest
        time.sleep(0.005)
    raise TimeoutError(f"no save began in {folder}")


def kill_moments(seed: int) -> list[tuple[int, float]]:
    """Return for each kill of a run during which save of its start it comes, and how many seconds after its beginning.

    The first save of a start takes another path than later ones. The seconds are spread evenly over `SPREAD_S`.
    """
    draw = random.Random(seed)
    parts = draw.sample(range(KILLS), KILLS)
    return [(draw.randint(1, 2), (part + draw.random()) / KILLS * SPREAD_S) for part in parts]


def kill_again_and_again(runs: Runs, name: str, seed: int) -> list[tuple[int, int]]:
    """Kill a run at each of its moments and start it again; return (begun, kept) of each kill.

    Runs with other seeds use the other GPUs.

    Every start must take the checkpoint that the kill before it left, the one after the last kill, too.
    """
    found = []
    folder = runs.dir(name) / "checkpoints"
    gpu = {"CUDA_VISIBLE_DEVICES": str(seed % gpus())} if gpus() > 1 else {}
    for saves, seconds in kill_moments(seed):
        kept, version = newest(folder), ledger_version(folder)
        process = runs.start(name, *LONG, **gpu)
        for _ in range(saves):
            version = wait_for_save(folder, version, process)
        time.sleep(seconds)
        text = runs.kill(process)
        assert first_sentence(kept) in text
        found.append((max(begun_iterations(folder)), newest(folder)))
    kept = found[-1][1]
    process = runs.start(name, *LONG, **gpu)
    assert process.stdout
    while line := process.stdout.readline():
        if line.startswith(("fresh start", "resuming from")):
            break
    runs.kill(process)
    assert line.startswith(first_sentence(kept))
    return found


def first_sentence(kept: int) -> str:
    """Return how the log of a start begins that resumes from iteration `kept`, 0 for none."""
    return f"resuming from iteration {kept} of" if kept else "fresh start"


def kill_problems(kills: list[list[tuple[int, int]]]) -> list[str]:
    """Return what is wrong with the kills of each run, given as (begun, kept) iterations."""
    problems = []
    for run, found in enumerate(kills):
        kept = [0, *(pair[1] for pair in found)]
        if kept != sorted(kept):
            problems.append(f"run {run}: a start fell behind an earlier one: {found}")
        problems += [f"run {run}: more than one interval lost: {p}" for p in found if p[0] - p[1] > INTERVAL]
    during = sum(begun > kept for found in kills for begun, kept in found)
    if during < 30:
        problems.append(f"only {during} kills came while a checkpoint was written: {kills}")
    return problems


def test_a_kill_during_a_save_loses_at_most_one_interval(runs: Runs) -> None:
    """Each start must resume from the newest complete checkpoint; one of the runs then goes on to an end."""
    with ThreadPoolExecutor(RUNS) as pool:
        kills = [*pool.map(lambda i: kill_again_and_again(runs, f"kills_{i}", seed=i), range(RUNS))]
    during = sum(begun > kept for found in kills for begun, kept in found)
    (runs.folder / "logs" / "kills.txt").write_text(
        f"{RUNS * KILLS} kills, {during} of them while a checkpoint was written; begun and kept iterations: {kills}\n"
    )
    assert kill_problems(kills) == []
    kept, folder = kills[0][-1][1], runs.dir("kills_0") / "checkpoints"
    assert first_sentence(kept) in runs.train("kills_0", *LONG, f"train.exit_iteration={kept + 2}")
    assert newest(folder) == kept + 2
    assert all((p / MARKER).is_file() for p in iteration_folders(folder))


def group_of(leader: int) -> dict[int, str]:
    """Return the command lines of the processes of a process group that run, by process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == leader and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
    return found


def test_a_rank_that_is_killed_alone_leaves_no_writer(runs: Runs) -> None:
    """Its writer would otherwise go on writing into a folder that the next start removes and saves to again."""
    folder = runs.dir("alone") / "checkpoints"
    process = runs.start("alone", *LONG)
    wait_for_save(folder, wait_for_save(folder, 0, process), process)
    before = group_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while (left := group_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    seconds = 10 - (deadline - time.monotonic())
    (runs.folder / "logs" / "alone.txt").write_text(f"{before}\nafter {seconds:.2f} s: {left}\n")
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=60)
    runs.save_log(process, text)
    assert any("spawn_main" in command for command in before.values())
    assert left == {}
    begun, kept = max(begun_iterations(folder)), newest(folder)
    assert begun - kept <= INTERVAL
    assert f"resuming from iteration {kept} of" in runs.train("alone", *LONG, f"train.exit_iteration={kept + 2}")
    assert newest(folder) == kept + 2
    assert all((p / MARKER).is_file() for p in iteration_folders(folder))


def test_a_dead_writer_ends_the_run(runs: Runs) -> None:
    process = runs.start("writer", *LONG)
    wait_for_save(runs.dir("writer") / "checkpoints", 0, process)
    runs.wait_for("writer", INTERVAL + 1, process)
    writers = [pid for pid, command in group_of(process.pid).items() if "spawn_main" in command]
    assert writers
    for pid in writers:
        os.kill(pid, signal.SIGKILL)
    text = runs.finish(process, code=1, timeout=120)
    assert "The process that writes checkpoints ended with exit code -9" in text
    assert "Traceback" not in text.rpartition("error:")[2]


@pytest.mark.parametrize("background", [True, False], ids=["in the background", "in the foreground"])
def test_a_full_disk_is_reported_and_the_next_save_is_taken(runs: Runs, background: bool) -> None:
    """A file size limit stands for a full disk: with it, files of checkpoints cannot be written."""
    name = f"full_disk_{background}"
    words = [*LONG, f"+megatron.checkpoint.async_save={str(background).lower()}", "checkpoint.max_failed_saves=2"]
    limited = runs.popen(
        "-c",
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, resource.RLIM_INFINITY))\n"
        "sys.argv[0] = 'nano3.pretrain'\n"
        "runpy.run_module('nano3.pretrain', run_name='__main__', alter_sys=True)",
        *runs.micro_words(name),
        *words,
    )
    text = runs.finish(limited, code=1)
    assert "SAVE FAILED (1 of 2 in a row end the run)" in text
    assert newest(runs.dir(name) / "checkpoints") == 0
    assert [p for p in iteration_folders(runs.dir(name) / "checkpoints") if (p / MARKER).exists()] == []
    runs.train(name, *words, f"train.exit_iteration={2 * INTERVAL}")
    assert newest(runs.dir(name) / "checkpoints") == 2 * INTERVAL


def test_a_copy_takes_the_memory_that_was_reserved() -> None:
    """torch allocates nothing more for a copy of the sizes that `reserve` was given."""
    code = (
        "import torch\n"
        "from nano3.training.megatron.writer_memory import block_size, reserve\n"
        "torch.cuda.init()\n"
        "number = lambda: torch.cuda.host_memory_stats()['num_host_alloc']\n"
        "before, sizes = number(), [1_500_000, 1_500_000, 2**21, 5_000_000]\n"
        "reserve({block_size(1_500_000): 3, block_size(5_000_000): 1})\n"
        "reserved = number()\n"
        "kept = [torch.ones(n, dtype=torch.uint8, device='cuda').to('cpu', non_blocking=True) for n in sizes]\n"
        "torch.cuda.synchronize()\n"
        "print(reserved - before, number() - reserved, sum(int(t.sum()) for t in kept) == sum(sizes))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "0", "True"]


def test_checkpoints_are_exported_while_it_trains(runs: Runs) -> None:
    """Every second checkpoint, also one that is removed meanwhile; the result is that of `nano3 export`."""
    words = ["train.train_iters=20", "train.eval_interval=0", "checkpoint.save_interval=5", "checkpoint.keep_last=1"]
    text = runs.train("exported", *words, "checkpoint.export_every=2")
    assert "EXPORT FAILED" not in text and "Traceback" not in text
    exports = runs.dir("exported") / "exports"
    assert sorted(p.name for p in exports.iterdir()) == ["iter_0000010", "iter_0000020"]
    assert runs.checkpoints("exported") == ["iter_0000020"]
    assert not list((runs.dir("exported") / "checkpoints").glob(".export_*"))
    assert [read_export_info(exports / name).iteration for name in ("iter_0000010", "iter_0000020")] == [10, 20]
    by_hand = runs.folder / "exported_by_hand"
    runs("-m", "nano3", "export", "exported", "--output", str(by_hand))
    weights = [p.name for p in by_hand.glob("*.safetensors")]
    assert weights
    for name in [*weights, "config.json"]:
        assert (by_hand / name).read_bytes() == (exports / "iter_0000020" / name).read_bytes()
        assert (name == "config.json") is (
            (exports / "iter_0000010" / name).read_bytes() == (by_hand / name).read_bytes()
        )
