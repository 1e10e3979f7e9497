"""The smallest Hydra application submitted with launch.run: it is checked and its code is copied."""

import sys
import time
from pathlib import Path

import hydra

import launch
from nano3.config.cluster import ClusterConfig


def work() -> None:
    """Run the job."""
    print("first line", flush=True)


@hydra.main(version_base="1.3", config_path=None)
def main(cfg) -> None:
    """Submit one job."""
    cluster = ClusterConfig(kind="slurm", mode="detached", mem="1G", time="10")
    sys.exit(launch.run([launch.Job("bench", Path("runs", str(time.time_ns())), "small_app:work", (), cluster)]))


if __name__ == "__main__":
    main()
