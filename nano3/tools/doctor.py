"""Check what this machine offers to nano3, and say how to add what is missing.

nano3 doctor
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nano3
from launch import slurm
from nano3.artifacts import store
from nano3.data.sources.hub_cache import cache_dir
from nano3.training import backend
from nano3.training.megatron import schema
from nano3.training.megatron.compile_cache import cache_home
from nano3.utils.console import say, size_text, table
from nano3.utils.errors import Failure
from nano3.utils.files import expand_user, nearest_existing
from nano3.utils.provenance import ROOT, commit_of, installed_versions

HELP = "check this machine"
ONLY_SHOWS = True
# In bytes; below these the advice is to free some.
LOW_DISK = 20 * 10**9
LOW_MEMORY = 2 * 10**9
# (what was found, what to do); the latter is "" if nothing needs to be done.
Finding = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the tool has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    rows = [(name, *check()) for name, check in CHECKS.items()]
    table("This machine", ["item", "found", "what to do"], rows)
    missing = [row[0] for row in rows if row[2]]
    say(f"to do, if you need it: {', '.join(missing)}" if missing else "nothing is missing")
    return 0


def nano3_version() -> Finding:
    """Report nano3's version, commit and folder."""
    commit = commit_of(ROOT)
    return f"{nano3.__version__}{f', commit {commit[:10]}' if commit else ''}, {ROOT}", ""


def python() -> Finding:
    """Report the version of Python and the platform."""
    return f"{platform.python_version()}, {platform.system()} {platform.machine()}", ""


def cores() -> Finding:
    """Report how many cores this process may use."""
    usable, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return f"{usable} of {total}" if usable != total else str(total), ""


def memory() -> Finding:
    """Report the available memory, within the limits of the machine and of this process's control group."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(meminfo[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, max(limit - used, 0))
    except (OSError, ValueError):  # no limit ("max"), or control groups of version 1
        pass
    advice = "close other programs, or use fewer processes: workers=1" if free < LOW_MEMORY else ""
    return f"{size_text(free)} of {size_text(total)} free", advice


def gpus() -> Finding:
    """Report the GPUs that nvidia-smi lists."""
    advice = "to train without one: +experiment=quickstart (backend=transformers); elsewhere: cluster=slurm"
    if not shutil.which("nvidia-smi"):
        return "none (no nvidia-smi)", advice
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}", "run `nvidia-smi`; the driver may have to be reloaded"
    found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not found:
        reason = (done.stderr or done.stdout).strip().splitlines()
        return f"none ({reason[-1] if reason else 'nvidia-smi lists none'})", advice
    return f"{len(found)} x {found[0]}" if len(set(found)) == 1 else "; ".join(found), ""


def scheduler() -> Finding:
    """Report the partitions of Slurm."""
    if not shutil.which("sbatch") or not shutil.which("srun"):
        return "none (no sbatch and srun)", "log in to a submit host, or run `make slurm-up` for a small cluster here"
    try:
        return f"partitions {', '.join(slurm.partitions())}", ""
    except Failure as error:
        return str(error).splitlines()[-1], "run `scontrol ping`"


def backend_check(name: str) -> Callable[[], Finding]:
    """Return a check that reports the packages of a backend without importing them."""

    def check() -> Finding:
        module = backend.load(name)
        if missing := module.missing():
            return f"not installed: {', '.join(missing)}", module.INSTALL
        return ", ".join(f"{p} {v}" for p, v in installed_versions(PACKAGES[name]).items()), ""

    return check


def megatron_stack() -> Finding:
    """Report the GPU stack: its versions, whether they are the recorded ones, and whether it can be imported.

    The import runs in a process of its own, because it takes long, needs CUDA and may crash.
    """
    found, advice = backend_check("megatron")()
    if advice:
        return found, advice
    recorded = schema.load_bundled(schema.RECIPES[0]).versions
    if difference := schema.version_difference(schema.versions(), recorded):
        advice = f"{difference}: settings are checked against the installed version. Recorded image: {schema.IMAGE}"
    else:
        found += ", as recorded"
    try:
        command = [sys.executable, "-c", f"import {', '.join(MEGATRON_MODULES)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"{found}; not imported in {IMPORT_LIMIT_S} s", "a slow disk? Run `nano3 doctor` again"
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return f"{found}; cannot be imported: {reason[0]}", f"use the image {schema.IMAGE} on a machine with a GPU"
    return f"{found}; can be imported", advice


def fast_tokenizer() -> Finding:
    """Report the version of fastokens."""
    found = installed_versions(["fastokens"])
    if not found:
        return "none: tokenizing takes a hundred times longer", "uv sync, or pip install fastokens"
    return f"fastokens {found['fastokens']}", ""


def artifacts() -> Finding:
    """Report the artifact store's content, and whether it can be written."""
    names = store.names()
    problems = store.registration_problems("doctor", write=True)
    count = sum(len(store.versions(name)) for name in names)
    advice = "set NANO3_HOME to a folder that you can write to" if problems else ""
    return f"{count} versions of {len(names)} artifacts in {store.home()}", advice


def own_members() -> Finding:
    """Report the group members in the user's own configuration folder."""
    value = os.environ.get("NANO3_CONF")
    if not value:
        return "NANO3_CONF is not set", ""
    folder = expand_user(value)
    if not folder.is_dir():
        return f"NANO3_CONF={value}: no such folder", "create it, or unset NANO3_CONF"
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.yaml"))
    advice = "" if files else "add cluster/NAME.yaml or data_blend/NAME.yaml"
    return f"{folder}: {', '.join(files) or 'no members'}", advice


def hub_cache() -> Finding:
    """Report the disk of the Hugging Face cache."""
    return disk_space(cache_dir(), "HF_HOME")


def kernel_cache() -> Finding:
    """Report the disk of the cache of compiled kernels."""
    return disk_space(cache_home(), "NANO3_CACHE")


def output() -> Finding:
    """Report the disk of the default output folder."""
    return disk_space(Path("output/nano3"), "output_dir and run.output_dir")


def disk_space(folder: Path, key: str) -> Finding:
    """Report free space and write permission of a folder that need not exist yet.

    Args:
        folder: The folder.
        key: Setting that selects another folder.
    """
    folder = expand_user(folder).absolute()
    existing = nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    found = f"{folder}{'' if existing == folder else ' (does not exist yet)'}, {size_text(free)} free"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{found}, not writable", f"choose another folder: {key}"
    return found, f"free some space, or choose another folder: {key}" if free < LOW_DISK else ""


# What a rank imports of the GPU stack before its first step.
MEGATRON_MODULES = (
    "megatron.bridge.training.pretrain",
    "megatron.bridge.recipes.nemotronh",
    "transformer_engine.pytorch",
)
IMPORT_LIMIT_S = 300
PACKAGES = {
    "transformers": ("torch", "transformers", "accelerate", "megatron-core"),
    "megatron": ("torch", "megatron-core", "megatron-bridge"),
}
CHECKS: dict[str, Callable[[], Finding]] = {
    "nano3": nano3_version,
    "Python": python,
    "cores": cores,
    "memory": memory,
    "GPU": gpus,
    "Slurm": scheduler,
    "backend=transformers": backend_check("transformers"),
    "backend=megatron": megatron_stack,
    "fast tokenizer": fast_tokenizer,
    "your own conf": own_members,
    "artifact store": artifacts,
    "hub cache": hub_cache,
    "kernel cache": kernel_cache,
    "output": output,
}
