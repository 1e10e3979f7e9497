"""What this machine has for nano3, and what to do about what it lacks.

nano3 doctor
"""

import argparse
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nano3
from launch import slurm
from nano3.artifacts import store
from nano3.data.sources.hub_cache import cache_dir
from nano3.training import backend
from nano3.training.megatron.compile_cache import cache_home
from nano3.utils.console import say, table
from nano3.utils.errors import Failure
from nano3.utils.files import nearest_existing
from nano3.utils.provenance import commit_of, installed_versions

HELP = "what this machine has, and what to do about what it lacks"
ROOT = Path(nano3.__file__).resolve().parents[1]
LITTLE_DISK = 20 * 10**9
LITTLE_MEMORY = 2 * 10**9
# What was found, and what to do; "" when nothing is to be done.
Line = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    rows = [(what, *look()) for what, look in LOOKS.items()]
    table("This machine", ["what", "found", "what to do"], rows)
    lacking = [row[0] for row in rows if row[2]]
    say(f"to do, if you need it: {', '.join(lacking)}" if lacking else "nothing is missing")
    return 0


def nano3_itself() -> Line:
    commit = commit_of(ROOT)
    return f"{nano3.__version__}{f', commit {commit[:10]}' if commit else ''}, {ROOT}", ""


def python() -> Line:
    return f"{platform.python_version()}, {platform.system()} {platform.machine()}", ""


def cores() -> Line:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return f"{usable} of {there}" if usable != there else str(there), ""


def memory() -> Line:
    """What may still be used, by the machine and by the control group around this process."""
    told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(told[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, max(limit - used, 0))
    except (OSError, ValueError):  # no limit ("max"), or another kind of control group
        pass
    little = "close other programs, or set fewer processes: workers=1" if free < LITTLE_MEMORY else ""
    return f"{free / 1e9:,.1f} of {total / 1e9:,.1f} GB free", little


def gpus() -> Line:
    """GPUs as nvidia-smi tells of them."""
    without = "to train without one: +experiment=quickstart (backend=transformers); elsewhere: cluster=slurm"
    if not shutil.which("nvidia-smi"):
        return "none (no nvidia-smi)", without
    words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}", "see `nvidia-smi`; the driver may have to be loaded anew"
    found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not found:
        why = (done.stderr or done.stdout).strip().splitlines()
        return f"none ({why[-1] if why else 'nvidia-smi lists none'})", without
    return f"{len(found)} x {found[0]}" if len(set(found)) == 1 else "; ".join(found), ""


def scheduler() -> Line:
    if not shutil.which("sbatch") or not shutil.which("srun"):
        return "none (no sbatch and srun)", "log in to a submit host, or `make slurm-up` for a small one here"
    try:
        return f"partitions {', '.join(slurm.partitions())}", ""
    except Failure as error:
        return str(error).splitlines()[-1], "see `scontrol ping`"


def backend_here(name: str) -> Callable[[], Line]:
    """Whether a backend can run in this Python; it imports none of it."""

    def look() -> Line:
        module = backend.load(name)
        if missing := module.missing():
            return f"not installed: {', '.join(missing)}", module.INSTALL
        return ", ".join(f"{p} {v}" for p, v in installed_versions(PACKAGES[name]).items()), ""

    return look


def fast_tokenizer() -> Line:
    found = installed_versions(["fastokens"])
    if not found:
        return "none: tokenizing takes a hundred times longer", "uv sync, or pip install fastokens"
    return f"fastokens {found['fastokens']}", ""


def artifacts() -> Line:
    found = store.names()
    problems = store.registration_problems("doctor", write=True)
    there = f"{sum(len(store.versions(name)) for name in found)} versions of {len(found)} artifacts in {store.home()}"
    return there, "set NANO3_HOME to a folder of yours that can be written" if problems else ""


def own_members() -> Line:
    folder = os.environ.get("NANO3_CONF")
    if not folder:
        return "NANO3_CONF is not set", ""
    place = Path(folder).expanduser()
    if not place.is_dir():
        return f"NANO3_CONF={folder}: no such folder", "make it, or unset NANO3_CONF"
    files = sorted(str(path.relative_to(place)) for path in place.glob("*/*.yaml"))
    nothing = "" if files else "put cluster/NAME.yaml or data_blend/NAME.yaml into it"
    return f"{place}: {', '.join(files) or 'no members'}", nothing


def hub_cache() -> Line:
    return space(cache_dir(), "HF_HOME")


def kernel_cache() -> Line:
    return space(cache_home(), "NANO3_CACHE")


def output() -> Line:
    return space(Path("output/nano3"), "output_dir and run.output_dir")


def space(folder: Path, key: str) -> Line:
    """Room and permission at a folder that is, or will be, there."""
    folder = folder.expanduser().absolute()
    place = nearest_existing(folder)
    free = shutil.disk_usage(place).free
    found = f"{folder}{'' if place == folder else ' (not there yet)'}, {free / 1e9:,.1f} GB free"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{found}, cannot be written", f"choose another place: {key}"
    return found, f"make room, or choose another place: {key}" if free < LITTLE_DISK else ""


PACKAGES = {
    "transformers": ("torch", "transformers", "accelerate", "megatron-core"),
    "megatron": ("torch", "megatron-core", "megatron-bridge"),
}
LOOKS: dict[str, Callable[[], Line]] = {
    "nano3": nano3_itself,
    "Python": python,
    "cores": cores,
    "memory": memory,
    "GPU": gpus,
    "Slurm": scheduler,
    "backend=transformers": backend_here("transformers"),
    "backend=megatron": backend_here("megatron"),
    "fast tokenizer": fast_tokenizer,
    "your own conf": own_members,
    "artifact store": artifacts,
    "hub cache": hub_cache,
    "kernel cache": kernel_cache,
    "output": output,
}
