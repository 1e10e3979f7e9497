"""Running the ranks in a container: through pyxis' srun options, or through `apptainer exec` as the Python to run."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from launch.job import Job

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_IMAGE_FILES = (".sif", ".sqsh", ".img")


def places(job: Job) -> list[Path]:
    """Absolute folders that the ranks of `job` use, and where they really are: a link to elsewhere ends in the
    container.
    """
    named = [Path.cwd(), job.run_dir.absolute(), *(Path(folder).absolute() for folder in job.folders)]
    return list(dict.fromkeys(place for folder in named for place in (folder, folder.resolve())))


def mounts(job: Job, folders: Iterable[Path]) -> list[str]:
    """`folders` and cluster.mounts, as "host:container[:flags]"; nothing twice, nor what lies in another folder."""
    own: list[Path] = []
    for folder in sorted(folders, key=lambda path: (len(path.parts), path)):
        if not any(folder.is_relative_to(have) for have in own):
            own.append(folder)
    return [*(f"{folder}:{folder}" for folder in own), *job.cluster.mounts]


def is_file(image: str) -> bool:
    """A local image file or folder, rather than an image of a registry."""
    return image.startswith(("/", "./", "../")) or image.endswith(_IMAGE_FILES) or Path(image).exists()


def image_words(image: str, runtime: str) -> str:
    """The image as the runtime wants it: one spelling of run.env.container serves pyxis and apptainer.

    apptainer takes a name without a scheme for a file. pyxis takes a name without # for one of Docker Hub, also when it
    begins with another registry ("nvcr.io/nvidia/nemo:25.11" ends in 401 Unauthorized there), and a file only when it
    begins with a slash or a dot.
    """
    if is_file(image):
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


def srun_words(job: Job, binds: list[str]) -> list[str]:
    """Words for srun: none without pyxis.

    The image's own environment wins over the job's in pyxis, unless a variable is named in --container-env.
    """
    if job.cluster.container_runtime != "pyxis":
        return []
    words = [
        f"--container-image={image_words(str(job.container), 'pyxis')}",
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
    image = image_words(str(job.container), "apptainer")
    return ["apptainer", "exec", *gpu, *bind_words, "--pwd", os.fspath(Path.cwd()), image, inside]
