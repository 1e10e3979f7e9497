"""Notice that a rank makes no progress, record the Python stack of every rank, and end the run so that it restarts.

Each rank watches itself in a thread. A rank that is stopped, or whose machine is gone, cannot; then the others wait for
it in a collective and notice, and one on the same machine reads its stack from outside; if there is none, its
launch.task does. The ranks exit with `HANG_EXIT_CODE`; launchers restart such a run.

Files in RUN/hang:

rank_N.json  Written at the rank's start and again when it hangs: host, node (as Slurm names it), process id, iteration,
             phase, stack, and the nodes of the ranks that are behind; launch.task reads it.
rank_N.txt   The stacks of all its threads, appended at each hang, or why they could not be read.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nano3.training.run.metrics import slowest_resume_s
from nano3.utils.console import print_problems
from nano3.utils.errors import HANG_EXIT_CODE
from nano3.utils.files import read_json, write_json
from nano3.utils.process_stack import allow_reading_this_process, append_stack

# Compilation, the index of samples and the reading of a checkpoint come before the first step. Another node may have to
# compile again.
FIRST_STEP_S = 3600.0
LEAST_FIRST_STEP_S = 600.0
SLOWEST_RESUME_FACTOR = 10
# Validation and saving take longer than a step.
SLOW_PHASE_FACTOR = 6
# Outputs are closed after the last step; W&B alone may take 20 s. Other ranks wait for rank 0 meanwhile.
LEAST_END_S = 120.0
# The limit grows with the longest step so far, since a step can be as long as minutes.
LONGEST_STEP_FACTOR = 5
# How long a rank that noticed waits for the records of the others.
GATHER_S = 10.0
# If Python's lock is never released, only the timer of faulthandler still runs; it fires this much later.
NATIVE_MARGIN_S = 60.0
# Innermost frames of a stack that are compared between ranks.
COMPARED_FRAMES = 8
# The module in which a rank waits for the others. With NCCL it waits later, wherever it needs the result.
COLLECTIVES = "torch/distributed/distributed_c10d.py"


@dataclass
class Progress:
    """The last progress of this rank: time of `time.monotonic`, finished iterations, and what it does since then.

    `longest_step_s` is of the `steps` that were timed. The first one compiles, so it counts until there is another.
    """

    at: float
    iteration: int = 0
    phase: str = "start"
    longest_step_s: float = 0.0
    steps: int = 0


class HangWatch:
    """Watches the progress of this rank in a thread, between `__enter__` and `__exit__`."""

    def __init__(
        self,
        run_dir: Path,
        timeout_s: float,
        *,
        gather_s: float = GATHER_S,
        first_step_s: float = FIRST_STEP_S,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        """Create a watch that is not started yet.

        Args:
            run_dir: The run folder.
            timeout_s: Seconds without progress that a step may take (train.hang_timeout_s).
            gather_s: Seconds to wait for the records of other ranks.
            first_step_s: Least limit before the first step is finished.
            end: Ends this process with an exit code.
        """
        self.folder, self.timeout_s, self._gather_s, self._first_step_s = (
            run_dir / "hang",
            timeout_s,
            gather_s,
            first_step_s,
        )
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._end = end
        self._progress = Progress(time.monotonic())
        self._started_at = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def __enter__(self) -> "HangWatch":
        """Record this rank and start to watch it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        allow_reading_this_process()
        self._record({})
        self._text = (self.folder / f"rank_{self.rank}.txt").open("a")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._text.close()

    def progress(self, iteration: int, phase: str = "step") -> None:
        """Note that this rank has finished something and what it does next.

        Args:
            iteration: Finished iterations.
            phase: What begins now: "step", "validation", "save" or "end".
        """
        now, last = time.monotonic(), self._progress
        longest, steps = last.longest_step_s, last.steps
        if last.phase == "step" and iteration > last.iteration:
            longest, steps = max(now - last.at, longest if steps > 1 else 0.0), steps + 1
        self._progress = Progress(now, iteration, phase, longest, steps)

    def limit_s(self) -> float:
        """Return the seconds without progress that the present phase may last."""
        seen = self._progress
        limit = max(self.timeout_s, LONGEST_STEP_FACTOR * seen.longest_step_s)
        if seen.phase == "end":
            return max(SLOW_PHASE_FACTOR * limit, LEAST_END_S)
        if not seen.longest_step_s:
            return max(limit, self._first_step_s)
        return limit if seen.phase == "step" else SLOW_PHASE_FACTOR * limit

    def _watch(self) -> None:
        while not self._stop.wait(min(5.0, self.timeout_s / 4)):
            left = self.limit_s() - (time.monotonic() - self._progress.at)
            faulthandler.dump_traceback_later(max(left, 0) + NATIVE_MARGIN_S, exit=True, file=self._text)
            if left <= 0:
                try:
                    self._report()
                except OSError as error:  # a full disk must not keep a rank that hangs
                    print_problems([f"hang: no progress on rank {self.rank}, which cannot be recorded: {error}"])
                self._end(HANG_EXIT_CODE)
                return

    def _report(self) -> None:
        """Record this rank; on the lowest rank that still runs, name the ranks that are behind."""
        seen = self._progress
        waited = time.monotonic() - seen.at
        frames = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = [f"{f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_stack(frames)] if frames else []
        self._text.write(
            f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self.rank} on {socket.gethostname()}: no progress for "
            f"{waited:.0f} s in iteration {seen.iteration + 1} ({seen.phase})\n"
        )
        self._text.flush()
        faulthandler.dump_traceback(self._text, all_threads=True)
        own = {"waited_s": round(waited, 1), "iteration": seen.iteration, "phase": seen.phase, "stack": stack}
        self._record(own)
        time.sleep(self._gather_s if self.world > 1 else 0)
        records = read_ranks(self.folder, self._started_at)
        behind = ranks_behind(records, self.world) if self.world > 1 else [self.rank]
        nodes = {records[rank].get("node", records[rank]["host"]) for rank in behind if rank in records}
        self._record(own | {"behind": sorted(nodes)})
        if self.rank == min((rank for rank, record in records.items() if "stack" in record), default=self.rank):
            text = describe_hang(records, self.world)
            advice = f"The same command resumes from the newest checkpoint; stacks of all ranks: {self.folder}"
            print_problems([f"hang: {text} {advice}; {self._limit_text()}."])
        self._read_silent(records)

    def _limit_text(self) -> str:
        """Return where the limit comes from, and how much it was if it is not the setting."""
        setting, seen, limit = f"train.hang_timeout_s={self.timeout_s:g}", self._progress, self.limit_s()
        if limit == self.timeout_s:
            return f"limit: {setting}"
        if seen.longest_step_s or seen.phase == "end":
            step = f", the longest step ({seen.longest_step_s:.1f} s)" if seen.longest_step_s else ""
            return f"limit: {limit:.0f} s, which follows from {setting}{step} and what the rank did ({seen.phase})"
        return (
            f"limit of the first steps: {self._first_step_s:.0f} s (an hour, or ten times the slowest resume so far, "
            f"at least ten minutes), or {setting} if that is more"
        )

    def _read_silent(self, records: dict[int, dict[str, Any]]) -> None:
        """On the lowest rank of a machine that answers, append the stacks of those on it that do not."""
        host = socket.gethostname()
        here = {rank: record for rank, record in records.items() if record["host"] == host and rank < self.world}
        if self.rank != min((rank for rank, record in here.items() if "stack" in record), default=None):
            return
        silent = {rank: int(record["pid"]) for rank, record in here.items() if "stack" not in record}
        if silent:  # all at once: each may take `TIMEOUT_S`, and this rank has `NATIVE_MARGIN_S`
            with ThreadPoolExecutor(len(silent)) as pool:
                list(pool.map(partial(append_stack, self.folder), silent.keys(), silent.values()))

    def _record(self, values: dict[str, Any]) -> None:
        host = socket.gethostname()
        own = {"rank": self.rank, "host": host, "node": os.environ.get("SLURMD_NODENAME") or host}
        own |= {"pid": os.getpid(), "time": time.time()}
        write_json(self.folder / f"rank_{self.rank}.json", own | values)


