"""How the tasks of a Slurm job report their end to its job script, and where the script requeues the job.

srun ends all other tasks when one exits with anything but 0, and these may still be saving their part of a checkpoint.
A task that saved therefore exits with 0 and leaves a marker file. After srun, the job script reads the markers and
requeues the job (`requeue_script`) or exits with the job's code.

All files are in RUN_DIR/slurm (or SWEEP_DIR/slurm). ID is the job's id: "123", or "123_4" for task 4 of an array.

ID.exit         "CODE RANK NODE NEXT" of the first rank that failed. Written by that rank's task (`record_failure`).
                NEXT is one of `AfterFailure`: the job script requeues the job or exits with CODE; launch.follow reports
                the rank (`first_failure`). NODE is "-" if no single node is to blame, as after some hangs.
ID.failed       NODE of each failed start of the job, one a line. Written by the job script. A node that failed twice is
                excluded from the next start if the job can run without it.
ID.again        The run saved its state. Written by tasks that were asked to stop (`request_requeue`). The job script
                requeues the job; if that is not possible, it exits with 75.
ID.stopped      The run saved its state and stopped at a limit of its own. Written by a task whose rank returned 75
                without a stop request (`mark_stopped`). The job script exits with 75 and does not requeue.
ID.done         This task of an array succeeded. Written by the task, or by the finalizer after repeating the task
                (`mark_done`). The finalizer reads it (launch.array).
ID.starts.json  Contents of the progress file at each start of the job, oldest first. Written and read by the task of
                rank 0 at each start (`check_crash_loop`).

The job script removes ID.exit, ID.again and ID.stopped before each start, ID.failed and ID.starts.json before the first
one. If srun failed, ID.exit decides and the other markers are ignored; if srun succeeded, ID.again comes before
ID.stopped. If no task can write ID.again or ID.stopped (full disk), rank 0 exits with 77 or 75 in its stead, and the
job script does the same as with the file.
"""

import contextlib
import enum
import itertools
import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from nano3.utils.errors import RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE, Failure
from nano3.utils.files import read_json, write_json

# Exit codes of a task that could not write ID.again and ID.stopped.
UNMARKED_REQUEUE_CODE, UNMARKED_STOP_CODE = ROLLBACK_EXIT_CODE, RESTART_EXIT_CODE

# SLURM_JOB_ID does not name the files: for one task of an array it is the id of the whole array.
_SETUP = """\
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
state={folder}/$job
rm -f -- "$state.exit" "$state.again" "$state.stopped"
[ "${{SLURM_RESTART_COUNT:-0}}" != 0 ] || rm -f -- "$state.failed" "$state.starts.json"
export SUBMITIT_LOG_LEVEL=WARNING"""

# Requeue only a job that is still RUNNING: a canceled job must stay canceled. Slurm accepts other excluded nodes only
# while the job is pending, so a process that survives the end of this script sets them then.
_REQUEUE = """\
requeue() {{
  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_requeues} ]; then
    echo "launch: stopped after cluster.max_requeues={max_requeues} requeues; run the same command to continue" >&2
  elif scontrol show job -o "$job" | grep -q ' JobState=RUNNING ' && scontrol requeue "$job"; then
    sleep 120
  fi
}}
exclude() {{
  nodes=$(scontrol show job -o "$job" | tr ' ' '\n' | sed -n 's/^ExcNodeList=//p' | grep -v '^(null)$' | head -n 1)
  nodes=${{nodes:+$nodes,}}$1
  if sbatch --test-only --dependency= --exclude="$nodes" "$0" >/dev/null 2>&1; then
    echo "launch: $1 failed twice; this job continues without it" >&2
    (
      trap '' TERM
      for _ in 1 2 3 4 5 6 7 8 9 10; do
        sleep 0.5
        ! scontrol update "jobid=$job" "excnodelist=$nodes" 2>/dev/null || break
      done
    ) &
  else
    echo "launch: $1 failed twice, but this job cannot run without it" >&2
  fi
}}
left=
if [ "$code" = 0 ]; then
  if [ -e "$state.again" ]; then left=again; elif [ -e "$state.stopped" ]; then left=stopped; fi
elif [ ! -e "$state.exit" ]; then
  case $code in {again_code}) left=again ;; {restart_code}) left=stopped ;; esac
fi
if [ "$left" = again ]; then
  code={restart_code}
  requeue
elif [ "$left" = stopped ]; then
  code={restart_code}
  echo "launch: the run stopped by itself before its end and saved its state; run the same command to continue" >&2
elif [ -e "$state.exit" ]; then
  read -r code rank node next <"$state.exit"
  echo "$node" >>"$state.failed"
  if [ "$next" = {restart} ]; then
    echo "launch: rank $rank on $node failed with exit code $code (${{state}}_${{rank}}_log.out); restarting" >&2
    if [ "$node" != - ] && [ "$(grep -cxF -- "$node" "$state.failed")" -ge 2 ]; then exclude "$node"; fi
    requeue
  elif [ "$next" = {give_up} ]; then
    echo "launch: not restarted: {max_crashes} starts in a row ended without a new checkpoint (cluster.max_crashes)" >&2
  fi
fi
exit "$code"
"""


