"""Run the ranks in a container: through the srun options of pyxis, or with `apptainer exec` as the Python command."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from launch.job import Job

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_IMAGE_FILES = (".sif", ".sqsh", ".img")


def mounted_folders(job: Job) -> list[Path]:
    """Return the absolute folders that the ranks of `job` use, with the targets of links.

    Without its target, a link would be broken in the container.
    """
    folders = [Path.cwd(), job.run_dir.absolute(), *(Path(folder).absolute() for folder in job.folders)]
    return list(dict.fromkeys(path for folder in folders for path in (folder, folder.resolve())))


def bind_mounts(job: Job, folders: Iterable[Path]) -> list[str]:
    """Return the mounts of a job as "host:container[:flags]".

    Args:
        job: Its cluster.mounts come last.
        folders: Folders to mount at the same path; a folder inside another one of them is left out.
    """
    outermost: list[Path] = []
    for folder in sorted(folders, key=lambda path: (len(path.parts), path)):
        if not any(folder.is_relative_to(other) for other in outermost):
            outermost.append(folder)
    return [*(f"{folder}:{folder}" for folder in outermost), *job.cluster.mounts]


def is_image_file(image: str) -> bool:
    """Return whether `image` is a local file or folder rather than an image in a registry."""
    return image.startswith(("/", "./", "../")) or image.endswith(_IMAGE_FILES) or Path(image).exists()


def image_argument(image: str, runtime: str) -> str:
    """Return the image in the spelling of the runtime, so that one run.env.container serves both runtimes.

    apptainer reads a name without a scheme as a file. pyxis reads a name without # as an image on Docker Hub even if it
    begins with another registry ("nvcr.io/nvidia/nemo:25.11" fails with 401 Unauthorized), and as a file only if it
    begins with a slash or a dot.

    Args:
        image: Image file, or image name with or without a scheme.
        runtime: "pyxis" or "apptainer".
    """
    if is_image_file(image):
        return str(Path(image).absolute()) if runtime == "pyxis" else image
    scheme = match[0] if (match := _SCHEME.match(image)) else ""
    name = image.removeprefix(scheme)
    if scheme not in ("", "docker://"):
        return image
    if runtime == "apptainer":
        return "docker://" + name.replace("#", "/", 1)
    first, slash, rest = name.partition("/")
    registry = slash and "#" not in name and ("." in first or ":" in first or first == "localhost")
    return f"{scheme}{first}#{rest}" if registry else image


def srun_arguments(job: Job, binds: list[str]) -> list[str]:
    """Return the container options of srun, [] without pyxis.

    In pyxis the image's environment overrides the job's, except for variables named in --container-env.
    """
    if job.cluster.container_runtime != "pyxis":
        return []
    words = [
        f"--container-image={image_argument(str(job.container), 'pyxis')}",
        f"--container-mounts={','.join(binds)}",
        f"--container-workdir={Path.cwd()}",
    ]
    if job.cluster.env:
        words.append(f"--container-env={','.join(job.cluster.env)}")
    return words


def export_lines(job: Job) -> list[str]:
    """Return the shell lines that export the variables of cluster.env to every rank."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in job.cluster.env.items()]
    if job.cluster.container_runtime == "apptainer":  # as in pyxis, only these override the image's
        lines += [f"export APPTAINERENV_{key}={shlex.quote(value)}" for key, value in job.cluster.env.items()]
    return lines


def python_arguments(job: Job, binds: list[str], this_python: str) -> list[str]:
    """Return the command that runs Python in every rank.

    Args:
        job: The job.
        binds: Mounts from `bind_mounts`.
        this_python: The Python of this process, used without a container unless the cluster names another.
    """
    cluster = job.cluster
    if cluster.container_runtime == "none":
        return [cluster.python or this_python]
    inside = cluster.python or "python"
    if cluster.container_runtime == "pyxis":
        return [inside]
    gpu = ["--nv"] if cluster.gpus_per_node else []
    bind_words = [word for bind in binds for word in ("--bind", bind)]
    image = image_argument(str(job.container), "apptainer")
    return ["apptainer", "exec", *gpu, *bind_words, "--pwd", os.fspath(Path.cwd()), image, inside]
