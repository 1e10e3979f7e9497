"""Helpers of the end-to-end tests: run nano3 commands in a folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A hybrid of one layer of each kind: seconds, not minutes.
SMALL = [
    "+experiment=quickstart",
    "model.hybrid_layer_pattern=M*E",
    "model.hidden_size=32",
    "model.mamba_num_heads=4",
    "model.mamba_head_dim=16",
    "model.num_moe_experts=4",
    "train.train_iters=6",
    "train.seq_length=64",
    "train.eval_iters=1",
    "train.eval_interval=3",
    "train.threads=1",
    "scheduler.lr_warmup_iters=2",
    "scheduler.lr_wsd_decay_iters=2",
    "logger.log_interval=1",
    "logger.sample_prompts=[The]",
    "checkpoint.save_interval=3",
]


class Commands:
    """Runs `python WORDS...` in `folder` with a separate artifact store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"NANO3_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.env = {**os.environ, **own}

    def __call__(self, *words: str, code: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a command and fail unless its exit code is `code`."""
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def run_dir(self, name: str) -> Path:
        """Return the run folder of run.name=NAME."""
        return self.folder / "output/nano3/runs" / name


def losses(run: Path) -> dict[int, float]:
    """Return the training loss by iteration, and fail if an iteration is recorded twice."""
    written = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines = [json.loads(line) for line in written if line.endswith("\n")]  # the last may still be on its way
    found = [(line["iteration"], line["loss"]) for line in lines if "loss" in line]
    assert len(found) == len(dict(found))
    return dict(found)
