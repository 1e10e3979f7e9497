"""Measure memory and step time of small models in one process, to calibrate and test the cost model of `nano3 plan`.

    plan_points.py RESULT.json DATA_DIR WORK_DIR SECONDS

Points run in the order of POINTS until SECONDS have passed. A point that is in RESULT.json
already is left out, so the command can be repeated after a crash. Exit code 3: a point failed, or much of the memory of
earlier points is still allocated; the rest should run in a new process.
"""

import gc
import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from free_memory import forget_experts, free_model
from train import build

STEPS = 13
# Steps 1 to 3 run without CUDA graphs, 4 captures them, 5 settles. Two blocks of four are timed.
BLOCKS = ((6, 9), (10, 13))
LEAK_GB = 40.0
NEXT_PROCESS = 3

COMMON = (
    "train.eval_interval=0",
    "checkpoint.save_interval=0",
    "logger.log_interval=100",
    f"train.train_iters={STEPS}",
    "scheduler.lr_warmup_iters=2",
    "scheduler.lr_wsd_decay_iters=2",
    "optimizer.lr=1e-4",
    "megatron.dataset.num_workers=2",
)
KEEP_ALL = ("megatron.model.recompute_granularity=null", "megatron.model.recompute_modules=null")
AS_RECIPE = ("megatron.model.recompute_granularity=selective", "megatron.model.recompute_modules=[moe,layernorm]")
NO_GRAPHS = ("megatron.model.cuda_graph_impl=none", "megatron.model.cuda_graph_modules=[]")
FULL = (
    "megatron.model.recompute_granularity=full",
    "megatron.model.recompute_method=uniform",
    "megatron.model.recompute_num_layers=1",
    "megatron.model.recompute_modules=null",
)
ONE_B, MICRO = "conf/model/nemotron_3_nano_1b.yaml", "conf/model/nemotron_3_nano_micro.yaml"


@dataclass(frozen=True)
class Point:
    """One model to measure.

    `role` is "calibrate" or "test"; constants of the cost model are fitted to the former alone. `layers` is the hybrid
    pattern, `batch` the number of samples per step, `micro` of those at a time.
    """

    name: str
    role: str
    layers: str
    seq: int
    micro: int
    batch: int
    changes: tuple[str, ...] = KEEP_ALL
    model: str = ONE_B

    def arguments(self) -> list[str]:
        """Return the arguments of train.py."""
        sizes = {"seq_length": self.seq, "micro_batch_size": self.micro, "global_batch_size": self.batch}
        given = [f"train.{key}={value}" for key, value in sizes.items()]
        return [self.model, *COMMON, f"model.hybrid_layer_pattern={self.layers}", *given, *self.changes]


CAL, TEST = "calibrate", "test"
POINTS = (
    Point("base", CAL, "MEM*EMEM", 4096, 8, 16),
    Point("micro_batch_4", TEST, "MEM*EMEM", 4096, 4, 16),
    Point("mamba", CAL, "MMMMMMMM", 4096, 8, 16),
    Point("experts", CAL, "MEEE", 4096, 8, 16),
    Point("attention", CAL, "M*******", 4096, 8, 16),
    Point("recompute_length_8192", TEST, "MEM*EMEM", 8192, 4, 8, AS_RECIPE),
    Point("vocabulary", CAL, "M", 4096, 4, 16, (*KEEP_ALL, "model.vocab_size=131072")),
    Point("micro_batch_1", CAL, "MEM*EMEM", 4096, 1, 8),
    Point(
        "production_layers",
        CAL,
        "MEM*E",
        8192,
        1,
        8,
        (*AS_RECIPE, "model.num_moe_experts=128", "model.vocab_size=131072"),
    ),
    Point("recompute_experts", CAL, "MEEE", 4096, 8, 16, AS_RECIPE),
    Point(
        "narrow_64_experts",
        TEST,
        "MEMEM*EMEMEM*EMEM",
        4096,
        4,
        16,
        (
            *KEEP_ALL,
            "model.hidden_size=2048",
            "model.num_attention_heads=16",
            "model.mamba_num_heads=48",
            "model.num_moe_experts=64",
            "model.moe_router_topk=4",
            "model.moe_ffn_hidden_size=1024",
            "model.moe_shared_expert_intermediate_size=2048",
        ),
    ),
    Point("long_attention", CAL, "M*******", 32768, 1, 2),
    Point("experts_128", CAL, "MEEE", 4096, 4, 16, (*KEEP_ALL, "model.num_moe_experts=128")),
    Point("micro_batch_16", TEST, "MEM*EMEM", 4096, 16, 32),
    Point("micro_model", TEST, "MEM*EMEM", 1024, 8, 32, KEEP_ALL, MICRO),
    Point("alltoall", CAL, "MEEE", 4096, 8, 16, (*KEEP_ALL, "megatron.model.moe_token_dispatcher_type=alltoall")),
    Point("recompute_all", CAL, "MEM*EMEM", 4096, 8, 16, (*FULL, *NO_GRAPHS)),
    Point("deep_2_of_8192", TEST, "MEMEM*EMEMEM*EMEM", 8192, 2, 8),
    Point("no_graphs", CAL, "MEM*EMEM", 4096, 1, 8, (*KEEP_ALL, *NO_GRAPHS)),
    Point("dense", CAL, "M-------", 4096, 8, 16, (*KEEP_ALL, "model.ffn_hidden_size=10752")),
    Point("length_16384", TEST, "MEM*EMEM", 16384, 1, 4, AS_RECIPE),
    Point("recompute_all_length_16384", TEST, "MEM*EMEMEM*E", 16384, 2, 4, (*FULL, *NO_GRAPHS)),
)


