"""Print how long a run of the stage `saving` stood still for its saves, and how fast it was meanwhile:

    python benchmarks/gpu/saving_table.py RUN_DIR SAVE_INTERVAL

The run has logged every iteration. The seconds that training waits for a save are in the line after it
(`seconds/save`), those of the last save in the line of the run's end. Written seconds are from the step before the
save to the last byte.
"""

import sys
from pathlib import Path
from statistics import median
from typing import Any

from nano3.training.run.checkpoints import folder_name
from nano3.training.run.metrics import read_metrics

# Steps after the first one, which compiles, that are left out of the ordinary ones.
WARM_UP = 3


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


def main() -> None:
    run_dir, interval = Path(sys.argv[1]), int(sys.argv[2])
    lines = read_metrics(run_dir)
    steps = {line["iteration"]: line["seconds_per_iteration"] for line in lines if "loss" in line}
    for iteration, waited, began in saves(lines, interval):
        seconds, size = written_s(run_dir / "checkpoints" / folder_name(iteration), began)
        print(f"SAVE at {iteration}: training waited {waited:.2f} s; {size:.1f} GB written after {seconds:.1f} s")
        meanwhile = [s for i, s in steps.items() if iteration < i <= iteration + seconds / min(steps.values())]
        if meanwhile and iteration < max(steps):
            print(f"  steps meanwhile: {len(meanwhile)}, median {median(meanwhile):.3f} s")
    ordinary = [s for i, s in steps.items() if WARM_UP < i <= interval]
    print(f"STEPS before the first save: median {median(ordinary):.3f} s" if ordinary else "STEPS none")


if __name__ == "__main__":
    main()
