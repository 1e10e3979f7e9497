"""Check jobs before anything starts, and report all problems at once."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from launch import container, dependency, slurm
from launch.job import Job
from launch.script import PLAIN_OPTIONS
from nano3.config.cluster import ClusterConfig
from nano3.utils.command_line import OverrideWord
from nano3.utils.errors import UserError, did_you_mean

_KINDS = ("local", "slurm")
_MODES = ("attached", "detached")
_RUNTIMES = ("auto", "none", "pyxis", "apptainer")
# Options set by launch: logs, exit codes and signals depend on their values.
_RESERVED_OPTIONS = {
    "array", "chdir", "error", "job-name", "no-requeue", "ntasks-per-node", "nodes", "open-mode", "output", "parsable",
    "requeue", "signal", "test-only", "time", "wait", "wrap",
}  # fmt: skip
# Keys without effect on this machine.
_RANK_COUNTS = ("nodes", "ntasks_per_node", "gpus_per_node")
_SLURM_ONLY = (
    *_RANK_COUNTS, *PLAIN_OPTIONS, "dependency", "teardown",
    "mode", "account", "partition", "qos", "cpus_per_task", "mem", "time", "array_parallelism",
    "mpi", "sbatch_args", "srun_args", "python", "mounts", "signal_delay_s", "max_requeues", "max_crashes", "poll_s",
)  # fmt: skip
_DEFAULTS = ClusterConfig()
_PLAIN = "python -m nano3.NAME ... without torchrun."
_SLURM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,@:+/-]*")


def check_jobs(jobs: list[Job]) -> None:
    """Raise one `UserError` with all problems of all jobs."""
    if found := find_problems(jobs):
        raise UserError(found)


def find_problems(jobs: list[Job]) -> list[str]:
    """Return all problems of all jobs; Slurm is asked only if nothing else is wrong.

    Raises:
        Failure: Slurm does not answer.
    """
    found: dict[str, None] = {}  # an ordered set: points of a sweep share most problems
    for job in jobs:
        found.update(dict.fromkeys(_job_problems(job)))
    if not found:
        found.update(dict.fromkeys(_machine_problems(jobs)))
    return list(found)


def check_not_torchrun(what: str) -> None:
    """Raise UserError if torchrun has started this command as one of several processes.

    Args:
        what: What each of them would do, for the message.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and "RANK" in os.environ:
        raise UserError(
            f"torchrun has started this command {world} times, and each would {what}. Start it once: {_PLAIN}"
        )


def cluster_problems(cluster: ClusterConfig) -> list[str]:
    """Return the problems of the cluster configuration itself, independent of any job."""
    found = [
        *_choice_problems("cluster.kind", cluster.kind, _KINDS),
        *_choice_problems("cluster.mode", cluster.mode, _MODES),
        *_choice_problems("cluster.container_runtime", cluster.container_runtime, _RUNTIMES),
        *_number_problems(cluster),
    ]
    for key in cluster.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            found.append(f"cluster.env: {key!r} is not a variable name (letters, digits and underscore).")
    if cluster.kind == "local":
        found += _local_problems(cluster) if not found else []
    return found


def unused_key_problems(cluster: ClusterConfig, words: Iterable[str], *, preparation: bool) -> list[str]:
    """Return the keys of the command line that a job on Slurm does not use. A profile may have them for other jobs.

    Args:
        cluster: Where the job runs.
        words: The overrides of the command line.
        preparation: Whether it is a data preparation, not a training.
    """
    typed = {OverrideWord.parse(word).key for word in words}
    found = []
    if preparation:
        fixed = {"nodes": 1, "ntasks_per_node": 1, "gpus_per_node": 0}
        unused = [
            f"cluster.{key}={value}"
            for key, own in fixed.items()
            if f"cluster.{key}" in typed and (value := getattr(cluster, key)) != own
        ]
        if unused:
            found.append(
                f"{' '.join(unused)}: has no effect on a preparation, whose tasks are one process each, on one node "
                "without GPUs. Set cluster.tasks. For a run after --then, write it behind --then."
            )
    elif "cluster.tasks" in typed and cluster.tasks > 1:
        found.append(f"cluster.tasks={cluster.tasks} is for data preparations; leave it out.")
    if "cluster.mail_user" in typed and cluster.mail_user and not cluster.mail_type:
        found.append(
            f"cluster.mail_user={cluster.mail_user} needs cluster.mail_type, for example cluster.mail_type=END."
        )
    return found


def _job_problems(job: Job) -> Iterator[str]:
    yield from cluster_problems(job.cluster)
    if ":" not in job.entry:
        yield f"{job.entry!r} does not name a function. Write it as package.module:function."
    if job.cluster.kind == "slurm":
        yield from _slurm_problems(job)


def _choice_problems(key: str, value: str, allowed: tuple[str, ...]) -> Iterator[str]:
    if value not in allowed:
        yield f"{key}={value} is not known.{did_you_mean(value, allowed)}"


def _number_problems(cluster: ClusterConfig) -> Iterator[str]:
    minimums = {
        "nproc_per_node": 1, "nodes": 1, "ntasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 1,
        "signal_delay_s": 30, "max_requeues": 0, "max_crashes": 1, "array_parallelism": 1, "tasks": 1,
    }  # fmt: skip
    for key, minimum in minimums.items():
        value = getattr(cluster, key)
        if value is not None and value < minimum:
            yield f"cluster.{key}={value} is too small. The minimum is {minimum}."
    if cluster.poll_s <= 0:
        yield f"cluster.poll_s={cluster.poll_s} must be greater than 0."


