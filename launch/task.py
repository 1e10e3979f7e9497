"""What one Slurm task does: give the rank its environment, start it, pass signals on, and record how it ended.

submitit pickles a `RankTask` and calls it in every task of the job. The rank itself is a child process (launch.rank),
so that its end is recorded whatever ends it: an exit code, a segmentation fault, the out-of-memory killer.

Two files tell the job script (launch.script) what happened, both named after the job's id:
    ID.exit     first rank that failed by itself: "CODE RANK HOST" on the first line
    ID.again    a rank was told to stop, has saved, and wants the job to be requeued
    ID.stopped  a rank stopped by itself before its end (it was to run so many minutes): saved, but not to be requeued
A task whose rank returned 75 exits with 0, because srun ends all other tasks when one exits with anything else, and
these may still be writing their part of the checkpoint.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.job import AGAIN
from nano3.utils.console import print_problems
from nano3.utils.errors import Failure
from nano3.utils.files import read_json, write_json

# Time between our SIGKILL of a rank that did not save and Slurm's time limit, for the job script to requeue the job.
_MARGIN_S = 15


def job_id() -> str:
    """Id of this job as launch writes it: "123", or "123_4" for task 4 of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def restarts() -> int:
    """How often Slurm has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def port(job: str, restart: int) -> int:
    """Where the ranks of a job meet: the same for all of them, another one when the job is started again.

    Below 32768, from where on Linux gives ports to whoever opens a connection: one that is taken ends the job.
    """
    return 20_000 + zlib.crc32(f"{job} {restart}".encode()) % 12_000


@dataclass(frozen=True)
class RankTask:
    """Pickled at submission; plain values only, so that the container needs nothing but this package and submitit."""

    entry: str
    args: tuple[str, ...]
    # RUN_DIR/slurm, or that of the sweep.
    folder: str
    progress_file: str
    signal_delay_s: int
    max_crashes: int
    # Of a task of an array (launch.array): its index and the number of tasks; it leaves ID.done when it has succeeded.
    part: tuple[int, int] | None = None
    # Start the job again this often when the entry fails (tasks of an array; a training run never).
    retries: int = 0

    @property
    def command(self) -> list[str]:
        """The rank as a process."""
        part = ["--part", *map(str, self.part)] if self.part else []
        return [sys.executable, "-u", "-m", "launch.rank", *part, self.entry, *self.args]

    def __call__(self) -> None:
        """Run the rank and exit with its code."""
        import submitit

        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it before SIGTERM, and submitit would tell of it
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["MASTER_PORT"] = str(port(job_id(), restarts()))
        code = self._run()
        sys.stdout.flush()
        sys.exit(code)

    def _run(self) -> int:
        prefix = Path(self.folder) / job_id()
        if os.environ["RANK"] == "0":
            try:
                check_starts(prefix, Path(self.progress_file), self.max_crashes)
            except Failure as error:
                print_problems(error.problems)
                record_failure(prefix, error.exit_code)
                return error.exit_code
        child = RankProcess(self.command, self.signal_delay_s - _MARGIN_S)
        code = child.wait()
        if code == 0:
            if self.part:
                prefix.with_name(prefix.name + ".done").touch()
            return 0
        if code == AGAIN or child.killed_late or child.was_not_ready(code):
            mark = "again" if child.told_to_stop else "stopped"
            prefix.with_name(f"{prefix.name}.{mark}").touch()
            return 0
        if not child.told_to_end:  # else it died with the others, of another rank's failure
            if restarts() < self.retries:
                print(
                    f"launch: exit code {code}; starting this task again ({restarts() + 1} of {self.retries})",
                    flush=True,
                )
                prefix.with_name(prefix.name + ".again").touch()
                return 0
            record_failure(prefix, code)
        return code


def record_failure(prefix: Path, code: int) -> None:
    """Write ID.exit unless another rank was first."""
    first = prefix.with_name(prefix.name + ".exit")
    mine = prefix.with_name(f"{prefix.name}.exit.{os.environ['RANK']}")
    mine.write_text(f"{code} {os.environ['RANK']} {socket.gethostname()}\n")
    with contextlib.suppress(FileExistsError):
        os.link(mine, first)
    mine.unlink()


def check_starts(prefix: Path, progress_file: Path, max_crashes: int) -> None:
    """Note this start; `Failure` when the last `max_crashes` starts of this job ended without progress.

    Progress is any change of `progress_file`. Starts are counted whatever ended them: a node that dies at every start
    of this job, a time limit that is too short to save even once, a preemption at every start.
    """
    starts_file = prefix.with_name(prefix.name + ".starts.json")
    # A job that is requeued may not have come this far the first time.
    starts: list[str] = read_json(starts_file) if restarts() and starts_file.exists() else []
    now = progress_file.read_text() if progress_file.exists() else ""
    if len(starts) >= max_crashes and all(before == now for before in starts[-max_crashes:]):
        raise Failure(
            f"Gave up: the last {max_crashes} starts of this job made no progress ({progress_file} did not change). "
            "See the log above for what ended them; raise cluster.max_crashes if it is only preempted too early."
        )
    write_json(starts_file, [*starts, now])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


class RankProcess:
    """The rank's process. Slurm signals only the task itself, so SIGTERM and SIGUSR2 are passed on."""

    def __init__(self, command: list[str], grace_s: float) -> None:
        self.told_to_stop = False
        self.told_to_end = False
        self.killed_late = False
        self._grace_s = max(grace_s, 1)
        self._pending: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        for handled in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(handled, self._pass_on)
        self._process = subprocess.Popen(command, start_new_session=True)
        for early in self._pending:
            self._pass_on(early, None)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self.told_to_stop = True
        if signum == signal.SIGTERM:
            self.told_to_end = True
        if self._process is None:
            self._pending.append(signum)
            return
        self._process.send_signal(signum)
        if signum == signal.SIGUSR2:  # the time limit is near, and a job that reaches it is not requeued
            timer = threading.Timer(self._grace_s, self._kill)
            timer.daemon = True
            timer.start()

    def _kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            print(
                f"launch: not stopped {self._grace_s:.0f} s after SIGUSR2: killing the rank and requeueing", flush=True
            )
            self.killed_late = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def was_not_ready(self, code: int) -> bool:
        """Whether it was told to stop before launch.rank could handle that: nothing is lost."""
        return self.told_to_stop and code in (128 + signal.SIGTERM, 128 + signal.SIGUSR2)

    def wait(self) -> int:
        """Exit code as a shell gives it: 128 + signal number for a rank that a signal ended."""
        assert self._process is not None
        code = self._process.wait()
        if code < 0:
            print(f"launch: the rank was ended by {_signal_name(-code)}", file=sys.stderr, flush=True)
        return code if code >= 0 else 128 - code