class AfterFailure(enum.StrEnum):
    """What the job script does after a failure."""

    # The failure is final: a mistake of the user, or a job that is never restarted.
    END = "end"
    # Requeue the job.
    RESTART = "restart"
    # Too many starts in a row have made no progress.
    GIVE_UP = "give-up"


def marker_setup_script(folder: Path) -> str:
    """Return the shell lines at the start of a job script that name the marker files and remove old ones.

    Args:
        folder: The job's slurm folder.
    """
    return _SETUP.format(folder=shlex.quote(str(folder)))


def requeue_script(max_requeues: int, max_crashes: int) -> str:
    """Return the shell lines after srun that requeue the job or exit with $code, the exit code of srun.

    Args:
        max_requeues: Requeues allowed for one job (cluster.max_requeues).
        max_crashes: Starts in a row that may end without progress (cluster.max_crashes), for a message.
    """
    return _REQUEUE.format(
        max_requeues=max_requeues, max_crashes=max_crashes, restart_code=RESTART_EXIT_CODE,
        again_code=UNMARKED_REQUEUE_CODE,
        restart=AfterFailure.RESTART, give_up=AfterFailure.GIVE_UP,
    )  # fmt: skip


def current_job_id() -> str:
    """Return the id of the Slurm job of this process: "123", or "123_4" for task 4 of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def node_name() -> str:
    """Return the name of this node as Slurm knows it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def restart_count() -> int:
    """Return how often Slurm has requeued the job of this process."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


@dataclass(frozen=True)
class RankFailure:
    """The first rank of a job that failed by itself."""

    code: int
    rank: int
    # Its node, "-" if no single node is to blame.
    host: str


@dataclass(frozen=True)
class JobMarkers:
    """The marker files of one job; see the table of this module."""

    # The job's slurm folder.
    folder: Path
    job_id: str

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.job_id}.{suffix}"

    def request_requeue(self) -> None:
        """Ask the job script to requeue the job."""
        self._path("again").touch()

    def mark_stopped(self) -> None:
        """Record that the run saved its state and stopped by itself."""
        self._path("stopped").touch()

    @property
    def saved(self) -> bool:
        """Whether the run saved its state and stopped, by itself or because it was asked to."""
        return self._path("stopped").exists() or self._path("again").exists()

    def mark_done(self) -> None:
        """Record that this task of an array succeeded."""
        self._path("done").touch()

    @property
    def done(self) -> bool:
        """Whether this task of an array succeeded."""
        return self._path("done").exists()

    def record_failure(self, code: int, after: AfterFailure = AfterFailure.END, node: str | None = None) -> None:
        """Record the failure of this rank unless another rank failed first.

        Args:
            code: Exit code of the rank.
            after: What the job script does.
            node: The node to blame, "-" if there is no single one; None for this node.
        """
        first = self._path("exit")
        own = self._path(f"exit.{os.environ['RANK']}")
        own.write_text(f"{code} {os.environ['RANK']} {node or node_name()} {after}\n")
        with contextlib.suppress(FileExistsError):
            os.link(own, first)
        own.unlink()

    def first_failure(self) -> RankFailure | None:
        """Return the first rank that failed, or None if none was recorded."""
        try:
            code, rank, host, *_ = self._path("exit").read_text().split()  # without the fourth in older jobs
        except FileNotFoundError:
            return None
        return RankFailure(int(code), int(rank), host)

    def check_crash_loop(self, progress_file: Path, max_crashes: int) -> None:
        """Record this start and compare it with earlier starts of the same job.

        Progress is any change of the progress file. Starts count however they ended: a node that dies at every start, a
        time limit too short to save even once, a preemption at every start.

        Args:
            progress_file: File that the entry rewrites with each checkpoint.
            max_crashes: Starts in a row that may end without progress.

        Raises:
            Failure: The last `max_crashes` starts of this job made no progress.
        """
        starts_file = self._path("starts.json")
        # Slurm may reuse a job id, and the first start of a requeued job may have died before it wrote the file.
        starts: list[str] = _read_starts(starts_file) if restart_count() else []
        progress = _read_progress(progress_file)
        if _unchanged_starts(starts, progress) >= max_crashes:
            raise Failure(
                f"Gave up: the last {max_crashes} starts of this job made no progress ({progress_file} did not "
                "change). See the log above for the cause; raise cluster.max_crashes if the job is only preempted too "
                "early."
            )
        write_json(starts_file, [*starts, progress])

    def may_restart(self, progress_file: Path, max_crashes: int) -> bool:
        """Return whether the job may start once more after the present start: `check_crash_loop` would let it.

        Args:
            progress_file: File that the entry rewrites with each checkpoint.
            max_crashes: Starts in a row that may end without progress.
        """
        starts = _read_starts(self._path("starts.json"))
        return _unchanged_starts(starts, _read_progress(progress_file)) < max_crashes


def _unchanged_starts(starts: list[str], progress: str) -> int:
    """Return how many of the last starts in a row began with this progress."""
    return len(list(itertools.takewhile(progress.__eq__, reversed(starts))))


def _read_progress(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _read_starts(path: Path) -> list[str]:
    """Return the progress at earlier starts of a job; empty if the file is missing or damaged, so that it starts."""
    try:
        return [str(progress) for progress in read_json(path)]
    except (OSError, ValueError, TypeError):
        return []
