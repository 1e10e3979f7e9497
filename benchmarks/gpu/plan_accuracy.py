"""Compare what `nano3 plan` predicts with what was measured, and print a table:

    plan_accuracy.py [POINTS.json]

Without a file, all records in benchmarks/results/gpu and the published figures are compared, too.
"""

import json
import os
import statistics
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from train import build

from nano3.training.checks.model_stats import architecture_from_config
from nano3.training.checks.parallel_layout import parallel_layout
from nano3.training.cost.gpus import GPU_KINDS, GpuKind
from nano3.training.cost.memory import estimate_memory
from nano3.training.cost.step_time import MEASURED, Constants, estimate_step
from nano3.training.cost.workload import Workload, workload_from_config
from nano3.training.megatron import schema

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu"
POINTS = RESULTS / "plan_points_h200.json"
MEMORY_LIMIT, TIME_LIMIT = 0.10, 0.20
# The recorded runs shared their host with others: its launches took this much longer than on a dedicated node.
SHARED_HOST = 1.8
# Records and published figures that constants were chosen by: recomputation and the host of the shared machines, the
# host of a dedicated node, and casts to FP8.
CALIBRATE = ("tune_h200_mbs4_recipe", "follow_megatron", "Lightning, 16 H100, bf16", "tune_h200_mbs16_fp8")
ONE_B, MICRO, NANO = (f"conf/model/nemotron_3_nano{end}.yaml" for end in ("_1b", "_micro", ""))
KEEP_ALL = ("megatron.model.recompute_granularity=null", "megatron.model.recompute_modules=null")
ALLTOALL = "megatron.model.moe_token_dispatcher_type=alltoall"
ONE = (ONE_B, "train.seq_length=4096", "train.global_batch_size=32", "train.micro_batch_size=16", *KEEP_ALL)
TWO = (*ONE, "train.global_batch_size=64")
SMALL = (MICRO, "train.seq_length=1024", "train.global_batch_size=32", "train.micro_batch_size=8")
PRODUCTION = (
    NANO,
    "train.seq_length=8192",
    "train.micro_batch_size=1",
    "model.hybrid_layer_pattern=MEM*E",
    "model.expert_model_parallel_size=2",
    "train.global_batch_size=16",
    "model.vocab_size=131072",
    ALLTOALL,
)
FULL_NANO = (NANO, "train.seq_length=8192", "model.vocab_size=131072", "model.expert_model_parallel_size=8")
LIGHTNING = (
    "model.context_parallel_size=2",
    "megatron.model.recompute_modules=[moe,layernorm,core_attn]",
    "megatron.model.cuda_graph_modules=[mamba]",
    "megatron.model.mtp_num_layers=2",
    "megatron.model.mtp_hybrid_override_pattern='*E'",
    "megatron.model.mtp_use_repeated_layer=true",
)
FP8 = "megatron.mixed_precision=bf16_with_fp8_current_scaling_mixed"
MXFP8 = "megatron.mixed_precision=bf16_with_mxfp8_mixed"
# What ended in an interval between two log lines besides training: compilation, validation, a save.
SKIPPED_LINES = 1


@dataclass(frozen=True)
class Measured:
    """One measurement: memory in GB of 2**30 bytes, None if it was not recorded, and how slow its host was."""

    name: str
    role: str
    gpu: GpuKind
    gpus: int
    arguments: tuple[str, ...]
    seconds: float | None
    memory_gb: float | None
    host_factor: float


@dataclass(frozen=True)
class Compared:
    """A measurement and its prediction."""

    measured: Measured
    seconds: float
    memory_gb: float

    @property
    def time_error(self) -> float | None:
        """How much longer than measured was predicted, as a share."""
        return self.seconds / self.measured.seconds - 1 if self.measured.seconds else None

    @property
    def memory_error(self) -> float | None:
        """How much more memory than measured was predicted, as a share."""
        return self.memory_gb / self.measured.memory_gb - 1 if self.measured.memory_gb else None


