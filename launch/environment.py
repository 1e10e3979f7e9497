"""What the ranks of a job run in: an image, a Python that the profile names, or the Python that submits.

Known at submission, so it is shown there, and a Python that this machine can run is checked there.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from nano3.config.cluster import ClusterConfig
from nano3.utils.provenance import missing_modules

# Prints the modules of its arguments that are missing, and whether the Python is too old.
_PROBE = """
import importlib.util, json, sys
missing = []
for name in sys.argv[1:]:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        missing.append(name)
if sys.version_info < (3, 12):
    missing.append("Python 3.12 or later (it is %d.%d)" % sys.version_info[:2])
print(json.dumps(missing))
"""
_PROBE_SECONDS = 30


@cache
def has_pyxis() -> bool:
    """Return whether this Slurm has the pyxis plugin: `srun --help` then shows its options."""
    if not shutil.which("srun"):
        return False
    done = subprocess.run(["srun", "--help"], capture_output=True, text=True, errors="replace", check=False)
    return "--container-image" in done.stdout + done.stderr


def resolve_runtime(cluster: ClusterConfig, image: str | None) -> ClusterConfig:
    """Replace container_runtime=auto by pyxis if there is an image and this Slurm has pyxis, else by none.

    Args:
        cluster: Where the job runs.
        image: Its container image, if it has one.
    """
    if cluster.container_runtime != "auto":
        return cluster
    use_pyxis = bool(image) and cluster.kind == "slurm" and has_pyxis()
    return replace(cluster, container_runtime="pyxis" if use_pyxis else "none")


def describe(cluster: ClusterConfig, image: str | None, image_key: str) -> str:
    """Return what the ranks run in, and what of the configuration is not used for it.

    Args:
        cluster: Where the job runs, with a resolved container_runtime.
        image: Container image, if one is configured.
        image_key: The configuration key of the image.
    """
    if cluster.container_runtime != "none":
        inside = cluster.python or "python"
        text = f"{image} through {cluster.container_runtime}, with the image's {inside} (not checked here)"
        absent = cluster.container_runtime == "apptainer" and not shutil.which("apptainer")
        return f"{text}; apptainer is not on this machine's PATH, the compute nodes need it" if absent else text
    python = f"cluster.python={cluster.python}" if cluster.python else f"this Python, {sys.executable}"
    unused = [f"{image_key}={image}"] if image else []
    unused += ["cluster.mounts"] if cluster.mounts else []
    if not unused:
        return python
    why = "on this machine" if cluster.kind == "local" else "with cluster.container_runtime=none"
    return f"{python}; {' and '.join(unused)} not used {why}"


def missing_packages(cluster: ClusterConfig, modules: Sequence[str]) -> list[str]:
    """Return what the Python of the ranks lacks, [] if nothing or if it cannot be checked here.

    An image, and a Python that exists on other machines only, cannot be checked.

    Args:
        cluster: Where the job runs, with a resolved container_runtime.
        modules: Names of the modules that a rank imports.
    """
    if cluster.container_runtime != "none":
        return []
    if cluster.python is None:
        return missing_modules(modules)
    python = shutil.which(cluster.python)
    if python is None:
        return []
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, *modules], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True,
            env={**os.environ, **cluster.env},
        )  # fmt: skip
        return [str(name) for name in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [f"a Python that starts: {type(error).__name__} from {python}"]


def may_be_added(cluster: ClusterConfig) -> bool:
    """Return whether lines of the profile, such as `module load`, may add packages that are missing here."""
    return bool(cluster.setup) or "PYTHONPATH" in cluster.env