def _local_problems(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.container_runtime not in ("none", "auto"):
        yield "cluster.container_runtime works with cluster.kind=slurm only. Run nano3 inside the container instead."
    if cluster.setup:
        yield "cluster.setup is for Slurm jobs only. Run these lines in this shell before nano3 instead."
    for key in _SLURM_ONLY:
        value, default = getattr(cluster, key), getattr(_DEFAULTS, key)
        if value != default:
            instead = (
                "; on this machine, cluster.nproc_per_node sets the number of ranks" if key in _RANK_COUNTS else ""
            )
            yield f"cluster.{key}={value} is for Slurm jobs: add cluster=slurm, or leave it out{instead}."


def _slurm_problems(job: Job) -> Iterator[str]:
    cluster = job.cluster
    if cluster.nproc_per_node != _DEFAULTS.nproc_per_node:
        yield (
            f"cluster.nproc_per_node={cluster.nproc_per_node} sets the ranks on this machine. On Slurm set "
            "cluster.ntasks_per_node, and cluster.nodes."
        )
    for key in ("account", "partition", "qos"):
        value = getattr(cluster, key)
        if value is not None and not _SLURM_NAME.fullmatch(value):
            yield f"cluster.{key}={value!r} is not a valid Slurm name."
    for key in (*PLAIN_OPTIONS, "dependency"):
        value, option = getattr(cluster, key), f"--{key.replace('_', '-')}"
        if value is not None and not (value and value.isprintable()):
            yield f"cluster.{key}={value!r} is empty or has control characters."
        if value and any(word.partition("=")[0] == option for word in cluster.sbatch_args):
            yield f"cluster.{key} and {option} in cluster.sbatch_args are the same option. Leave one of them out."
    if cluster.mem is not None and not re.fullmatch(r"\d+[KMGT]?", cluster.mem):
        yield f"cluster.mem={cluster.mem!r} is not a size. Write it as 64G, 512000M or 0 (all of the node)."
    try:
        limit = slurm.parse_time_limit(cluster.time)
    except ValueError:
        yield f"cluster.time={cluster.time!r} is not a time limit. Write it as HH:MM:SS, D-HH:MM:SS or minutes."
    else:
        if limit is not None and limit <= cluster.signal_delay_s:
            yield (
                f"cluster.time={cluster.time} leaves no time to work: the run is asked to stop "
                f"cluster.signal_delay_s={cluster.signal_delay_s} seconds earlier. Raise cluster.time or lower "
                "cluster.signal_delay_s."
            )
    if re.search(r"[%\\\x00-\x1f]", str(job.run_dir.absolute())):
        yield f"{str(job.run_dir)!r}: Slurm cannot use %, \\ or control characters in file names. Rename the folder."
    yield from _argument_problems("cluster.sbatch_args", cluster.sbatch_args)
    yield from _argument_problems("cluster.srun_args", cluster.srun_args)
    yield from _container_problems(job)


def _argument_problems(key: str, words: list[str]) -> Iterator[str]:
    for word in words:
        match = re.fullmatch(r"--([a-z][a-z0-9-]*)(=[^\n\r\0]*)?", word)
        if not match:
            yield f"{key}: {word!r} is not a long option in one word, such as --constraint=h100."
        elif re.fullmatch(r"=(['\"]).*\1", match[2] or ""):
            yield f"{key}: {word}: there is no shell that removes these quotes. Write --{match[1]}={match[2][2:-1]}."
        elif match[1] in _RESERVED_OPTIONS:
            yield f"{key}: --{match[1]} is set by launch from the other cluster keys; leave it out."


def _container_problems(job: Job) -> Iterator[str]:
    cluster = job.cluster
    if cluster.container_runtime not in ("pyxis", "apptainer"):
        return
    if not job.container:
        yield f"cluster.container_runtime={cluster.container_runtime} needs an image: set {job.container_key}."
    elif container.is_image_file(job.container) and not Path(job.container).exists():
        yield f"{job.container_key}={job.container}: no such file."
    for mount in cluster.mounts:
        host, _, inside = mount.partition(":")
        if not inside.startswith("/") or "," in mount or "\n" in mount:
            yield f"cluster.mounts: {mount!r} must be host:container[:flags] with absolute paths and without a comma."
        elif not Path(host).exists():
            yield f"cluster.mounts: {host} does not exist here."
    for folder in map(str, container.mounted_folders(job)):
        if "," in folder or ":" in folder:
            yield f"{folder} cannot be mounted into a container: its name has a comma or a colon."


def _machine_problems(jobs: list[Job]) -> Iterator[str]:
    clusters = [job.cluster for job in jobs if job.cluster.kind == "slurm"]
    if not clusters:
        return
    if not shutil.which("sbatch") or not shutil.which("srun"):
        yield (
            "This machine has no sbatch and srun, so it cannot submit jobs. Use cluster=local, or log in to a submit "
            "host."
        )
        return
    partitions = slurm.partitions()
    for name in {part for cluster in clusters if cluster.partition for part in cluster.partition.split(",")}:
        if name not in partitions:
            yield f"cluster.partition={name}: Slurm has no such partition.{did_you_mean(name, partitions)}"
    for expression, parent in {(job.cluster.dependency, job.run_dir.parent) for job in jobs if job.cluster.dependency}:
        try:
            dependency.resolve(expression, parent / "run")
        except UserError as error:
            yield from error.problems