def first_step_limit_s(slowest_resume_s: float) -> float:
    """Return the seconds that a start may take until its first step, by what earlier resumes of the run took.

    Args:
        slowest_resume_s: Seconds of the slowest one; 0 if none is known.
    """
    measured = max(SLOWEST_RESUME_FACTOR * slowest_resume_s, LEAST_FIRST_STEP_S)
    return min(measured, FIRST_STEP_S) if slowest_resume_s else FIRST_STEP_S


def read_ranks(folder: Path, since: float) -> dict[int, dict[str, Any]]:
    """Return the record of each rank by its number.

    Args:
        folder: RUN/hang.
        since: Seconds since the epoch; stacks recorded earlier are left out.
    """
    found = {}
    for file in folder.glob("rank_*.json"):
        record = read_json(file)
        if record["time"] < since:
            record.pop("stack", None)
        found[int(record["rank"])] = record
    return found


def ranks_behind(records: dict[int, dict[str, Any]], world: int) -> list[int]:
    """Return the ranks that the others wait for.

    These are silent ones, those at an earlier iteration, those with a rare stack, or those outside of the collective
    that the others are in.

    Args:
        records: `read_ranks`.
        world: Number of ranks.
    """
    hung = {rank: record for rank, record in records.items() if "stack" in record}
    if silent := [rank for rank in range(world) if rank not in hung]:
        return silent
    newest = max(record["iteration"] for record in hung.values())
    if behind := [rank for rank, record in hung.items() if record["iteration"] < newest]:
        return sorted(behind)
    stacks = {rank: tuple(record["stack"][-COMPARED_FRAMES:]) for rank, record in hung.items()}
    counts = Counter(stacks.values())
    common = max(counts.values())
    if rare := sorted(rank for rank, stack in stacks.items() if counts[stack] < common):
        return rare
    absent = [rank for rank, stack in stacks.items() if not any(COLLECTIVES in frame for frame in stack)]
    return sorted(absent) if len(absent) < len(stacks) else []


