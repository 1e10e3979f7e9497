"""Measure the seconds from a command to its Slurm job id and to the first line of the job's log.

    make slurm-up && . .slurm/env.sh && python benchmarks/launch/bench.py

Contestants are nano3, hydra-submitit-launcher and NeMo-Run. The clock starts with the process. sbatch has returned the
id when a wrapper of sbatch on PATH says so, for all contestants. The first line is that of the program; submitit's own
lines do not count. `nano3` starts a real run (`+experiment=quickstart`, detached): it composes the
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
# Where the log of rank 0 appears, below the working folder; NeMo-Run packs and runs its job elsewhere.
LOGS = {
    "nano3": "output/nano3/runs/bench{number}/slurm/*_0_log.out",
    "nano3, small program": "runs/*/slurm/*_0_log.out",
    "hydra-submitit-launcher": "multirun/*/*/.submitit/*/*_0_log.out",
}
PEERS = ("hydra-submitit-launcher==1.2.0", "nemo-run==0.11.1", "leptonai==0.26.6")


@dataclass
class Contestant:
    """A command that submits one job."""

    name: str
    command: list[str]


def prepare(work: Path, nemo: bool = True) -> list[Contestant]:
    """Prepare environments, data and configuration, which are not measured.

    Args:
        work: Folder for everything.
        nemo: Whether NeMo-Run takes part. Without it, hydra-submitit-launcher is the one of this environment.
    """
    venv = work / "venv" / "bin" / "python" if nemo else Path(sys.executable)
    if not venv.exists():
        uv = shutil.which("uv") or sys.exit("uv is not on the PATH")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(work / "venv")], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(venv), *PEERS], check=True)
    (work / "conf" / "cluster").mkdir(parents=True, exist_ok=True)
    (work / "conf" / "cluster" / "bench.yaml").write_text("kind: slurm\nmode: detached\nmem: 200M\ntime: '10'\n")
    (work / "bin").mkdir(exist_ok=True)
    real = shutil.which("sbatch") or sys.exit("sbatch is not on the PATH: make slurm-up && . .slurm/env.sh")
    shim = work / "bin" / "sbatch"
    shim.write_text(
        f'#!/bin/sh\nanswer=$({real} "$@")\ncode=$?\necho "$(date +%s.%N) ${{answer##* }}" >>"$BENCH_STAMPS"\n'
        'echo "$answer"\nexit $code\n'
    )
    shim.chmod(0o755)
    nano3 = [sys.executable, "-m"]
    prep = [*nano3, "nano3.data_prep", "data_blend=sample", f"output_dir={work / 'data'}"]
    subprocess.run(prep, env=environment(work), cwd=work, check=True, stdout=subprocess.DEVNULL)
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=10"]
    contestants = [
        Contestant("nano3", [*nano3, "nano3.pretrain", "+experiment=quickstart", "cluster=bench"]),
        Contestant("nano3, small program", [sys.executable, str(HERE / "small_app.py")]),
        Contestant("hydra-submitit-launcher", [str(venv), str(HERE / "hydra_app.py"), "--multirun", *slurm]),
        Contestant("nemo-run", [str(venv), str(HERE / "nemo_app.py"), str(work / "nemo")]),
    ]
    return contestants if nemo else contestants[:-1]


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


def measure(contestant: Contestant, work: Path, number: int) -> tuple[float, float | None]:
    """Return the seconds from the start of the process to sbatch's answer, and to the first line of the log."""
    stamps, pattern = work / "stamps", LOGS.get(contestant.name, "").format(number=number)
    stamps.unlink(missing_ok=True)
    command = [*contestant.command, f"run.name=bench{number}"] if contestant.name == "nano3" else contestant.command
    old = set(work.glob(pattern)) if pattern else set()
    start = time.time()
    process = subprocess.Popen(
        command, cwd=work, env=environment(work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not stamps.exists() or not stamps.read_text().endswith("\n"):
        if process.poll() not in (None, 0):
            sys.exit(f"{contestant.name} failed:\n{process.communicate()[0]}")
        time.sleep(0.002)
    stamp, job = stamps.read_text().split()
    while pattern and not any(_has_line(log) for log in set(work.glob(pattern)) - old):
        time.sleep(0.005)
    line = time.time() - start if pattern else None
    process.communicate(timeout=300)
    subprocess.run(["scancel", job], check=False)
    while subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False).stdout:
        time.sleep(0.2)
    return float(stamp) - start, line


def _has_line(log: Path) -> bool:
    """Return whether the program has written a line."""
    return any("submitit INFO" not in line for line in log.read_text(errors="replace").splitlines())


def main() -> None:
    """Run the benchmark, print the table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-nemo", action="store_true", help="leave out NeMo-Run")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "launch")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "launch.json")
    args = parser.parse_args()
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    contestants = prepare(work, not args.without_nemo)
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    lines: dict[str, list[float]] = {c.name: [] for c in contestants if c.name in LOGS}
    for round_number in range(args.rounds + 1):
        shift = round_number % len(contestants)
        for contestant in contestants[shift:] + contestants[:shift]:
            took, line = measure(contestant, work, int(time.time()))
            if round_number:  # the first round fills caches
                seconds[contestant.name].append(round(took, 3))
                if line is not None:
                    lines[contestant.name].append(round(line, 3))
    ours = statistics.median(seconds["nano3, small program"])
    ratios = {name: round(statistics.median(values) / ours, 2) for name, values in seconds.items()}
    result = {
        "what": "seconds from the start of the command to the job id, and to the first line of the job's log",
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()},
        "slurm": subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        "peers": PEERS[:1] if args.without_nemo else PEERS,
        "seconds": seconds,
        "median": {name: statistics.median(values) for name, values in seconds.items()},
        "least": {name: min(values) for name, values in seconds.items()},
        "ratio_to_nano3_small_program": ratios,
        "first_line_seconds": lines,
        "first_line_median": {name: statistics.median(values) for name, values in lines.items()},
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, values in seconds.items():
        print(f"{name:26} median {statistics.median(values):.2f} s  (x{ratios[name]})  {values}")
    for name, values in lines.items():
        print(f"{name:26} first line: median {statistics.median(values):.2f} s  {values}")


if __name__ == "__main__":
    main()
