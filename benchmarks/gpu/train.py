"""Run the Megatron backend in one process, without Hydra:

    train.py RUN_DIR DATA_DIR [MODEL.yaml] [key=value ...]

The last line of output is JSON: how the run ended and how long it took. SAVE_LOG=FILE collects what Megatron-Core logs
about saving, in this process and in the one that writes checkpoints. RESERVE=0 leaves the memory of saves unreserved.
"""

import fcntl
import json
import logging
import math
import os
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from nano3.config import PretrainConfig
from nano3.utils.console import is_rank_zero
from nano3.utils.errors import Nano3Error

ROOT = Path(__file__).resolve().parents[2]


def log_saves(path: str) -> None:
    """Append what Megatron-Core logs about saving to a file: time, process, and the beginning of the message."""
    logger, handler = logging.getLogger("megatron.core.dist_checkpointing"), logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(created).3f %(process)d %(message).300s"))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)


def build(data_dir: str, run_dir: str, arguments: list[str]) -> PretrainConfig:
    """Merge defaults, YAML files in order, and key=value arguments."""
    layers = [OmegaConf.structured(PretrainConfig)]
    for argument in arguments:
        if argument.endswith(".yaml"):
            layers.append(OmegaConf.create({"model": OmegaConf.load(ROOT / argument)}))
    layers.append(OmegaConf.from_dotlist([a for a in arguments if "=" in a]))
    merged = OmegaConf.merge(*layers)
    merged.run.data, merged.run.output_dir, merged.data_blend.name = data_dir, run_dir, "given"
    merged.recipe.per_split_data_args_path = f"{data_dir}/blend.json"
    config = OmegaConf.to_object(merged)
    assert isinstance(config, PretrainConfig)
    return config


def wait_for_turn() -> None:
    """Import the stack, then wait for the lock file in TURN, so that one process starts while another trains."""
    if "TURN" not in os.environ or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    import megatron.bridge.training.pretrain  # noqa: F401

    lock = os.open(os.environ["TURN"], os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends


def main() -> int:
    run_dir, data_dir, *arguments = sys.argv[1:]
    wait_for_turn()
    started = time.time()
    from nano3.training.megatron import writer_memory
    from nano3.training.megatron.backend import train

    if os.environ.get("RESERVE") == "0":
        writer_memory.LEAST_BYTES = math.inf
    try:
        outcome = train(build(data_dir, run_dir, arguments), Path(data_dir), Path(run_dir))
    except Nano3Error as error:
        print(f"{type(error).__name__}: {error}\nREFUSED {time.time() - started:.1f} s", flush=True)
        return error.exit_code
    if is_rank_zero():
        result = {
            "status": outcome.status,
            "iteration": outcome.iteration,
            "reason": outcome.reason,
            "checkpoint": str(outcome.checkpoint),
        }
        print("OUTCOME " + json.dumps(result | {"seconds": round(time.time() - started, 1)}), flush=True)
    return outcome.exit_code()


if "SAVE_LOG" in os.environ:  # the process that writes checkpoints imports this file, too
    log_saves(os.environ["SAVE_LOG"])
if __name__ == "__main__":
    sys.exit(main())
