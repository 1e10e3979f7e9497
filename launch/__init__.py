"""launch: run a job in this process, under torchrun, or on Slurm; single runs, sweeps and arrays share one path.

    launch.run([Job(...)], dry_run=False, sweep=False)        # -> exit code
    launch.run_sweep([Job(...), Job(...)])                    # -> the exit code of each point
    launch.run_array(name, folder, entry=..., tasks=8, ...)   # one entry over a job array, then a finalizer

Importing this package is cheap, because every rank does it: submission code is imported at the first submission.
"""

from typing import TYPE_CHECKING, Any

from launch.job import Job
from nano3.utils.errors import RESTART_EXIT_CODE

if TYPE_CHECKING:
    from launch.api import run, run_sweep
    from launch.array import run_array

__all__ = ["RESTART_EXIT_CODE", "Job", "run", "run_array", "run_sweep"]


def __getattr__(name: str) -> Any:
    if name in ("run", "run_sweep"):
        from launch import api

        return getattr(api, name)
    if name == "run_array":
        from launch.array import run_array

        return run_array
    raise AttributeError(f"module 'launch' has no attribute {name!r}")