# File, GPU, number of GPUs, arguments of train.py.
RECORDS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("tune_h200_mbs16_no_recompute", "h200", 1, (*ONE, ALLTOALL)),
    ("tune_h200_mbs8_no_recompute", "h200", 1, (*ONE, ALLTOALL, "train.micro_batch_size=8")),
    (
        "tune_h200_mbs4_recipe",
        "h200",
        1,
        (
            *ONE,
            ALLTOALL,
            "train.micro_batch_size=4",
            "megatron.model.recompute_granularity=selective",
            "megatron.model.recompute_modules=[moe,layernorm]",
        ),
    ),
    ("tune_h200_mbs16_fp8", "h200", 1, (*ONE, ALLTOALL, FP8)),
    ("one_hopper_h200", "h200", 1, ONE),
    ("tune_h100_allgather", "h100", 1, ONE),
    ("tune_h100_x2_base", "h100", 1, ONE),
    ("tune_h100_router_fusion", "h100", 1, (*ONE, ALLTOALL)),
    ("tune_h100_te_cross_entropy", "h100", 1, (*ONE, ALLTOALL)),
    ("tune_h100_chunk256", "h100", 1, (*ONE, ALLTOALL, "model.mamba_chunk_size=256")),
    ("ranks_h100_x2", "h100", 2, TWO),
    ("ranks_h200_x2_data", "h200", 2, TWO),
    ("ranks_h200_x2_experts", "h200", 2, (*TWO, "model.expert_model_parallel_size=2", ALLTOALL)),
    (
        "ranks_h200_x2_tensor",
        "h200",
        2,
        (*TWO, "model.tensor_model_parallel_size=2", "model.sequence_parallel=true"),
    ),
    ("ranks_h200_x2_pipeline", "h200", 2, (*TWO, "model.pipeline_model_parallel_size=2")),
    ("ranks_h200_x2_context", "h200", 2, (*TWO, "model.context_parallel_size=2")),
    ("recipe_h100_x2", "h100", 2, PRODUCTION),
    ("undisturbed", "h100", 1, SMALL),
    ("disturbed", "h100", 1, SMALL),
    ("follow_megatron", "h100", 1, SMALL),
    ("follow_megatron_h200", "h200", 1, SMALL),
)
# Tokens per second and GPU, published by NVIDIA for Megatron-Bridge, with the settings of
# megatron.bridge.perf_recipes.nemotronh: forced balance and mock data. Lightning's are of its pretraining recipe, with
# real data and natural routing.
PUBLISHED: tuple[tuple[str, str, int, float, tuple[str, ...]], ...] = (
    (
        "Nano, 16 H100, bf16",
        "h100",
        16,
        14195,
        (*FULL_NANO, "train.global_batch_size=1024", "train.micro_batch_size=1"),
    ),
    (
        "Lightning, 16 H100, bf16",
        "h100",
        16,
        7110,
        (*FULL_NANO, *LIGHTNING, "train.global_batch_size=512", "train.micro_batch_size=1"),
    ),
    (
        "Nano, 8 GB200, MXFP8",
        "gb200",
        8,
        33500,
        (*FULL_NANO, *KEEP_ALL, MXFP8, "train.global_batch_size=512", "train.micro_batch_size=2"),
    ),
    (
        "Nano, 8 GB300, MXFP8",
        "gb300",
        8,
        42094,
        (*FULL_NANO, *KEEP_ALL, MXFP8, "train.global_batch_size=512", "train.micro_batch_size=4"),
    ),
)


def _role(name: str, otherwise: str) -> str:
    return "calibrate" if name in CALIBRATE else otherwise


