"""Measure what the submission of a sweep costs: nano3 against hydra-submitit-launcher, alternated.

    make slurm-up && . .slurm/env.sh && python benchmarks/launch/sweep.py --points 1,60,200

For each number of points: seconds and CPU seconds from the start of the process to sbatch's answer, and peak memory.
nano3 composes and checks a real configuration (`+experiment=quickstart`) for each point, writes its record, and copies
the code; the peer pickles an empty function. The jobs are held and canceled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from bench import HERE, ROOT, environment, prepare


def command(name: str, points: int, number: int) -> list[str]:
    """Return the command that submits a sweep."""
    values = ",".join(f"{100 + point}e-5" for point in range(points))
    if name == "nano3":
        words = ["-m", "nano3.pretrain", "-m", "+experiment=quickstart", "cluster=bench", "cluster.begin=now+1day"]
        return [sys.executable, *words, f"run.name=sweep{number}", f"optimizer.lr={values}"]
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=10"]
    words += [f"hydra.launcher.array_parallelism={points}", "+hydra.launcher.additional_parameters={begin:now+1day}"]
    return [sys.executable, str(HERE / "hydra_app.py"), "--multirun", *words, f"+lr={values}"]


def measure(name: str, points: int, work: Path) -> dict[str, float]:
    """Submit one sweep and return its costs."""
    stamps = work / "stamps"
    stamps.unlink(missing_ok=True)
    start = time.time()
    process = psutil.Popen(
        command(name, points, int(start)), cwd=work, env=environment(work), stdout=subprocess.DEVNULL,
        stderr=(work / "err").open("w"),
    )  # fmt: skip
    while not stamps.exists() or not stamps.read_text().endswith("\n"):
        if process.poll() not in (None, 0):
            sys.exit(f"{name} failed:\n{(work / 'err').read_text()}")
        time.sleep(0.01)
    spent = process.cpu_times()
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    stamp, job = stamps.read_text().split()
    if name != "nano3":  # it waits for the jobs
        process.kill()
    process.wait()
    subprocess.run(["scancel", job], check=True)
    return {"seconds": round(float(stamp) - start, 2), "cpu": round(sum(spent[:4]), 2), "peak_mib": round(peak, 2)}


def main() -> None:
    """Run the benchmark, print the table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", default="1,60,200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "launch")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "launch_sweep.json")
    args = parser.parse_args()
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, nemo=False)
    results = []
    for points in map(int, args.points.split(",")):
        found: dict[str, list[dict[str, float]]] = {"nano3": [], "hydra-submitit-launcher": []}
        for number in range(args.rounds):
            for name in sorted(found, reverse=bool(number % 2)):
                found[name].append(measure(name, points, work))
        for name, rounds in found.items():
            median = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
            results.append({"points": points, "name": name, "median": median, "rounds": rounds})
            print(f"{points:4} points  {name:24} {median}", flush=True)
    what = "submission of a sweep, to the answer of sbatch: seconds, CPU seconds of the process, peak memory in MiB"
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()}
    args.out.write_text(json.dumps({"what": what, "machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
