"""launch: run a job here, under torchrun, or on Slurm; single runs, sweeps and arrays take the same road.

    launch.run([Job(...)], dry_run=False, sweep=False)        # -> exit code
    launch.run_array(name, folder, entry=..., tasks=8, ...)     # the same entry over a job array, then a finalizer

Importing this package is light, because every rank does: what submits is imported when something is submitted.
"""

from typing import TYPE_CHECKING, Any

from launch.job import AGAIN, Job

if TYPE_CHECKING:
    from launch.api import run
    from launch.array import run_array

__all__ = ["AGAIN", "Job", "run", "run_array"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from launch.api import run

        return run
    if name == "run_array":
        from launch.array import run_array

        return run_array
    raise AttributeError(f"module 'launch' has no attribute {name!r}")