def points(path: Path) -> list[Measured]:
    """Return the finished points of a file that plan_points.py wrote."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    gpu = next(g for g in GPU_KINDS.values() if g.title in content["environment"]["gpu"])
    return [
        Measured(
            name,
            entry["role"],
            gpu,
            1,
            tuple(entry["arguments"]),
            entry["seconds_per_iteration"],
            entry["memory_gb"] - entry["before_gb"],
            SHARED_HOST,
        )
        for name, entry in content["points"].items()
        if entry["state"] == "finished"
    ]


def records() -> list[Measured]:
    """Return the recorded runs: the median of the intervals after the first one."""
    found = []
    for name, gpu, gpus, arguments in RECORDS:
        lines = [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "seconds_per_iteration" in line]
        seconds = statistics.median(line["seconds_per_iteration"] for line in lines[SKIPPED_LINES:])
        memory = max(line["memory_gb"] for line in lines)
        found.append(
            Measured(name, _role(name, "record"), GPU_KINDS[gpu], gpus, arguments, seconds, memory, SHARED_HOST)
        )
    return found


def published() -> list[Measured]:
    """Return the published figures as seconds per iteration."""
    found = []
    for name, gpu, gpus, rate, arguments in PUBLISHED:
        config = build("data", "run", list(arguments))
        seconds = config.train.global_batch_size * config.train.seq_length / gpus / rate
        found.append(Measured(name, _role(name, "published"), GPU_KINDS[gpu], gpus, arguments, seconds, None, 1.0))
    return found


def workload(measured: Measured, vocab_size: int = 4096) -> Workload:
    """Return the workload of a measurement. The data has 4,096 ids unless the model says otherwise."""
    os.environ.pop("WORLD_SIZE", None)
    config = build("data", "run", list(measured.arguments))
    config.cluster.nproc_per_node = measured.gpus
    known = schema.load_bundled(config.recipe._target_)
    model = architecture_from_config(config, known, vocab_size)
    assert model is not None
    return workload_from_config(config, known, model, parallel_layout(config, known))


def compare(measured: Measured, constants: Constants = MEASURED) -> Compared:
    """Return a measurement with its prediction."""
    w = workload(measured)
    here = replace(constants, host_factor=measured.host_factor)
    return Compared(measured, estimate_step(w, measured.gpu, here).total, estimate_memory(w).total / 2**30)


def table(compared: list[Compared]) -> str:
    """Return the comparison as text: seconds and GB, measured, predicted and how far off."""
    lines = [
        f"{'run':<30} {'use':<10} {'s':>8} {'predicted':>9} {'off':>6}   {'GB':>6} {'predicted':>9} {'off':>6}",
    ]
    for c in compared:
        m = c.measured
        seconds, memory = (
            _cells(m.seconds, c.seconds, c.time_error, 3),
            _cells(m.memory_gb, c.memory_gb, c.memory_error, 1),
        )
        lines.append(
            f"{m.name:<30} {m.role:<10} {seconds[0]:>8} {seconds[1]:>9} {seconds[2]:>6}   "
            f"{memory[0]:>6} {memory[1]:>9} {memory[2]:>6}"
        )
    return "\n".join(lines)


def _cells(measured: float | None, predicted: float, error: float | None, digits: int) -> tuple[str, str, str]:
    if measured is None or error is None:
        return "", f"{predicted:.{digits}f}", ""
    return f"{measured:.{digits}f}", f"{predicted:.{digits}f}", f"{error:+.0%}"


def outside(compared: list[Compared]) -> dict[str, list[str]]:
    """Return the names of measurements whose prediction is further off than the limits, for memory and time."""

    def far(error: float | None, limit: float) -> bool:
        return error is not None and abs(error) > limit

    return {
        "memory": [c.measured.name for c in compared if far(c.memory_error, MEMORY_LIMIT)],
        "time": [c.measured.name for c in compared if far(c.time_error, TIME_LIMIT)],
    }


@cache
def everything() -> list[Compared]:
    """Return all measurements that are recorded, with their predictions."""
    return [compare(m) for m in [*points(POINTS), *records(), *published()]]


def report(compared: list[Compared]) -> str:
    """Return the table and the names of those outside the limits."""
    lines = [table(compared)]
    for what, names in outside(compared).items():
        limit = MEMORY_LIMIT if what == "memory" else TIME_LIMIT
        lines.append(f"{what} off by more than {limit:.0%}: {', '.join(names) or 'none'}")
    return "\n".join(lines)


def main() -> None:
    print(report([compare(m) for m in points(Path(sys.argv[1]))] if len(sys.argv) > 1 else everything()))


if __name__ == "__main__":
    main()
