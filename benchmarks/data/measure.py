"""Run a command and measure it: wall time, CPU time of the whole process tree, peak memory by sampling."""

import contextlib
import os
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.2  # seconds between two samples of memory


@dataclass
class Usage:
    """What one run took. Memory is proportional set size (shared pages counted once), in MB of 10^6 bytes."""

    wall_s: float
    cpu_s: float
    peak_mb: float  # of all processes together
    peak_process_mb: float  # of the largest single process
    other_cpu_s: float  # taken by everything else on the machine meanwhile: above a few percent, wall_s is too long


def run(command: list[str], log: Path, environment: dict[str, str], cwd: Path) -> Usage:
    """Run `command` in `cwd` to its end, output into `log`; Usage of it and all its descendants.

    CPU seconds are what the kernel accounts to reaped children, or what the samples saw of every process if that is
    more (a grandchild whose parent never waited for it is missing in the first).

    Raises: RuntimeError, with the end of the log, when the command fails.
    """
    before, machine = resource.getrusage(resource.RUSAGE_CHILDREN), machine_cpu()
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}, cwd=cwd
        )
        peak, largest, seen = sample_until_exit(process)
    wall = time.perf_counter() - start
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{tail}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cpu = max(cpu, sum(seen.values()))
    return Usage(wall, cpu, peak / 1e6, largest / 1e6, max(0.0, machine_cpu() - machine - cpu))


def machine_cpu() -> float:
    """CPU seconds the whole machine has spent on work since it booted, time stolen by a hypervisor included."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def wait_for_quiet(share: float, timeout: float) -> bool:
    """Wait until less than `share` of the machine's CPU is in use over two seconds; False when that took too long."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        before = machine_cpu()
        time.sleep(2)
        if machine_cpu() - before < share * 2 * (os.cpu_count() or 1):
            return True
    return False


def sample_until_exit(process: subprocess.Popen[bytes]) -> tuple[int, int, dict[int, float]]:
    """Peak bytes of the tree, peak bytes of one process, and the last CPU seconds seen of each process id."""
    root = psutil.Process(process.pid)
    peak = largest = 0
    seen: dict[int, float] = {}
    while True:
        sizes = [0]
        with contextlib.suppress(psutil.Error):
            for member in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = member.cpu_times()
                    seen[member.pid] = times.user + times.system
                    sizes.append(pss(member.pid))
        peak, largest = max(peak, sum(sizes)), max(largest, *sizes)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERVAL)
            return peak, largest, seen


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
