"""Running the ranks in a container: through pyxis' srun options, or through `apptainer exec` as the Python to run."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from launch.job import Job


def mounts(job: Job, folders: Iterable[Path]) -> list[str]:
    """The working folder, launch's own `folders` and cluster.mounts, as "host:container[:flags]"; nothing twice."""
    own: list[str] = []
    for folder in sorted({Path.cwd(), *folders}, key=lambda path: len(path.parts)):
        if not any(folder.is_relative_to(have) for have in own):
            own.append(str(folder))
    return [*(f"{folder}:{folder}" for folder in own), *job.cluster.mounts]


def srun_words(job: Job, binds: list[str]) -> list[str]:
    """Words for srun: none without pyxis.

    The image's own environment wins over the job's in pyxis, unless a variable is named in --container-env.
    """
    if job.cluster.container_runtime != "pyxis":
        return []
    words = [
        f"--container-image={job.container}",
        f"--container-mounts={','.join(binds)}",
        f"--container-workdir={Path.cwd()}",
    ]
    if job.cluster.env:
        words.append(f"--container-env={','.join(job.cluster.env)}")
    return words


def export_lines(job: Job) -> list[str]:
    """Shell lines that give every rank the variables of cluster.env."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in job.cluster.env.items()]
    if job.cluster.container_runtime == "apptainer":  # the same rule as in pyxis: only these win over the image's own
        lines += [f"export APPTAINERENV_{key}={shlex.quote(value)}" for key, value in job.cluster.env.items()]
    return lines


def python_words(job: Job, binds: list[str], this_python: str) -> list[str]:
    """The command that runs Python in every rank."""
    cluster = job.cluster
    if cluster.container_runtime == "none":
        return [cluster.python or this_python]
    inside = cluster.python or "python"
    if cluster.container_runtime == "pyxis":
        return [inside]
    gpu = ["--nv"] if cluster.gpus_per_node else []
    bind_words = [word for bind in binds for word in ("--bind", bind)]
    return ["apptainer", "exec", *gpu, *bind_words, "--pwd", os.fspath(Path.cwd()), str(job.container), inside]
