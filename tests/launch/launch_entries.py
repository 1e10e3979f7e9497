"""Tiny entries for the launch tests: they behave like a training run without training."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from nano3.utils.errors import Failure
from nano3.utils.files import write_json
from nano3.utils.process_stack import allow_reading_this_process

AGAIN = 75


def rank() -> int:
    """Return the global rank, 0 outside a distributed run."""
    return int(os.environ.get("RANK", "0"))


def count(run_dir: str, *options: str) -> int:
    """Count to `steps` with pauses, saving the number in RUN_DIR/progress.json; return 75 on SIGTERM and SIGUSR2.

    Options, as key=value: steps, pause (seconds), fail_rank and fail_code (once rank 0 has said how it starts), with
    fail_at (step), fail_starts (only so many) and fail_node (only there), deaf=1 (ignore signals), saves=0 (never
    save), more (steps that a resumed start does, instead of all), limit (stop by itself after this step, with 75).
    """
    given = dict(option.split("=", 1) for option in options)
    steps, pause = int(given.get("steps", "3")), float(given.get("pause", "0"))
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda signum, frame: None if given.get("deaf") else stop.append(signum))
    folder = Path(run_dir)
    progress = folder / "progress.json"
    step = json.loads(progress.read_text())["step"] if progress.exists() else 0
    print(f"resuming from step {step}" if step else "fresh start", flush=True)
    if step and "more" in given:
        steps = step + int(given["more"])
    (folder / f"environment_{rank()}.json").write_text(json.dumps(dict(os.environ)))
    while step < steps:
        time.sleep(pause)
        if given.get("fail_rank") == str(rank()) and _fails(given, step):
            # A failure ends the others, wherever they are: rank 0 has said how it starts, and saved a step, too.
            saved = [progress] if step and given.get("saves") != "0" else []
            while not all(path.exists() for path in (folder / "environment_0.json", *saved)):
                time.sleep(0.01)
            print(f"boom on rank {rank()}", file=sys.stderr, flush=True)
            return int(given["fail_code"])
        if stop:
            print(f"saved step {step} after signal {stop[0]}", flush=True)
            return AGAIN
        if given.get("limit") == str(step):
            print(f"saved step {step} at the limit", flush=True)
            return AGAIN
        step += 1
        if rank() == 0:
            if given.get("saves") != "0":
                write_json(progress, {"step": step})  # at once: another rank may be reading it
            with (folder / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps({"iteration": step, "loss": 1 / step}) + "\n")
    if rank() == 0:
        print(f"counted to {step}", flush=True)
        (folder / "finished.json").write_text(json.dumps({"step": step}))
    return 0


def _fails(given: dict[str, str], step: int) -> bool:
    start, node = int(os.environ.get("SLURM_RESTART_COUNT", "0")), os.environ.get("SLURMD_NODENAME", "")
    starts, where = int(given.get("fail_starts", "1000")), given.get("fail_node", node)
    return step >= int(given.get("fail_at", "0")) and start < starts and where == node


def not_ready(run_dir: str, signal_ignored: str = "") -> None:
    """Wait like a rank whose Python is still starting: signals end it, except one that is ignored."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN if number.name == signal_ignored else signal.SIG_DFL)
    (Path(run_dir) / "waits").touch()
    time.sleep(600)


def write_argument(path: str, text: str) -> None:
    """Write `text` to a file."""
    Path(path).write_text(text)


def end_last(run_dir: str) -> int:
    """End some seconds after the other ranks as rank 0, which reports."""
    if rank() == 0:
        time.sleep(5)
        (Path(run_dir) / "finished.json").write_text("{}")
    return 0


def occupy_record(run_dir: str) -> int:
    """Put a folder where the end of the start is to be recorded, and stop."""
    (Path(run_dir) / "local.json").unlink()
    (Path(run_dir) / "local.json").mkdir()
    return AGAIN


def raise_failure(text: str) -> int:
    """Fail with an error of nano3."""
    raise Failure(text)


def raise_unforeseen(text: str) -> int:
    """Fail with an unexpected error."""
    raise ZeroDivisionError(text)


def all_reduce(run_dir: str) -> int:
    """Sum rank + 1 over all ranks with torch's gloo."""
    import torch
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    total = torch.tensor([float(rank() + 1)])
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    (Path(run_dir) / f"sum_{rank()}.txt").write_text(str(total.item()))
    return 0


def part(folder: str, mode: str, index: int, count: int) -> int:
    """One task of an array: write FOLDER/part_INDEX, and misbehave as `mode` says.

    "once:2" fails task 2 the first time, "always:2" each time, "vanish:2" ends the first time with its job, "" never.
    """
    kind, _, which = mode.partition(":")
    tried = Path(folder) / f"tried_{index}"
    first = not tried.exists()
    tried.write_text("")
    if which == str(index):
        if kind == "always" or (kind == "once" and first):
            print(f"part {index} fails", flush=True)
            return 9
        if kind == "vanish" and first:
            os.system(f"scancel {os.environ['SLURM_ARRAY_JOB_ID']}_{index}")
            time.sleep(60)
    (Path(folder) / f"part_{index}").write_text(f"{index} of {count}")
    return 0


def gather(folder: str, mode: str) -> int:
    """Finalizer: write all parts to one file."""
    parts = sorted(Path(folder).glob("part_*"))
    (Path(folder) / "gathered").write_text("\n".join(p.read_text() for p in parts))
    return 0


def roll_back(run_dir: str, times: str) -> int:
    """Return 77 on every rank for the first starts, then 0; write one line with the port for each start."""
    notes = Path(run_dir) / f"starts_{rank()}.txt"
    with notes.open("a") as f:
        f.write(f"{os.environ.get('MASTER_PORT', '-')}\n")
    print(f"start of rank {rank()}", flush=True)
    return 77 if len(notes.read_text().splitlines()) <= int(times) else 0


def stop_itself() -> int:
    """Answer no signal, as a process that waits for a driver."""
    allow_reading_this_process()
    os.kill(os.getpid(), signal.SIGSTOP)
    return 0


def kill_itself(run_dir: str, words: str = "its last words\n") -> int:
    """Leave a log and die of a signal, as after a segmentation fault."""
    log = Path(run_dir) / "logs" / f"rank_{rank()}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(words)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0
