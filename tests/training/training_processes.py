"""Real training processes, forked from a server that has imported torch, megatron.core and transformers once.

Every process has its own signals, accelerate state and process group, and starts in milliseconds instead of twenty
seconds.
"""

import contextlib
import multiprocessing
import os
import pickle
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.hf.backend import train
from nano3.training.run.metrics import read_metrics
from nano3.training.run.outcome import Outcome

# Read by OpenMP when the server imports torch; without them a busy machine makes two spinning threads crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "megatron.core.datasets.blended_megatron_dataset_builder",
        "megatron.core.optimizer_param_scheduler",
        "megatron.core.tokenizers",
        "transformers.models.nemotron_h.modeling_nemotron_h",
        "accelerate.utils",
        "torch.utils.tensorboard",
        "nano3.training.hf.components",
    ]
)
SAMPLE = Path(__file__).parents[2] / "nano3" / "sample"
# Values that say how fast a run was, not what it computed.
TIMING = ("tokens_per_s", "seconds", "elapsed_s", "time", "startup/")


def tiny_config(**changes: Any) -> PretrainConfig:
    """12 iterations of the smallest model with every kind of layer; dotted changes: tiny_config(**{"train.seed":
    2})."""
    config = PretrainConfig(backend="transformers")
    config.model = ModelConfig(
        hybrid_layer_pattern="ME*-",
        hidden_size=16,
        ffn_hidden_size=32,
        num_attention_heads=2,
        num_query_groups=1,
        kv_channels=8,
        mamba_num_heads=2,
        mamba_head_dim=8,
        mamba_state_dim=8,
        mamba_num_groups=1,
        mamba_chunk_size=16,
        num_moe_experts=4,
        moe_router_topk=2,
        moe_ffn_hidden_size=16,
        moe_shared_expert_intermediate_size=16,
        moe_router_topk_scaling_factor=2.5,
    )
    defaults = {
        "run.name": "tiny",
        "data_blend.name": "sample",
        "train.train_iters": 12,
        "train.global_batch_size": 4,
        "train.micro_batch_size": 2,
        "train.seq_length": 32,
        "train.eval_interval": 6,
        "train.eval_iters": 3,
        "train.threads": 1,
        "optimizer.lr": 1e-2,
        "scheduler.lr_warmup_iters": 2,
        "scheduler.lr_wsd_decay_iters": 4,
        "logger.log_interval": 1,
        "checkpoint.save_interval": 4,
    }
    for key, value in {**defaults, **changes}.items():
        section, _, name = key.rpartition(".")
        target = config
        for part in section.split("."):
            target = getattr(target, part)
        assert hasattr(target, name), key
        setattr(target, name, value)
    return config


def _run(job: Callable[..., Any], args: tuple[Any, ...], env: dict[str, str], log: Path, result: Path) -> None:
    """In the child: output to `log`, the pickled result or exception to `result`."""
    os.environ.update(env)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    try:
        value = job(*args)
    except Exception as error:
        traceback.print_exc()
        value = error
    result.write_bytes(pickle.dumps(value))


class Child:
    """One process; `result()` waits for it and returns what the job returned, or raises what it raised."""

    def __init__(self, job: Callable[..., Any], args: tuple[Any, ...], log: Path, env: Mapping[str, str] = {}) -> None:
        self.log = log
        self._result = log.with_suffix(".result")
        self._result.unlink(missing_ok=True)
        self.process: BaseProcess = SERVER.Process(target=_run, args=(job, args, dict(env), log, self._result))
        self.process.start()

    def result(self, timeout: float = 200) -> Any:
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(self.log.read_text())
        assert self._result.is_file(), f"died with {self.process.exitcode}: {self.log.read_text()}"
        value = pickle.loads(self._result.read_bytes())
        if isinstance(value, Exception):
            raise value
        return value

    def output(self) -> str:
        return self.log.read_text()


def start(config: PretrainConfig, data: Path, run_dir: Path) -> Child:
    """`train` in a process of its own."""
    return Child(train, (config, data, run_dir), run_dir / "log.txt")


def train_here(config: PretrainConfig, data: Path, run_dir: Path) -> Outcome:
    """Start and wait."""
    return start(config, data, run_dir).result()


def free_port() -> int:
    """A port that is free, and that no connection gets before it is used: Linux gives away those above 32767 only."""
    while True:
        port = 10000 + secrets.randbelow(20000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("", port))
            return port


def start_ranks(
    config: PretrainConfig, data: Path, run_dir: Path, ranks: int, job: Callable[..., Any] = train
) -> list[Child]:
    """`job` in `ranks` processes with the environment that torchrun sets."""
    common = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        Child(job, (config, data, run_dir), run_dir / f"log_{r}.txt", {**common, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(ranks)
    ]


def wait_for_iteration(run_dir: Path, iteration: int, child: Child, timeout: float = 120) -> None:
    """Until metrics.jsonl holds a training line of `iteration`."""
    deadline = time.monotonic() + timeout
    while not any(line["iteration"] >= iteration and "loss" in line for line in read_metrics(run_dir)):
        assert child.process.is_alive(), child.output()
        assert time.monotonic() < deadline, child.output()
        time.sleep(0.01)


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """The training and validation lines of metrics.jsonl, without the timings."""
    lines = [line for line in read_metrics(run_dir) if "loss" in line or "valid_loss" in line]
    return [{k: v for k, v in line.items() if not k.startswith(TIMING)} for line in lines]