@dataclass
class Measure:
    """Megatron-Bridge's callback that records memory and time of each step."""

    step_end: dict[int, float] = field(default_factory=dict)
    allocated: dict[int, float] = field(default_factory=dict)
    peak: dict[int, float] = field(default_factory=dict)
    at_start: float = 0.0
    loss: float | None = None
    model: Any = None
    optimizer: Any = None

    def on_train_start(self, context: Any) -> None:
        import torch

        self.model, self.optimizer = context.model, context.optimizer
        torch.cuda.synchronize()
        self.at_start = torch.cuda.memory_allocated() / 2**30
        self.step_end[0] = time.perf_counter()

    def on_train_step_end(self, context: Any) -> None:
        import torch

        step = int(context.state.train_state.step) + 1
        if step > BLOCKS[0][0] - 1 and step not in [last for _, last in BLOCKS]:
            return  # let the host run ahead, as it does in training
        torch.cuda.synchronize()
        self.step_end[step] = time.perf_counter()
        self.peak[step] = torch.cuda.max_memory_allocated() / 2**30
        self.allocated[step] = torch.cuda.memory_allocated() / 2**30
        losses = context.loss_dict or {}
        self.loss = float(losses["lm loss"]) if "lm loss" in losses else self.loss

    def result(self) -> dict[str, Any]:
        """Return the figures of a finished point; memory in GB of 2**30 bytes."""
        import torch

        blocks = [(self.step_end[last] - self.step_end[first - 1]) / (last - first + 1) for first, last in BLOCKS]
        return {
            "seconds_per_iteration": min(blocks),
            "blocks_s": blocks,
            "first_step_s": self.step_end[1] - self.step_end[0],
            "memory_gb": max(self.peak.values()),  # with what earlier points left: before_gb
            "memory_before_graphs_gb": self.peak[3],
            "model_gb": self.at_start,
            "between_steps_gb": self.allocated[3],
            "between_steps_with_graphs_gb": self.allocated[STEPS],
            "reserved_gb": torch.cuda.max_memory_reserved() / 2**30,
            "loss": self.loss,
        }


def measure(point: Point, data_dir: str, folder: Path) -> dict[str, Any]:
    """Train one point and return its figures."""
    import torch
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    from nano3.training.dataset import open_data
    from nano3.training.megatron.backend import prepare, set_environment
    from nano3.training.run import index_cache

    for name in ("RANK", "MASTER_PORT"):  # a free port for each point
        os.environ.pop(name, None)
    set_environment()
    begin = time.perf_counter()
    data = open_data(Path(data_dir))
    config = build(data_dir, str(folder), point.arguments())
    container = prepare(config, data, folder)
    container.checkpoint.load = None
    index_cache.prepare_cache(index_cache.cache_folder(folder, data.fingerprint))
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats()  # which fails before the first use of the GPU
    hook, before = Measure(), torch.cuda.memory_allocated() / 2**30
    try:
        pretrain(config=container, forward_step_func=forward_step, callbacks=[hook])
    finally:
        if hook.model is not None:
            free_model(hook.model, hook.optimizer)
        hook.model = hook.optimizer = None
        forget_experts()
    return hook.result() | {"before_gb": before, "seconds": time.perf_counter() - begin}


def release() -> float:
    """Free what the last point left on the GPU and return what remains allocated, in GB."""
    import torch

    gc.enable()
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated() / 2**30


def environment() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_properties(0)
    return {"gpu": device.name, "gpu_memory_gb": device.total_memory / 2**30, "torch": torch.__version__}


def run(result_path: Path, data_dir: str, work_dir: Path, seconds: float) -> int:
    """Measure the points that are not in the result yet.

    Args:
        result_path: The JSON file of results.
        data_dir: The prepared data.
        work_dir: A folder for the runs.
        seconds: After them no further point starts.
    """
    started = time.perf_counter()
    result = json.loads(result_path.read_text()) if result_path.exists() else {"points": {}}

    def save() -> None:
        temporary = result_path.with_suffix(".partial")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(result_path)

    longest = 0.0
    for point in POINTS:
        left = seconds - (time.perf_counter() - started)
        if point.name in result["points"] or left < longest:
            continue
        entry = {"role": point.role, "arguments": point.arguments(), "state": "started"}
        result["points"][point.name] = entry
        save()
        begin = time.perf_counter()
        folder = work_dir / point.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            entry |= {**measure(point, data_dir, folder), "state": "finished"}
        except Exception as error:  # an out-of-memory error is a result; the next point must still run
            traceback.print_exc()
            entry |= {"state": "failed", "error": f"{type(error).__name__}: {str(error)[:300]}"}
        shutil.rmtree(folder, ignore_errors=True)
        entry["left_gb"] = release()
        result.setdefault("environment", environment())
        save()
        used = time.perf_counter() - begin
        figures = {k: round(v, 3) for k, v in entry.items() if isinstance(v, float)}
        print(f"POINT {point.name} {entry['state']} {used:.1f} s {figures}", flush=True)
        if len(result["points"]) > 1:  # the first one compiles kernels
            longest = max(longest, min(used, 40.0))
        if entry["left_gb"] > LEAK_GB or entry["state"] == "failed":
            return NEXT_PROCESS
    return 0


def main() -> int:
    result_path, data_dir, work_dir, seconds = sys.argv[1:]
    return run(Path(result_path), data_dir, Path(work_dir), float(seconds))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # data loader workers and NCCL threads need not end first
