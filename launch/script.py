"""ClusterConfig to the parameters of submitit's SlurmExecutor, from which the job script is made.

submitit quotes every value of an #SBATCH line and every word of srun; what is added here as shell lines is quoted here.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from launch import container
from launch.job import Job
from launch.names import safe_name

# $state names files that the tasks may leave: see launch.task. SLURM_JOB_ID will not do, because for one task of an
# array it is the id of the whole array.
_BEFORE = """\
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
state={folder}/$job
rm -f -- "$state.exit" "$state.again" "$state.stopped"
export SUBMITIT_LOG_LEVEL=WARNING"""

# Requeue only a job that is still RUNNING: one that was cancelled must stay so.
_AFTER = """\
code=$?
if [ "$code" = 0 ] && [ -e "$state.again" ]; then
  code=75
  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_requeues} ]; then
    echo "launch: stopped after cluster.max_requeues={max_requeues} requeues; the same command goes on from here" >&2
  elif scontrol show job -o "$job" | grep -q ' JobState=RUNNING ' && scontrol requeue "$job"; then
    sleep 120
  fi
elif [ "$code" = 0 ] && [ -e "$state.stopped" ]; then
  code=75
  echo "launch: the run stopped by itself before its end, with its state saved; the same command goes on from here" >&2
elif [ -e "$state.exit" ]; then
  read -r code _ <"$state.exit"
fi
exit "$code"
"""

# submitit writes the smaller of this and the number of tasks; without it, 256.
_UNLIMITED = sys.maxsize


def parameters(job: Job, name: str, folder: Path, binds: list[str]) -> dict[str, Any]:
    """Keyword arguments for SlurmExecutor.update_parameters. `folder` is where job files and logs go."""
    cluster = job.cluster
    given = {
        "job_name": safe_name(name),
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
        "dependency": _dependency(job) if job.after else None,
    }
    return {
        **{key: value for key, value in given.items() if value is not None},
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": _sbatch_words(job),
        "srun_args": _srun_words(job, binds),
        "setup": [
            _BEFORE.format(folder=shlex.quote(str(folder))),
            *container.export_lines(job),
            *cluster.setup,
            "set +eu",
        ],
        "teardown": [_AFTER.format(max_requeues=cluster.max_requeues)],
    }


def _dependency(job: Job) -> str:
    return "afterok:" + ":".join(job.after)


def _sbatch_words(job: Job) -> dict[str, Any]:
    words: dict[str, Any] = {"requeue": True}
    if job.after:
        words["kill-on-invalid-dep"] = "yes"
    for word in job.cluster.sbatch_args:
        key, has_value, value = word.removeprefix("--").partition("=")
        if key == "dependency" and job.after:  # it would replace the job's own
            value = f"{_dependency(job)},{value}"
        words[key] = value if has_value else True
    return words


def _srun_words(job: Job, binds: list[str]) -> list[str]:
    cluster = job.cluster
    words = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if cluster.cpus_per_task:  # srun does not take it over from sbatch since Slurm 22.05
        words.append(f"--cpus-per-task={cluster.cpus_per_task}")
    if cluster.mpi:
        words.append(f"--mpi={cluster.mpi}")
    return [*words, *container.srun_words(job, binds), *cluster.srun_args]


def python_command(job: Job, boot: Path, binds: list[str], this_python: str) -> str:
    """Shell words that run launch.bootstrap of the snapshot in every rank."""
    return shlex.join([*container.python_words(job, binds, this_python), str(boot)])