def describe_hang(records: dict[int, dict[str, Any]], world: int) -> str:
    """Return sentences that name the iteration and the ranks that are behind.

    Args:
        records: `read_ranks`.
        world: Number of ranks.
    """
    hung = {rank: record for rank, record in records.items() if "stack" in record}
    first = min(hung.values(), key=lambda record: record["iteration"])
    text = f"no progress for {first['waited_s']:.0f} s in iteration {first['iteration'] + 1} ({first['phase']})."
    behind = ranks_behind(records, world)
    if not set(behind) <= set(hung):
        return f"{text} {'; '.join(_describe_silent(rank, records.get(rank)) for rank in behind)}."
    if behind:
        named = "; ".join(
            f"rank {rank} on {hung[rank]['host']} is behind, in {_innermost(hung[rank])}" for rank in behind[:8]
        )
        return f"{text} {named}."
    if len({tuple(record["stack"][-COMPARED_FRAMES:]) for record in hung.values()}) > 1:
        pairs = "; ".join(f"rank {rank} is in {_innermost(hung[rank])}" for rank in sorted(hung)[:8])
        return f"{text} {pairs}."
    return f"{text} {'All ranks are' if world > 1 else 'It is'} in {_innermost(first)}."


def _innermost(record: dict[str, Any]) -> str:
    return str(record["stack"][-1]) if record["stack"] else "native code"


def _describe_silent(rank: int, record: dict[str, Any] | None) -> str:
    """Return what is known about a rank that recorded no stack."""
    if record is None:
        return f"rank {rank} never started"
    text = f"rank {rank} on {record['host']} (process {record['pid']}) is behind and does not answer"
    if record["host"] != socket.gethostname():
        return text
    try:
        state = Path(f"/proc/{record['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return f"{text}: the process is gone"
    names = {"T": "it is stopped (SIGSTOP or a debugger)", "D": "it waits for a disk or driver", "Z": "it has ended"}
    return f"{text}: {names.get(state, f'its state is {state}')}"


_current: HangWatch | None = None


@contextlib.contextmanager
def watch_for_hangs(run_dir: Path, timeout_s: float | None) -> Iterator[None]:
    """Watch this rank during the block.

    Args:
        run_dir: The run folder.
        timeout_s: train.hang_timeout_s; None does not watch.
    """
    global _current
    if timeout_s is None:
        yield
        return
    limit = first_step_limit_s(slowest_resume_s(run_dir))
    with HangWatch(run_dir, timeout_s, first_step_s=limit) as _current:
        try:
            yield
        finally:
            _current = None


def note_progress(iteration: int, phase: str = "step") -> None:
    """Note progress of this rank in the watch of `watch_for_hangs`, if there is one.

    Args:
        iteration: Finished iterations.
        phase: What begins now: "step", "validation", "save" or "end".
    """
    if _current is not None:
        _current.progress(iteration, phase)
