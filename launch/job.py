"""What is to be run, and where its files are. Plain values: nothing here knows Hydra, Slurm or training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nano3.config loads OmegaConf, which a rank may do without
    from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import RESTART_EXIT_CODE

# Exit code of an entry that saved its state and wants to be started again (EX_TEMPFAIL of sysexits.h).
AGAIN = RESTART_EXIT_CODE


@dataclass(frozen=True)
class Job:
    """One run. `entry` is "module:function"; every rank calls it with `args` and exits with the code it returns (None
    is 0).

    Under Slurm an entry that returns 75 is requeued. SIGTERM and SIGUSR2 ask an entry to save and return 75; each may
    arrive more than once. An entry that installs no handler for them is ended with 75 at once. An entry that returns 75
    without having been asked to has stopped where its user told it to: it is not requeued.
    """

    # Shown in the queue; need not be unique.
    name: str
    # Everything about the run is kept here; launch owns RUN_DIR/slurm, RUN_DIR/jobs.json and RUN_DIR/logs.
    run_dir: Path
    entry: str
    args: tuple[str, ...]
    cluster: ClusterConfig
    # Container image, used when cluster.container_runtime is not none.
    container: str | None = None
    # The key that sets it, for messages.
    container_key: str = "run.env.container"
    # Folders that the ranks read or write besides run_dir: mounted into the container.
    folders: tuple[str, ...] = ()
    # Shown by a dry run: resolved config and preflight.
    preview: str = ""
    # Names a point of a sweep.
    label: str = ""
    # Ids of Slurm jobs that must succeed first.
    after: tuple[str, ...] = ()
    # File in the run folder that the entry writes at its very end: a sweep does not run such a point again, and an
    # entry that finds it shows the result and writes nothing.
    done_marker: str = "finished.json"
    # File in the run folder that the entry rewrites with each checkpoint: starts that leave it unchanged count as
    # crashes.
    progress_marker: str = "progress.json"
    # The done marker in the run folder, if any, does not count: it was left by something else than what this job is,
    # or the result that it tells of is gone.
    changed: bool = False
    # Writes what the entry reads into the run folder. Called under the folder's lock, once nothing speaks against
    # starting: a job that is refused must not change what the one in its way is going to read.
    freeze: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """The entry has said that there is nothing left to do."""
        return not self.changed and (self.run_dir / self.done_marker).exists()

    def prepare(self) -> None:
        """Make the run folder ready to be started from."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.freeze:
            self.freeze()

    @property
    def ranks(self) -> int:
        """World size."""
        if self.cluster.kind == "local":
            return self.cluster.nproc_per_node
        return self.cluster.nodes * self.cluster.ntasks_per_node
