"""One task of a Slurm job: prepare the rank's environment, run the rank, forward signals, and record its end.

    python -m launch.task TASKS_FILE

The file has one `RankTask` for each task of the job array, or one for a single job. The rank is a child process
(launch.rank), so the task can record any end: an exit code, a segmentation fault, the out-of-memory killer.
launch.job_end has the marker files that it leaves for the job script, and the requeue.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launch.job_end import (
    UNMARKED_REQUEUE_CODE,
    UNMARKED_STOP_CODE,
    AfterFailure,
    JobMarkers,
    current_job_id,
    node_name,
    restart_count,
)
from nano3.utils.console import flush_output, prepare_output, print_problems, write
from nano3.utils.disk_errors import disk_failure
from nano3.utils.errors import HANG_EXIT_CODE, RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE, Failure, UserError
from nano3.utils.files import read_json
from nano3.utils.process_stack import append_stack

# Seconds that the job script needs to requeue the job, between the SIGKILL of a rank that did not save in time and
# Slurm's time limit.
_REQUEUE_MARGIN_S = 15
# Rank 0 waits for this long for the other tasks if it must end with an error; they have saved together.
OTHERS_END_S = 8


def rendezvous_port(job: str, restart: int, rollback: int = 0) -> int:
    """Return the port on which the ranks of a job meet: equal for all ranks, different after a restart.

    The port is below 32768, where Linux's ephemeral ports begin (net.ipv4.ip_local_port_range): a taken port would end
    the job.

    Args:
        job: Id of the job.
        restart: How often Slurm has requeued it.
        rollback: How often the tasks have started their ranks again since.
    """
    start = f"{job} {restart}" + (f" {rollback}" if rollback else "")
    return 20_000 + zlib.crc32(start.encode()) % 12_000


@dataclass(frozen=True)
class RankTask:
    """What every task of a job runs. It is read from JSON, so it holds plain values only."""

    entry: str
    args: tuple[str, ...]
    # The job's slurm folder.
    folder: str
    progress_file: str
    signal_delay_s: int
    max_crashes: int
    # For a task of an array (launch.array): its index and the number of tasks. It leaves ID.done if it succeeds.
    array_task: tuple[int, int] | None = None
    # For a task of an array: requeues after a failure of the entry.
    retries: int = 0
    # Whether a failure of the entry requeues the job, unless max_crashes starts in a row have made no progress.
    restart_after_crash: bool = False

    @property
    def command(self) -> list[str]:
        """The command line of the rank."""
        array_task = ["--array-task", *map(str, self.array_task)] if self.array_task else []
        return [sys.executable, "-u", "-m", "launch.rank", *array_task, self.entry, *self.args]

    def __call__(self) -> None:
        """Run the rank and exit with its code."""
        import submitit

        prepare_output()

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["MASTER_PORT"] = str(rendezvous_port(current_job_id(), restart_count()))
        code = self._run()
        flush_output()
        sys.exit(code)

    def _run(self) -> int:
        markers = JobMarkers(Path(self.folder), current_job_id())
        if os.environ["RANK"] == "0":
            try:
                markers.check_crash_loop(Path(self.progress_file), self.max_crashes)
            except (Failure, OSError) as error:
                failure = error if isinstance(error, Failure) else disk_failure(error, str(error.filename))
                print_problems(failure.problems)
                _leave(markers.record_failure, failure.exit_code)
                return failure.exit_code
        process, code = self._run_rank()
        if code == 0:
            done = not self.array_task or _leave(markers.mark_done)
            return 0 if done else Failure.exit_code
        if code in (RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE) or process.killed_late or process.stopped_before_start(code):
            if process.stop_requested:
                return _end_of_stop(markers.request_requeue, UNMARKED_REQUEUE_CODE)
            return _end_of_stop(markers.mark_stopped, UNMARKED_STOP_CODE)
        if process.sigterm_received:  # srun ended this rank because another rank failed
            return code
        if code > 128:  # killed, so it could not say why
            self._show_log_end(code)
        after, node = self._after_failure(code, markers), self._failed_node(code)
        if not _leave(markers.record_failure, code, after, node) and after == AfterFailure.RESTART:
            write("launch: the job is not restarted; run the same command to continue\n", stderr=True)
        return code

    def _after_failure(self, code: int, markers: JobMarkers) -> AfterFailure:
        """Return what the job script does after this rank failed with `code`."""
        if self.array_task:
            return AfterFailure.RESTART if restart_count() < self.retries else AfterFailure.END
        if not self.restart_after_crash or code == UserError.exit_code:
            return AfterFailure.END
        may_restart = markers.may_restart(Path(self.progress_file), self.max_crashes)
        return AfterFailure.RESTART if may_restart else AfterFailure.GIVE_UP

    def _failed_node(self, code: int) -> str:
        """Return the node to blame: this one, or after a hang that of the rank that was behind; "-" if unknown."""
        if code != HANG_EXIT_CODE:
            return node_name()
        try:
            nodes = read_json(Path(self.progress_file).parent / "hang" / f"rank_{os.environ['RANK']}.json")["behind"]
        except (OSError, ValueError, KeyError):
            return "-"
        return str(nodes[0]) if len(nodes) == 1 else "-"

    def _show_log_end(self, code: int) -> None:
        """Print the end of the log that the entry keeps of this rank, if there is one, and last why the rank ended."""
        from launch.follow import tail_lines

        rank = os.environ["RANK"]
        log = Path(self.progress_file).parent / "logs" / f"rank_{rank}.log"
        lines = [line for line in tail_lines(log) if not line.startswith("==== rank ")] if log.is_file() else []
        if lines:
            shown = "".join(f"{line}\n" for line in lines)
            why = f"launch: rank {rank} was ended by {_signal_name(code - 128)}\n"
            write(f"launch: rank {rank} was killed; end of {log}:\n{shown}{why}", stderr=True)

    def _run_rank(self) -> tuple["RankProcess", int]:
        """Run the rank until it ends with another code than 77, and return its last process and the code.

        All ranks return 77 after the same iteration, so all tasks start their ranks again.
        """
        grace_s = self.signal_delay_s - _REQUEUE_MARGIN_S
        process = RankProcess(self.command, grace_s, self._record_if_behind)
        code = process.wait()
        rollback = 0
        while code == ROLLBACK_EXIT_CODE and not process.stop_requested:
            rollback += 1
            os.environ["MASTER_PORT"] = str(rendezvous_port(current_job_id(), restart_count(), rollback))
            process = RankProcess(self.command, grace_s, self._record_if_behind)
            code = process.wait()
        return process, code

    def _record_if_behind(self, pid: int, since: float) -> None:
        """Record the stack of the rank once others say that it is behind, unless one on this machine does so.

        Args:
            pid: Process id of the rank.
            since: Seconds since the epoch; earlier hangs are left out.
        """
        folder, host = Path(self.progress_file).parent / "hang", socket.gethostname()
        while not (found := _hangs_of(folder, node_name(), since)):
            time.sleep(1)
        if not any(record["host"] == host for record in found):
            _leave(append_stack, folder, int(os.environ["RANK"]), pid, what="the stack")


def _hangs_of(folder: Path, node: str, since: float) -> list[dict[str, Any]]:
    """Return the records of the ranks that have noticed a hang in which a rank of `node` is behind (RUN/hang)."""
    found = []
    for path in folder.glob("rank_*.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(read_json(path))
    found = [record for record in found if record["time"] >= since and "behind" in record]
    return found if any(node in record["behind"] for record in found) else []


def _end_of_stop(mark: Callable[..., None], unmarked_code: int) -> int:
    """Write a marker file of a stop and return the task's exit code: 0, or what says the same without the file.

    That comes from rank 0 alone, after the other tasks have ended: srun would end them, and its exit code be theirs.

    Args:
        mark: A method of `JobMarkers`.
        unmarked_code: Exit code of rank 0 if the file cannot be written.
    """
    if _leave(mark) or os.environ["RANK"] != "0":
        return 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(OTHERS_END_S)
    return unmarked_code


def _leave(mark: Callable[..., None], *values: object, what: str = "the end") -> bool:
    """Write a marker file, or another record of this rank, and return whether it was written; if not, print why."""
    try:
        mark(*values)
    except OSError as error:
        write(f"launch: {what} of this rank cannot be recorded: {error}\n", stderr=True)
        return False
    return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


class RankProcess:
    """The process of a rank. Slurm signals only the task, so the task forwards SIGTERM and SIGUSR2 to the rank.

    Attributes:
        stop_requested: A SIGTERM or SIGUSR2 has arrived.
        sigterm_received: A SIGTERM has arrived: preemption, cancellation, or another rank's failure.
        killed_late: The rank did not stop within the grace period after SIGUSR2 and was killed.
    """

    def __init__(
        self, command: list[str], grace_s: float, on_sigterm: Callable[[int, float], None] | None = None
    ) -> None:
        """Start the rank.

        Args:
            command: Its command line.
            grace_s: Seconds that it may take to stop after SIGUSR2.
            on_sigterm: Called in a thread after the first SIGTERM, with its process id and the time of its start.
        """
        self.stop_requested = False
        self.sigterm_received = False
        self.killed_late = False
        self._grace_s, self._on_sigterm, self._started = max(grace_s, 1), on_sigterm, time.time()
        self._pending: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        for handled in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(handled, self._forward)
        self._process = subprocess.Popen(command, start_new_session=True)
        for early in self._pending:
            self._forward(early, None)

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        if signum == signal.SIGTERM:
            self.sigterm_received = True
        if self._process is None:
            self._pending.append(signum)
            return
        self._process.send_signal(signum)
        if signum == signal.SIGTERM and self._on_sigterm:
            values = (self._process.pid, self._started)
            threading.Thread(target=self._on_sigterm, args=values, daemon=True).start()
            self._on_sigterm = None
        if signum == signal.SIGUSR2:  # the time limit is near, and Slurm does not requeue a job that reaches it
            timer = threading.Timer(self._grace_s, self._kill)
            timer.daemon = True
            timer.start()

    def _kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            write(f"launch: not stopped {self._grace_s:.0f} s after SIGUSR2: killing the rank and requeueing\n")
            self.killed_late = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def stopped_before_start(self, code: int) -> bool:
        """Return whether the stop request ended the rank before launch.rank handled signals; nothing is lost then."""
        return self.stop_requested and code in (128 + signal.SIGTERM, 128 + signal.SIGUSR2)

    def wait(self) -> int:
        """Wait for the rank and return its exit code as a shell does: 128 + signal number if a signal ended it."""
        assert self._process is not None
        code = self._process.wait()
        if code < 0:
            write(f"launch: the rank was ended by {_signal_name(-code)}\n", stderr=True)
        return code if code >= 0 else 128 - code


def read_task(file: Path, index: int) -> RankTask:
    """Return one task from a file of tasks.

    Args:
        file: JSON, written at submission.
        index: Number of the task in its array.
    """
    values = read_json(file)[index]
    array_task = values.pop("array_task")
    args = tuple(values.pop("args"))
    return RankTask(args=args, array_task=tuple(array_task) if array_task else None, **values)


def main() -> None:
    """Run the task of this process."""
    read_task(Path(sys.argv[1]), int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")))()


if __name__ == "__main__":
    main()
