"""Measure the import of Megatron-Bridge and the garbage collections after it, without a GPU:

    python benchmarks/gpu/imports.py DATA_DIR RUN_DIR [MODEL.yaml]

Processes with and without `nano3.utils.gc_pause.gc_paused` alternate for three rounds.
"""

import contextlib
import gc
import subprocess
import sys
import time
from pathlib import Path

from train import build

ROUNDS = 3
SETTINGS = ["train.seq_length=1024", "train.global_batch_size=32", "train.micro_batch_size=8", "optimizer.lr=1e-3"]


def measure(held_back: bool, data_dir: str, run_dir: str, model: str) -> None:
    """Print the seconds of `prepare`, which imports the stack, and of one full collection."""
    from nano3.training.dataset import open_data
    from nano3.training.megatron.backend import prepare, set_environment
    from nano3.utils.gc_pause import gc_paused

    set_environment()
    config, data = build(data_dir, run_dir, [model, *SETTINGS]), open_data(Path(data_dir))
    started = time.perf_counter()
    with gc_paused(freeze=True) if held_back else contextlib.nullcontext():
        prepare(config, data, Path(run_dir))
    imported = time.perf_counter()
    gc.collect()
    collected = time.perf_counter() - imported
    held = "held back and frozen" if held_back else "left alone"
    print(
        f"collector {held}: imports and recipe {imported - started:.1f} s, one collection {collected:.3f} s", flush=True
    )


def main() -> None:
    data_dir, run_dir, *rest = sys.argv[1:]
    model = rest[0] if rest else "conf/model/nemotron_3_nano_micro.yaml"
    if len(rest) > 1:
        measure(rest[1] == "held", data_dir, run_dir, model)
        return
    for _ in range(ROUNDS):
        for how in ("left", "held"):
            subprocess.run([sys.executable, "-W", "ignore", __file__, data_dir, run_dir, model, how], check=True)


if __name__ == "__main__":
    main()
