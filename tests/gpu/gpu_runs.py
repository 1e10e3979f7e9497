"""Run nano3's commands on a machine with a GPU; shared by the tests in this folder."""

import contextlib
import fcntl
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nano3.training.run.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STACK = importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("transformer_engine") is not None
# A rehearsal of the tests on Slurm without a GPU.
REHEARSAL = os.environ.get("NANO3_GPU_BACKEND") == "transformers"
ENGINE = "auto" if importlib.util.find_spec("fastokens") else "tokenizers"
MARKS = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not STACK, reason="Megatron-Bridge is not installed"),
]
MODEL = "conf/model/nemotron_3_nano_micro.yaml"
MICRO = [
    "data_blend=sample",
    "model=nemotron_3_nano_micro",
    "train.seq_length=1024",
    "train.micro_batch_size=8",
    "train.global_batch_size=32",
    "train.train_iters=40",
    "train.eval_interval=20",
    "train.eval_iters=3",
    "optimizer.lr=2e-3",
    "scheduler.lr_warmup_iters=5",
    "scheduler.lr_wsd_decay_iters=10",
    "logger.log_interval=5",
    "checkpoint.save_interval=10",
]
# A short run: three iterations without validation.
SHORT = [
    "train.train_iters=3",
    "scheduler.lr_warmup_iters=1",
    "scheduler.lr_wsd_decay_iters=1",
    "train.eval_interval=0",
]
# A dense model of 22 M parameters instead, of which nearly nothing has to be compiled.
DENSE = [
    "model=recipe",
    "recipe._target_=megatron.bridge.recipes.qwen.qwen3.qwen3_8b_pretrain_config",
    "model.hidden_size=512",
    "model.ffn_hidden_size=1536",
    "model.num_attention_heads=8",
    "model.num_query_groups=2",
    "model.kv_channels=64",
    "+megatron.model.num_layers=6",
]
# Settings for comparing two runs from the same weights step by step.
SPIKE = 12  # the iteration at which their gradient has its largest norm, in every run
FOLLOW = ["train.eval_interval=0", "logger.log_interval=1", "optimizer.lr=1e-3", "optimizer.min_lr=0"]
# Two ranks, by what they share out.
BOTH = {"CUDA_VISIBLE_DEVICES": "0,1"}
TWO = "cluster.nproc_per_node=2"
LAYOUTS = {
    "data parallel": [TWO],
    "experts over both": [TWO, "model.expert_model_parallel_size=2"],
    "tensor parallel": [TWO, "model.tensor_model_parallel_size=2", "model.sequence_parallel=true"],
    "pipeline": [TWO, "model.pipeline_model_parallel_size=2"],
    "context parallel": [TWO, "model.context_parallel_size=2"],
}


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def gpu_of_worker(worker: str, count: int) -> dict[str, str]:
    """Return the variable that gives a pytest-xdist worker one of `count` GPUs."""
    return {"CUDA_VISIBLE_DEVICES": str(int(worker.removeprefix("gw")) % count)} if count > 1 else {}


@contextlib.contextmanager
def made_once(folder: Path, name: str) -> Iterator[bool]:
    """Yield whether `name` must be created in `folder`; other processes wait until the block succeeds."""
    marker = folder / f"{name}.made"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not marker.exists()
        marker.touch()


class Runs:
    """Runs `python -m nano3.pretrain` in one folder with an artifact store and the prepared sample."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        own = {"NANO3_HOME": str(folder / "home"), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        own |= {"OMP_NUM_THREADS": "1"} if REHEARSAL else {}
        self.env = {**os.environ, **own, **gpu_of_worker(os.environ.get("PYTEST_XDIST_WORKER", "gw0"), gpus())}

    def __call__(self, *words: str, code: int = 0, timeout: float = 600, **env: str) -> str:
        """Run `python WORDS...`, assert its exit code, and return its output."""
        return self.finish(self.popen(*words, **env), code, timeout)

    def popen(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: "subprocess.Popen[str]", code: int = 0, timeout: float = 600) -> str:
        text, _ = process.communicate(timeout=timeout)
        self.save_log(process, text)
        assert process.returncode == code, text[-4000:]
        return text

    def save_log(self, process: "subprocess.Popen[str]", text: str) -> None:
        """Write command, output and exit code to a file, for inspection and for transcript.py."""
        assert isinstance(process.args, list)
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = f"$ python {shlex.join(process.args[1:])}\n{text.rstrip()}\n[exit code {process.returncode}]\n"
        (logs / f"{time.time():.1f}_{process.pid}.txt").write_text(log)

    def start(self, name: str, *words: str, **env: str) -> "subprocess.Popen[str]":
        """Start the micro model under run.name=NAME."""
        return self.popen("-m", "nano3.pretrain", *self.micro_words(name), *words, **env)

    @staticmethod
    def micro_words(name: str) -> list[str]:
        """Return the overrides of the micro model under run.name=NAME."""
        return [*MICRO, f"run.name={name}"]

    def train(self, name: str, *words: str, code: int = 0, **env: str) -> str:
        return self.finish(self.start(name, *words, **env), code)

    def follow(self, name: str, weights: Path, *words: str, **env: str) -> str:
        """Train 20 iterations from Hugging Face weights with the settings of FOLLOW."""
        initial = f"+megatron.checkpoint.pretrained_checkpoint={weights}"
        return self.train(name, *FOLLOW, "train.exit_iteration=20", initial, *words, **env)

    def dir(self, name: str) -> Path:
        return self.folder / "output/nano3/runs" / name

    def checkpoints(self, name: str) -> list[str]:
        """Return the iteration folders of a run, complete or not."""
        return sorted(p.name for p in (self.dir(name) / "checkpoints").glob("iter_*"))

    def losses(self, name: str) -> dict[int, float]:
        """Return the training loss by iteration, and assert that each iteration is logged once."""
        found = [(m["iteration"], m["loss"]) for m in read_metrics(self.dir(name)) if "loss" in m]
        assert len(found) == len(dict(found))
        return dict(found)

    def steps(self, name: str) -> dict[int, dict[str, Any]]:
        """Return the training lines by iteration."""
        return {m["iteration"]: m for m in read_metrics(self.dir(name)) if "loss" in m}

    def wait_for(self, name: str, iteration: int, process: "subprocess.Popen[str]") -> None:
        """Wait until the run has logged `iteration`."""
        for _ in range(3000):
            assert process.poll() is None, "ended too early:\n" + process.communicate()[0][-4000:]
            if any(m["iteration"] >= iteration for m in read_metrics(self.dir(name))):
                return
            time.sleep(0.2)
        raise TimeoutError(f"iteration {iteration} was not reached")

    def kill(self, process: "subprocess.Popen[str]") -> str:
        """Send SIGKILL to the run and to every process that it started, and return its output."""
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        self.save_log(process, text)
        return text

    def without_marks(self, name: str, copy: Path) -> Path:
        """Copy a run's checkpoints as plain Megatron-Bridge would have written them."""
        shutil.copytree(self.dir(name) / "checkpoints", copy)
        for file in [*copy.glob("iter_*/checkpoint.json"), copy / "begun.json", copy / "run.json"]:
            file.unlink()
        return copy
