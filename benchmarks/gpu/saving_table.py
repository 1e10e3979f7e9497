"""Print how long a run of the stage `saving` stood still for its saves, in which parts, and how fast it was meanwhile:

    python benchmarks/gpu/saving_table.py RUN_DIR SAVE_INTERVAL [SAVE_LOG]

The run has logged every iteration. The seconds that training waits for a save are in the line after it
(`seconds/save`), those of the last save in the line of the run's end, with its writing. SAVE_LOG is what Megatron-Core
logged, with times. Written seconds are from the step before the save to the last byte.
"""

import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

from nano3.training.run.checkpoints import folder_name
from nano3.training.run.metrics import read_metrics

# Steps after the first one, which compiles, that are left out of the ordinary ones.
WARM_UP = 3
BEGIN = "starting state dict save"
PARTS = {
    "planning": re.compile(r"plan time: ([\d.e-]+)"),
    "collecting tensors": re.compile(r"write\(async\) time: ([\d.e-]+)"),
    "copy to the host": re.compile(r"takes ([\d.e-]+) to finish D2H"),
}
HANDED_OVER = re.compile(r"takes ([\d.e-]+) to schedule async ckpt")
TASK_DONE = re.compile(r" \d+ has completed saving 1$")


def saves(lines: list[dict[str, Any]], interval: int) -> list[tuple[int, float, float]]:
    """Return each save as iteration, seconds of waiting, and the time at which it began (seconds since 1970)."""
    found = []
    for number, line in enumerate(lines[:-1]):
        if "loss" in line and line["iteration"] % interval == 0:
            found.append((line["iteration"], lines[number + 1].get("seconds/save", 0.0), line["time"]))
    return found


def written_s(folder: Path, began: float) -> tuple[float, float]:
    """Return the seconds from `began` to the last byte of a checkpoint, and its size in GB; 0 if it was removed."""
    files = [p.stat() for p in folder.glob("*.distcp")]
    if not files:
        return 0.0, 0.0
    return max(s.st_mtime for s in files) - began, sum(s.st_size for s in files) / 1e9


def parts_of_saves(lines: list[str], began: list[float]) -> list[dict[str, float]]:
    """Return the seconds of each part of each save.

    Args:
        lines: What Megatron-Core logged: seconds since 1970, process, message.
        began: The time at which each save began, seconds since 1970.
    """
    found: list[dict[str, float]] = []
    for line in lines:
        if BEGIN in line and len(found) < len(began):
            found.append({"state dict": float(line.split()[0]) - began[len(found)]})
        elif found and "handed over" not in found[-1]:
            for name, pattern in PARTS.items():
                if match := pattern.search(line):
                    found[-1][name] = float(match[1])
            if HANDED_OVER.search(line):
                found[-1]["handed over"] = float(line.split()[0]) - began[len(found) - 1]
    return found


def print_reservation(log: list[str], lines: list[dict[str, Any]]) -> None:
    """Print how long the writer's task before the first save took, and the steps while it ran."""
    done = [float(line.split()[0]) for line in log if TASK_DONE.search(line)]
    times = [line["time"] for line in lines if "loss" in line]
    if not done or not times:
        return
    meanwhile = [
        line["seconds_per_iteration"] for line in lines if "loss" in line and times[0] < line["time"] <= done[0]
    ]
    later = [line["seconds_per_iteration"] for line in lines if "loss" in line and line["time"] > done[0]]
    speed = [f"{len(some)}, median {median(some):.3f} s" if some else "none" for some in (meanwhile, later)]
    print(f"TASK of the writer after the first step: {done[0] - times[0]:.1f} s; steps {speed[0]}; later {speed[1]}")


def main() -> None:
    run_dir, interval = Path(sys.argv[1]), int(sys.argv[2])
    log = Path(sys.argv[3]).read_text(errors="replace").splitlines() if len(sys.argv) > 3 else []
    lines = read_metrics(run_dir)
    steps = {line["iteration"]: line["seconds_per_iteration"] for line in lines if "loss" in line}
    if log:
        print_reservation(log, lines)
    found = saves(lines, interval)
    parts = parts_of_saves(log, [began for _, _, began in found])
    for number, (iteration, waited, began) in enumerate(found):
        seconds, size = written_s(run_dir / "checkpoints" / folder_name(iteration), began)
        print(f"SAVE at {iteration}: training waited {waited:.2f} s; {size:.1f} GB written after {seconds:.1f} s")
        if number < len(parts):
            print("  " + ", ".join(f"{name} {value:.2f} s" for name, value in parts[number].items()))
        meanwhile = [s for i, s in steps.items() if iteration < i <= iteration + seconds / min(steps.values())]
        if meanwhile and iteration < max(steps):
            print(f"  steps meanwhile: {len(meanwhile)}, median {median(meanwhile):.3f} s")
    ordinary = [s for i, s in steps.items() if WARM_UP < i <= interval]
    print(f"STEPS before the first save: median {median(ordinary):.3f} s" if ordinary else "STEPS none")


if __name__ == "__main__":
    main()
