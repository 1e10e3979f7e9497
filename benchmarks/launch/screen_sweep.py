"""A sweep of small points for screens.py: each counts iterations; some fail, on another rank than 0."""

import json
import sys
import time
from pathlib import Path

import launch
from nano3.config.cluster import ClusterConfig

ITERATIONS = 40


def train(run_dir: str, number: str) -> int:
    """Count iterations and record a loss; every 20th point fails."""
    import os

    folder, rank = Path(run_dir), os.environ["RANK"]
    for iteration in range(1, ITERATIONS + 1):
        time.sleep(0.25)
        if int(number) % 20 == 7 and iteration == 8 and rank == os.environ["FAILING_RANK"]:
            print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", file=sys.stderr)
            return 1
        if rank == "0":
            line = {"iteration": iteration, "loss": 10.8 - 0.1 * iteration - int(number) / 100, "time": time.time()}
            with (folder / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps(line) + "\n")
    (folder / "finished.json").write_text("{}")
    return 0


def main(folder: str, count: str) -> int:
    """Submit the sweep and show its table."""
    cluster = ClusterConfig(
        kind="slurm", mem="200M", time="10", array_parallelism=6, env={"FAILING_RANK": "0"}, poll_s=1.0
    )
    jobs = []
    for number in range(int(count)):
        rates, seeds = ("1e-4", "3e-4", "1e-3", "3e-3"), number // 4
        label = f"optimizer.lr={rates[number % 4]}__seed={seeds}"
        args = (str(Path(folder, label).absolute()), str(number))
        save = lambda run_dir=Path(folder, label): (run_dir / "config.yaml").write_text(  # noqa: E731
            f"train:\n  train_iters: {ITERATIONS}\n"
        )
        jobs.append(
            launch.Job("study", Path(folder, label), "screen_sweep:train", args, cluster, label=label,
                       iterations=ITERATIONS, save_config=save)
        )  # fmt: skip
    return launch.run(jobs, sweep=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
