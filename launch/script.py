"""The parameters of submitit's SlurmExecutor, from which submitit generates the job script.

submitit quotes every value of an #SBATCH line and every word of srun; shell lines added here are quoted here.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from launch import container, dependency, job_end
from launch.job import Job
from launch.names import slurm_job_name

# Keys of the cluster that are options of sbatch by the same name.
PLAIN_OPTIONS = ("comment", "reservation", "exclude", "begin", "mail_type", "mail_user")
# submitit writes the smaller of this and the number of tasks; its default is 256.
_UNLIMITED = sys.maxsize


def executor_parameters(job: Job, name: str, folder: Path, binds: list[str]) -> dict[str, Any]:
    """Return the keyword arguments for SlurmExecutor.update_parameters.

    Args:
        job: One of the jobs of the script; all have equal resources.
        name: Job name.
        folder: The job's slurm folder, for job files and logs.
        binds: Container mounts as "host:container[:flags]".
    """
    cluster = job.cluster
    values = {
        "job_name": slurm_job_name(name),
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.ntasks_per_node,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": cluster.mem,
        "time": cluster.time,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.array_parallelism or _UNLIMITED,
        "dependency": _dependency(job) or None,
    }
    return {
        **{key: value for key, value in values.items() if value is not None},
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": _sbatch_arguments(job),
        "srun_args": _srun_arguments(job, binds),
        "setup": [
            job_end.marker_setup_script(folder),
            *container.export_lines(job),
            *_checked_lines(cluster.setup),
        ],
        "teardown": [
            "code=$?",
            *_teardown_lines(cluster.teardown),
            job_end.requeue_script(cluster.max_requeues, cluster.max_crashes),
        ],
    }


def _checked_lines(setup: list[str]) -> list[str]:
    """Return the lines of cluster.setup so that the first one that fails ends the job, with its own exit code."""
    if not setup:
        return []
    fail = 'code=$?; echo "launch: cluster.setup failed with exit code $code: $BASH_COMMAND" >&2; exit "$code"'
    return [f"trap {shlex.quote(fail)} ERR", *setup, "trap - ERR", "set +eu"]


def _teardown_lines(teardown: list[str]) -> list[str]:
    """Return the lines of cluster.teardown in a shell of their own, so that they cannot change the end of the job."""
    if not teardown:
        return []
    failed = 'echo "launch: cluster.teardown failed with exit code $?; the job ends as it would without it" >&2'
    return ["(", *teardown, f") || {failed}"]


def _dependency(job: Job) -> str:
    """Return what the job waits for, "" if nothing."""
    own = job.cluster.dependency
    words = ["afterok:" + ":".join(job.after) if job.after else "", own and dependency.resolve(own, job.run_dir)]
    return ",".join(filter(None, words))


def _sbatch_arguments(job: Job) -> dict[str, Any]:
    words: dict[str, Any] = {"requeue": True}
    if job.after or job.cluster.dependency:
        words["kill-on-invalid-dep"] = "yes"
    for key in PLAIN_OPTIONS:
        if value := getattr(job.cluster, key):
            words[key.replace("_", "-")] = value
    for word in job.cluster.sbatch_args:
        key, has_value, value = word.removeprefix("--").partition("=")
        if key == "dependency" and job.after:  # or it would replace the job's own dependency
            value = f"{_dependency(job)},{value}"
        words[key] = value if has_value else True
    return words


def _srun_arguments(job: Job, binds: list[str]) -> list[str]:
    cluster = job.cluster
    # Rank 0 may end minutes after the others (report, last export), whatever slurm.conf's WaitTime.
    words = ["--kill-on-bad-exit=1", "--wait=0", "--open-mode=append"]
    if cluster.cpus_per_task:  # since Slurm 22.05 srun no longer inherits it from sbatch
        words.append(f"--cpus-per-task={cluster.cpus_per_task}")
    if cluster.mpi:
        words.append(f"--mpi={cluster.mpi}")
    return [*words, *container.srun_arguments(job, binds), *cluster.srun_args]


def python_command(job: Job, boot: Path, binds: list[str], this_python: str) -> str:
    """Return the shell command that runs the snapshot's launch.bootstrap in every rank.

    Args:
        job: The job.
        boot: The snapshot's copy of launch.bootstrap.
        binds: Container mounts as "host:container[:flags]".
        this_python: The Python of this process, used without a container unless the cluster names another.
    """
    return shlex.join([*container.python_arguments(job, binds, this_python), str(boot)])
