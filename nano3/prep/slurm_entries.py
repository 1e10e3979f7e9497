"""Functions that the Slurm jobs of a preparation call (see `nano3.prep.validate.make_array`)."""

from pathlib import Path

from nano3.data.build.run import finalize, run_task
from nano3.prep.registration import Registration, register


def run_array_task(plan: str, output_dir: str, registration: str, index: int, count: int) -> int:
    """Run one task of the job array.

    Args:
        plan: Path of the plan.
        output_dir: Absolute path of the output folder; unused, as the plan names it.
        registration: Result of `Registration.to_text`; unused.
        index: Number of the task, from 0.
        count: Number of tasks.

    Returns:
        Exit code 0.
    """
    run_task(Path(plan), index, count)
    return 0


def run_finalizer(plan: str, output_dir: str, registration: str) -> int:
    """Merge, publish, and register the data after all tasks of the array.

    Args:
        plan: Path of the plan.
        output_dir: Absolute path of the output folder.
        registration: Result of `Registration.to_text`.

    Returns:
        Exit code 0.
    """
    register(Registration.from_text(registration), Path(output_dir), finalize(Path(plan)))
    return 0
