"""What is to be run, and where its files are. Plain values: nothing here knows Hydra, Slurm or training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nano3.config loads OmegaConf, which a rank may do without
    from nano3.config.cluster import ClusterConfig
from nano3.errors import START_AGAIN

# Exit code of an entry that saved its state and wants to be started again (EX_TEMPFAIL of sysexits.h).
AGAIN = START_AGAIN


@dataclass(frozen=True)
class Job:
    """One run. `entry` is "module:function"; every rank calls it with `args` and exits with the code it returns (None
    is 0).

    Under Slurm an entry that returns 75 is requeued. SIGTERM and SIGUSR2 ask an entry to save and return 75; each may
    arrive more than once. An entry that installs no handler for them is ended with 75 at once.
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
    # Shown by a dry run: resolved config and preflight.
    preview: str = ""
    # Names a point of a sweep.
    label: str = ""
    # Ids of Slurm jobs that must succeed first.
    after: tuple[str, ...] = ()
    # File in the run folder that the entry writes at its very end: a sweep does not run such a point again.
    done_marker: str = "finished.json"
    # File in the run folder that the entry rewrites with each checkpoint: starts that leave it unchanged count as
    # crashes.
    progress_marker: str = "progress.json"

    @property
    def finished(self) -> bool:
        """The entry has said that there is nothing left to do."""
        return (self.run_dir / self.done_marker).exists()

    @property
    def ranks(self) -> int:
        """World size."""
        if self.cluster.kind == "local":
            return self.cluster.nproc_per_node
        return self.cluster.nodes * self.cluster.ntasks_per_node
