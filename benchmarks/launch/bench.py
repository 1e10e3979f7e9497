"""Measure the seconds from a command to its Slurm job id: nano3, hydra-submitit-launcher and NeMo-Run.

    make slurm-up && . .slurm/env.sh && python benchmarks/launch/bench.py

The clock starts with the process and stops when sbatch has returned the id; a wrapper of sbatch on PATH records that
moment for all contestants. `nano3` starts a real run (`+experiment=quickstart`, detached): it composes the
configuration, checks the data, computes the preflight table and copies the code. `nano3, small program` and the peers
start the smallest program that they can. The order changes with every round.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# nemo-run 0.11.1 cannot be imported with the newest leptonai that it allows.
PEERS = ("hydra-submitit-launcher==1.2.0", "nemo-run==0.11.1", "leptonai==0.26.6")


@dataclass
class Contestant:
    """A command that submits one job."""

    name: str
    command: list[str]


def prepare(work: Path) -> list[Contestant]:
    """Prepare environments, data and configuration, which are not measured."""
    venv = work / "venv" / "bin" / "python"
    if not venv.exists():
        uv = shutil.which("uv") or sys.exit("uv is not on the PATH")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(work / "venv")], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(venv), *PEERS], check=True)
    (work / "conf" / "cluster").mkdir(parents=True, exist_ok=True)
    (work / "conf" / "cluster" / "bench.yaml").write_text("kind: slurm\nmode: detached\nmem: 200M\ntime: '10'\n")
    (work / "bin").mkdir(exist_ok=True)
    real = shutil.which("sbatch") or sys.exit("sbatch is not on the PATH: make slurm-up && . .slurm/env.sh")
    shim = work / "bin" / "sbatch"
    shim.write_text(f'#!/bin/sh\n{real} "$@"\ncode=$?\ndate +%s.%N >>"$BENCH_STAMPS"\nexit $code\n')
    shim.chmod(0o755)
    nano3 = [sys.executable, "-m"]
    prep = [*nano3, "nano3.data_prep", "data_blend=sample", f"output_dir={work / 'data'}"]
    subprocess.run(prep, env=environment(work), cwd=work, check=True, stdout=subprocess.DEVNULL)
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=10"]
    return [
        Contestant("nano3", [*nano3, "nano3.pretrain", "+experiment=quickstart", "cluster=bench"]),
        Contestant("nano3, small program", [sys.executable, str(HERE / "small_app.py")]),
        Contestant("hydra-submitit-launcher", [str(venv), str(HERE / "hydra_app.py"), "--multirun", *slurm]),
        Contestant("nemo-run", [str(venv), str(HERE / "nemo_app.py"), str(work / "nemo")]),
    ]


def environment(work: Path) -> dict[str, str]:
    """Return the environment of all contestants."""
    return {
        **os.environ,
        "PATH": f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "NANO3_HOME": str(work / "artifacts"),
        "NANO3_CONF": str(work / "conf"),
        "NEMORUN_HOME": str(work / "nemo"),
        "BENCH_STAMPS": str(work / "stamps"),
    }


def measure(contestant: Contestant, work: Path, number: int) -> float:
    """Return the seconds from the start of the process to the answer of sbatch."""
    stamps = work / "stamps"
    stamps.unlink(missing_ok=True)
    command = [*contestant.command, f"run.name=bench{number}"] if contestant.name == "nano3" else contestant.command
    start = time.time()
    process = subprocess.Popen(
        command, cwd=work, env=environment(work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not stamps.exists() or not stamps.read_text().endswith("\n"):
        if process.poll() not in (None, 0):
            sys.exit(f"{contestant.name} failed:\n{process.communicate()[0]}")
        time.sleep(0.002)
    seconds = float(stamps.read_text().split()[0]) - start
    process.communicate(timeout=120)
    subprocess.run(["scancel", "--me"], check=True)
    while subprocess.run(["squeue", "-h", "--me"], capture_output=True, text=True, check=True).stdout:
        time.sleep(0.2)
    return seconds


def main() -> None:
    """Run the benchmark, print the table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "launch")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "launch.json")
    args = parser.parse_args()
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    contestants = prepare(work)
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    for round_number in range(args.rounds + 1):
        shift = round_number % len(contestants)
        for contestant in contestants[shift:] + contestants[:shift]:
            took = measure(contestant, work, int(time.time()))
            if round_number:  # the first round fills caches
                seconds[contestant.name].append(round(took, 3))
    ours = statistics.median(seconds["nano3, small program"])
    ratios = {name: round(statistics.median(values) / ours, 2) for name, values in seconds.items()}
    result = {
        "what": "seconds from the start of the command to the job id",
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()},
        "slurm": subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        "peers": PEERS,
        "seconds": seconds,
        "median": {name: statistics.median(values) for name, values in seconds.items()},
        "least": {name: min(values) for name, values in seconds.items()},
        "ratio_to_nano3_small_program": ratios,
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, values in seconds.items():
        print(f"{name:26} median {statistics.median(values):.2f} s  (x{ratios[name]})  {values}")


if __name__ == "__main__":
    main()
