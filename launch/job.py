"""`Job`: what to run and where its files are. Plain values; nothing here knows Hydra, Slurm or training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nano3.config loads OmegaConf, which a rank does not need
    from nano3.config.cluster import ClusterConfig


@dataclass(frozen=True)
class Job:
    """One run: an entry that every rank calls with `args`, and the run folder.

    A rank exits with the code that the entry returns (0 for None). SIGTERM and SIGUSR2 ask the entry to save and return
    75; each may arrive more than once. An entry without handlers for them is ended with 75 at once. On Slurm, a job
    whose entry returns 75 after such a signal is requeued; a 75 without a signal means that the run reached a limit of
    its own, and the job is not requeued.
    """

    # Shown in the queue; need not be unique.
    name: str
    # Folder of all files of the run; launch owns RUN_DIR/slurm, RUN_DIR/jobs.json and RUN_DIR/logs.
    run_dir: Path
    # "package.module:function".
    entry: str
    args: tuple[str, ...]
    cluster: ClusterConfig
    # Container image, used unless cluster.container_runtime is none.
    container: str | None = None
    # The configuration key that sets the image, for messages.
    container_key: str = "run.env.container"
    # Folders besides run_dir that the ranks read or write: mounted into the container.
    folders: tuple[str, ...] = ()
    # Shown by a dry run: the resolved configuration.
    preview: str = ""
    # Name of a sweep point.
    label: str = ""
    # Ids of Slurm jobs that must succeed first.
    after: tuple[str, ...] = ()
    # The iteration at which it ends, for the table of a sweep.
    iterations: int | None = None
    # File in the run folder that the entry writes at its very end. A sweep skips a point that has it, and an entry that
    # finds it shows the result and writes nothing.
    done_marker: str = "finished.json"
    # File in the run folder that the entry rewrites with each checkpoint. A start that leaves it unchanged counts as a
    # crash.
    progress_marker: str = "progress.json"
    # A rank that fails restarts the Slurm job, until cluster.max_crashes starts in a row have left the progress marker
    # unchanged. An error of the user (exit code 2) does not.
    restart_after_crash: bool = False
    # The entry may return 77 on every rank: the ranks are then started again at once, where they are.
    may_roll_back: bool = False
    # Ignore the done marker: it belongs to a run with other settings, or its result is gone.
    changed: bool = False
    # Writes the entry's configuration into the run folder. Called under the run lock when nothing prevents the start: a
    # refused job must not change what the active job reads at its next restart. Points of a sweep are saved in threads.
    save_config: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether the entry has recorded that nothing is left to do."""
        return not self.changed and (self.run_dir / self.done_marker).exists()

    def prepare(self) -> None:
        """Create the run folder and save the configuration."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.save_config:
            self.save_config()

    @property
    def in_process(self) -> bool:
        """Whether a local job runs in the process of the command: one rank that needs no second start."""
        return self.ranks == 1 and not self.may_roll_back

    @property
    def ranks(self) -> int:
        """World size."""
        if self.cluster.kind == "local":
            return self.cluster.nproc_per_node
        return self.cluster.nodes * self.cluster.ntasks_per_node
