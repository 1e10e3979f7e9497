"""Saving in the background on a real GPU: kills while a checkpoint is written, a dead writer, a full disk."""

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gpu_runs import MARKS, Runs

from nano3.training.megatron.checkpoints import begun_iterations
from nano3.training.run.checkpoints import MARKER, complete_checkpoints, iteration_folders, iteration_of

pytestmark = MARKS
INTERVAL = 3
LONG = [
    "train.train_iters=5000",
    "train.eval_interval=0",
    "logger.log_interval=1",
    f"checkpoint.save_interval={INTERVAL}",
]
RUNS, KILLS = 5, 8


def newest(folder: Path) -> int:
    """Return the iteration of the newest complete checkpoint, 0 without one."""
    found = complete_checkpoints(folder)
    return iteration_of(found[-1]) if found else 0


def wait_for_save(folder: Path, after: int, process: object, seconds: float = 240) -> int:
    """Wait until a save of a later iteration has begun, and return that iteration."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "ended too early"  # type: ignore[attr-defined]
        if (latest := max(begun_iterations(folder), default=0)) > after:
            return latest
        time.sleep(0.005)
    raise TimeoutError(f"no save began after iteration {after} in {folder}")


def kill_again_and_again(runs: Runs, name: str, seed: int) -> list[tuple[int, int]]:
    """Kill a run at a random moment after a save began, and start it again; return (begun, kept) of each kill."""
    draw, found = random.Random(seed), []
    folder = runs.dir(name) / "checkpoints"
    for _ in range(KILLS):
        before = newest(folder)
        process = runs.start(name, *LONG)
        for _ in range(draw.randint(1, 3)):  # the first save of a start takes another path than later ones
            before = wait_for_save(folder, before, process)
        time.sleep(draw.uniform(0, 0.5))
        runs.kill(process)
        found.append((max(begun_iterations(folder)), newest(folder)))
    return found


def test_a_kill_during_a_save_loses_at_most_one_interval(runs: Runs) -> None:
    """Each start must resume from the newest complete checkpoint; the losses continue as without kills."""
    names = [f"kills_{i}" for i in range(RUNS)]
    with ThreadPoolExecutor(RUNS) as pool:
        kills = [*pool.map(lambda i: kill_again_and_again(runs, names[i], seed=i), range(RUNS))]
    flat = [pair for found in kills for pair in found]
    during = [pair for pair in flat if pair[0] > pair[1]]
    (runs.folder / "logs" / "kills.txt").write_text(
        f"{len(flat)} kills, {len(during)} of them while a checkpoint was written; begun and kept iterations: {kills}\n"
    )
    assert all(begun - kept <= INTERVAL for begun, kept in flat), flat
    for name, found in zip(names, kills, strict=True):
        kept = [pair[1] for pair in found]
        assert kept == sorted(kept), "a later start never falls back behind an earlier one"
        text = runs.train(name, *LONG, f"train.exit_iteration={kept[-1] + 2}")
        assert f"resuming from iteration {kept[-1]} of" in text
        assert all((p / MARKER).is_file() for p in iteration_folders(runs.dir(name) / "checkpoints"))
    assert len(during) >= 30, flat


def group_of(leader: int) -> list[int]:
    """Return the processes of a process group."""
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == leader:
                found.append(pid)
    return found


def test_a_dead_writer_ends_the_run(runs: Runs) -> None:
    process = runs.start("writer", *LONG)
    wait_for_save(runs.dir("writer") / "checkpoints", 0, process)
    runs.wait_for("writer", INTERVAL + 1, process)
    writers = [pid for pid in group_of(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
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
