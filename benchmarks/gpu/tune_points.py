"""Measure changes to train=one_hopper one by one, many in one process, alternated with the unchanged setting.

    tune_points.py RESULT.json DATA_DIR WORK_DIR DEADLINE [NAME ...]

Points run in the order of PLAN, or of the names given, until DEADLINE (seconds since the epoch). `together` is all
exact changes that gained, the best of each group; `fp8_together` adds the best FP8 setting, and `shipped` is
conf/train/one_hopper.yaml as it is. Repeat the command after a crash: points that are in RESULT.json are left out. Exit
code 3: the rest should run in a new process.
"""

import ctypes
import gc
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from free_memory import forget_experts, free_model
from omegaconf import OmegaConf
from train import ROOT, build, wait_for_turn

# Steps 1 to 3 run without CUDA graphs, 4 captures them, 5 settles.
WARM_UP, PROFILED = 5, 2
LEAK_GB = 25.0
NEXT_PROCESS = 3
GAIN = 0.003  # of a step; less is noise
MODEL = "conf/model/nemotron_3_nano_1b.yaml"
COMMON = (
    "train.seq_length=4096",
    "train.eval_interval=0",
    "checkpoint.save_interval=0",
    "logger.log_interval=100",
    "scheduler.lr_warmup_iters=2",
    "scheduler.lr_wsd_decay_iters=2",
    "optimizer.lr=1e-4",
    "megatron.dataset.num_workers=2",
    "megatron.model.recompute_granularity=null",
    "megatron.model.recompute_modules=null",
)
# At each of these the host waits for the GPU. nano3 checks the gradient norm of every step, and that is on the host.
NO_WAITS = (
    "megatron.ddp.check_for_nan_in_grad=false",
    "megatron.ddp.check_for_large_grads=false",
    "megatron.rerun_state_machine.check_for_nan_in_loss=false",
    "megatron.train.check_optimizer_step_success=false",
    "megatron.train.skip_sync_grad_norm_across_mp=true",
)
# The recipe leaves 20 multiprocessors to communication, which one GPU does not have.
NO_MARGIN = ("megatron.env_vars.NVTE_FWD_LAYERNORM_SM_MARGIN=0", "megatron.env_vars.NVTE_BWD_LAYERNORM_SM_MARGIN=0")
TE_NORMS = (
    *NO_MARGIN,
    "megatron.env_vars.NVTE_NORM_FWD_USE_CUDNN=0",
    "megatron.env_vars.NVTE_NORM_BWD_USE_CUDNN=0",
)
FP8 = "megatron.mixed_precision.fp8=hybrid"
CURRENT = (FP8, "megatron.mixed_precision.fp8_recipe=tensorwise")
# The masters are read and written by TransformerEngine's Adam as 16 bits each; gradients are not copied to fp32 first.
NO_GRAPHS = ("megatron.model.cuda_graph_impl=none", "megatron.model.cuda_graph_modules=[]")
ISOLATE = ("train.document_boundaries=isolate",)
SHORT = "_1500"  # documents of at most 1,500 tokens
# Points are compared with the recipe's own setting, which nano3 changes where the guard watches the gradient norm.
RECIPES_CHECK = "megatron.ddp.check_for_large_grads=true"
ADAM = ("megatron.optimizer.use_precision_aware_optimizer=true", "megatron.mixed_precision.fp8_recipe=delayed")


def shipped() -> tuple[str, ...]:
    """Return the `megatron:` settings of conf/train/one_hopper.yaml as arguments of train.py."""

    def walk(node: dict[str, Any], prefix: str) -> list[str]:
        found = []
        for name, value in node.items():
            path = f"{prefix}.{name}"
            found += walk(value, path) if isinstance(value, dict) else [f"{path}={json.dumps(value)}"]
        return found

    profile = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/train/one_hopper.yaml"))
    assert isinstance(profile, dict)
    return tuple(walk(profile["megatron"], "megatron"))


@dataclass(frozen=True)
class Point:
    """One setting to measure.

    `group` names what the change is about. Points with a group are candidates for `together`, which takes the best one
    of each; "fp8" is for `fp8_together` alone. `data` ends the name of the data's folder.
    """

    name: str
    changes: tuple[str, ...] = ()
    group: str = ""
    micro: int = 16
    batch: int = 16
    timed: int = 12
    profile: bool = False
    data: str = ""

    @property
    def sizes(self) -> list[int | str]:
        """What two points have in common whose losses can be compared."""
        return [self.micro, self.batch, *([self.data] if self.data else [])]

    def arguments(self) -> list[str]:
        """Return the arguments of train.py."""
        steps = WARM_UP + self.timed + PROFILED * self.profile
        sizes = (f"train.micro_batch_size={self.micro}", f"train.global_batch_size={self.batch}")
        check = () if self.name.startswith("shipped") else (RECIPES_CHECK,)
        return [MODEL, *COMMON, *check, f"train.train_iters={steps}", *sizes, *self.changes]


POINTS = {
    point.name: point
    for point in (
        Point("base"),
        Point("no_waits", NO_WAITS, "waits"),
        Point("router_fusion", ("megatron.model.moe_router_fusion=true",), "router"),
        Point("no_margin", NO_MARGIN, "norms"),
        Point("te_norms", TE_NORMS, "norms"),
        Point("fp8_current", CURRENT, "fp8"),
        Point("fp8_delayed", (FP8, "megatron.mixed_precision.fp8_recipe=delayed"), "fp8"),
        Point("fp8_blockwise", (FP8, "megatron.mixed_precision.fp8_recipe=blockwise"), "fp8"),
        Point(
            "fp8_router_padding",
            (
                *CURRENT,
                "megatron.model.moe_token_dispatcher_type=alltoall",
                "megatron.model.moe_router_padding_for_quantization=true",
            ),
            "fp8",
        ),
        Point(
            "graphs_router",
            ("megatron.model.cuda_graph_modules=[attn,mamba,moe_router,moe_preprocess]",),
        ),
        Point("grouped_gemm", ("megatron.env_vars.NVTE_USE_CUTLASS_GROUPED_GEMM=1",), "products"),
        Point(
            "one_bucket",
            ("megatron.ddp.overlap_grad_reduce=false", "megatron.ddp.overlap_param_gather=false"),
        ),
        Point("adam", ADAM),
        Point("te_cross_entropy", ("megatron.model.cross_entropy_fusion_impl=te",)),
        Point("op_fuser", ("megatron.model.use_transformer_engine_op_fuser=true",)),
        Point("together"),
        Point("base_profile", batch=32, timed=8, profile=True),
        Point("together_profile", batch=32, timed=8, profile=True),
        Point("base_32", micro=32, batch=32, timed=8),
        Point("together_32", micro=32, batch=32, timed=8),
        Point("fp8_together", micro=32, batch=32, timed=8),
        Point("fp8_together_profile", batch=32, timed=8, profile=True),
        *(
            Point(f"{name}_{micro}", changes, micro=micro, batch=batch, timed=8, data=SHORT)
            for micro, batch in ((16, 16), (1, 8))
            for name, changes in (("base_short", ()), ("no_graphs", NO_GRAPHS), ("isolate", ISOLATE))
        ),
        Point("base_two", batch=32, timed=6),
        Point("shipped_two", shipped(), batch=32, timed=6),
        Point("shipped_32", shipped(), micro=32, batch=32, timed=6),
        Point("shipped_profile", shipped(), batch=32, timed=6, profile=True),
    )
}
PLAN = (
    "base", "no_waits", "router_fusion", "fp8_current", "no_margin", "base", "te_norms", "fp8_delayed", "graphs_router",
    "base", "together", "base_profile", "together_profile", "base_32", "together_32", "fp8_together",
    "base_short_16", "isolate_16", "no_graphs_16", "base_short_1", "isolate_1", "no_graphs_1",
    "fp8_router_padding", "grouped_gemm", "adam", "op_fuser", "one_bucket", "te_cross_entropy", "fp8_blockwise",
)  # fmt: skip


def keys_of(plan: tuple[str, ...]) -> list[tuple[str, Point]]:
    """Return each point of a plan with a key of its own: a repeated one is numbered."""
    found: list[tuple[str, Point]] = []
    for name in plan:
        times = sum(point.name == name for _, point in found)
        found.append((f"{name}_{times + 1}" if times else name, POINTS[name]))
    return found


def finished(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the finished measurements of a point."""
    return [e for e in result["points"].values() if e["point"] == name and e["state"] == "finished"]


def gains(result: dict[str, Any]) -> dict[str, float]:
    """Return for each measured candidate which share of the step it saves, compared to the median of the base."""
    bases = [e["ms"] for e in finished(result, "base")]
    if not bases:
        return {}
    base = statistics.median(bases)
    return {
        point.name: 1 - min(e["ms"] for e in measured) / base
        for point in POINTS.values()
        if point.group and (measured := finished(result, point.name))
    }


def best_changes(result: dict[str, Any], fp8: bool) -> tuple[list[str], tuple[str, ...]]:
    """Return the names and the changes of the best candidate of each group that gained.

    Args:
        result: The measurements so far.
        fp8: Whether to take the fastest FP8 setting too, even if it gained nothing at this micro batch.
    """
    best: dict[str, tuple[float, str]] = {}
    for name, gain in gains(result).items():
        group = POINTS[name].group
        if gain > (-1.0 if group == "fp8" else GAIN) and (group != "fp8" or fp8):
            best[group] = max(best.get(group, (-1.0, "")), (gain, name))
    names = [name for _, name in best.values()]
    return names, tuple(change for name in names for change in POINTS[name].changes)


def resolve(point: Point, result: dict[str, Any]) -> tuple[Point, list[str]]:
    """Return a point with the changes that the measurements before it decide, and where they come from."""
    if not point.name.startswith(("together", "fp8_together")):
        return point, []
    names, changes = best_changes(result, fp8=point.name.startswith("fp8"))
    return replace(point, changes=(*changes, *point.changes)), names


@dataclass
class Steps:
    """Megatron-Bridge's callback that marks the end of each step on the GPU, without waiting for it."""

    timed: int
    profile: Path | None = None
    ends: list[Any] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    bridge_flops: float = 0.0
    first_step_s: float = 0.0
    _started: float = 0.0
    _profiler: Any = None
    _model: Any = None
    _optimizer: Any = None

    def free(self) -> None:
        """Free the memory of the model, at the end or after an error."""
        if self._model is not None:
            free_model(self._model, self._optimizer)
        self._model = self._optimizer = None

    def on_train_start(self, context: Any) -> None:
        from megatron.bridge.training.utils.flop_utils import num_floating_point_operations

        self._model, self._optimizer = context.model, context.optimizer
        cfg = context.state.cfg
        self.bridge_flops = float(num_floating_point_operations(cfg, cfg.train.global_batch_size))
        self._started = time.perf_counter()

    def on_train_step_end(self, context: Any) -> None:
        import torch

        self.first_step_s = self.first_step_s or time.perf_counter() - self._started
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end.record()
        self.ends.append(end)
        if context.loss_dict and "lm loss" in context.loss_dict:
            self.losses.append(context.loss_dict["lm loss"].detach().clone())
        if self.profile and len(self.ends) == WARM_UP + self.timed:
            torch.cuda.synchronize()
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()
        elif self._profiler and len(self.ends) == WARM_UP + self.timed + PROFILED:
            torch.cuda.synchronize()
            self._profiler.stop()
            self._profiler.export_chrome_trace(str(self.profile))

    def result(self) -> dict[str, Any]:
        """Return milliseconds of each timed step and the loss of every step."""
        import torch

        torch.cuda.synchronize()
        timed = self.ends[WARM_UP - 1 : WARM_UP + self.timed]
        steps = [a.elapsed_time(b) for a, b in itertools.pairwise(timed)]
        return {
            "ms": statistics.median(steps),
            "steps_ms": [round(one, 2) for one in steps],
            "losses": [round(float(loss), 5) for loss in self.losses],
            "bridge_flops": self.bridge_flops,
            "first_step_s": self.first_step_s,
        }


class Environment:
    """Applies the variables of a point's recipe as a fresh process would, and takes them back afterwards."""

    def __init__(self) -> None:
        self._given = set(os.environ)
        self._library: Any = None

    def apply(self, container: Any) -> None:
        """Set the container's variables, also those that TransformerEngine reads only once.

        Args:
            container: Megatron-Bridge's ConfigContainer.
        """
        for name in set(os.environ) - self._given:
            if name.startswith("NVTE_"):
                del os.environ[name]
        for name, value in container.env_vars.items():
            os.environ.setdefault(name, str(value))
        library = self._transformer_engine()
        for function, name in (("fwd", "NVTE_NORM_FWD_USE_CUDNN"), ("bwd", "NVTE_NORM_BWD_USE_CUDNN")):
            enable = getattr(library, f"nvte_enable_cudnn_norm_{function}")
            enable(ctypes.c_bool(os.environ.get(name, "0") == "1"))

    def _transformer_engine(self) -> Any:
        if self._library is None:
            spec = importlib.util.find_spec("transformer_engine")
            assert spec and spec.origin
            (library,) = Path(spec.origin).parent.glob("**/libtransformer_engine.so")
            self._library = ctypes.CDLL(str(library))
        return self._library


def measure(point: Point, data_dir: str, folder: Path, environment: Environment, trace: Path) -> dict[str, Any]:
    """Train one point and return its figures."""
    import torch
    from megatron.bridge.training.pretrain import pretrain

    from nano3.training.checks.model_stats import architecture_from_config, flops_per_token
    from nano3.training.cost.gpus import GPU_KINDS
    from nano3.training.dataset import open_data
    from nano3.training.megatron import schema
    from nano3.training.megatron.backend import prepare, set_environment
    from nano3.training.megatron.isolation import choose_forward_step
    from nano3.training.run import index_cache

    for name in ("RANK", "MASTER_PORT"):  # a free port for each point
        os.environ.pop(name, None)
    set_environment()
    data = open_data(Path(data_dir))
    config = build(data_dir, str(folder), point.arguments())
    container = prepare(config, data, folder)
    container.checkpoint.load = None
    environment.apply(container)
    index_cache.prepare_cache(index_cache.cache_folder(folder, data.fingerprint))
    torch.cuda.init()  # type: ignore[no-untyped-call]
    torch.cuda.reset_peak_memory_stats()  # which fails before the first use of the GPU
    before = torch.cuda.memory_allocated() / 2**30
    steps = Steps(point.timed, trace if point.profile else None)
    try:
        pretrain(config=container, forward_step_func=choose_forward_step(config), callbacks=[steps])
        found = steps.result()
    finally:
        steps.free()
        forget_experts()
    seconds, tokens = found["ms"] / 1e3, point.batch * config.train.seq_length
    model = architecture_from_config(config, schema.load_bundled(config.recipe._target_), data.vocab_size)
    exact = flops_per_token(model, config.train.seq_length) * tokens if model else 0.0
    return found | {
        "tokens_per_s": tokens / seconds,
        "mfu_bridge": found["bridge_flops"] / seconds / GPU_KINDS["h200"].bf16,
        "mfu": exact / seconds / GPU_KINDS["h200"].bf16,
        "memory_gb": torch.cuda.max_memory_allocated() / 2**30 - before,
        "before_gb": before,
    }


def release() -> float:
    """Free what the last point left on the GPU and return what remains allocated, in GB."""
    import torch

    gc.enable()
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated() / 2**30


def write_profile(trace: Path, target: Path) -> str:
    """Write the table of a trace beside the result, and return its first lines."""
    import gzip

    from profile_table import summary, text

    with gzip.open(trace) as f:
        table = summary(json.load(f)["traceEvents"], steps=PROFILED)
    target.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    lines = text(table)
    target.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    return "\n".join(lines[:45])


def table(result: dict[str, Any]) -> list[str]:
    """Return the lines of a table of all points."""
    points = result["points"]
    heads = f"{'ms':>8} {'saved':>7} {'tokens/s':>9} {'MFU':>6} {'exact':>6} {'GB':>6} {'loss':>7} {'differs':>8}"
    lines = [f"{'point':24} {heads}  changes"]
    for key, e in points.items():
        if e["state"] != "finished":
            lines.append(f"{key:24} {e['state']}: {e.get('error', '')[:150]}")
            continue
        same = [o for o in points.values() if o["state"] == "finished" and o["sizes"] == e["sizes"]]
        base = [o for o in same if o["point"].startswith("base")] or same
        saved = 1 - e["ms"] / statistics.median(o["ms"] for o in base)
        differs = max(abs(a - b) for a, b in zip(e["losses"], base[0]["losses"], strict=False))
        figures = f"{e['ms']:8.1f} {saved:7.1%} {e['tokens_per_s']:9,.0f} {e['mfu_bridge']:6.1%} {e['mfu']:6.1%}"
        loss = f"{e['memory_gb']:6.1f} {e['losses'][-1]:7.3f} {differs:8.4f}"
        lines.append(f"{key:24} {figures} {loss}  {' '.join(e['from'])}")
    return lines


class Session:
    """Runs points in this process and keeps the result file."""

    def __init__(self, path: Path, data_dir: str, work_dir: Path, deadline: float) -> None:
        self.path, self.data_dir, self.work_dir, self.deadline = path, data_dir, work_dir, deadline
        self.result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"points": {}}
        self.environment = Environment()
        self.longest = 0.0
        self.finished = self.failures = 0  # in this process

    def save(self) -> None:
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(json.dumps(self.result, indent=1) + "\n")
        temporary.replace(self.path)
        self.path.with_suffix(".txt").write_text("\n".join(table(self.result)) + "\n")

    def run(self, key: str, point: Point) -> bool:
        """Measure one point; return whether this process can go on."""
        point, names = resolve(point, self.result)
        entry: dict[str, Any] = {"point": point.name, "sizes": point.sizes, "from": names}
        entry |= {"changes": list(point.changes), "state": "crashed"}  # until it ends
        self.result["points"][key] = entry
        self.save()
        begin, folder = time.perf_counter(), self.work_dir / key
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / "trace.json.gz"
        try:
            entry |= {
                **measure(point, self.data_dir + point.data, folder, self.environment, trace),
                "state": "finished",
            }
            if point.profile:
                print(write_profile(trace, self.path.with_name(f"tune_{key}")), flush=True)
            self.finished += 1
        except Exception as error:  # a full GPU is a result, and the next point must still run
            traceback.print_exc()
            entry |= {"state": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            self.failures += 1
            alone = os.environ.get("STANDBY") == "none"  # no process follows this one
            if isinstance(error, ImportError):
                self.failures = 3
            elif self.finished == 1 and not alone and key not in self.result.setdefault("repeated", []):
                # Perhaps this process can only train once: the next one tries the same point.
                self.result["repeated"].append(key)
                del self.result["points"][key]
                self.failures = 3
        shutil.rmtree(folder, ignore_errors=True)
        entry["left_gb"] = release()
        entry["seconds"] = time.perf_counter() - begin
        self.save()
        shown = {k: round(v, 3) for k, v in entry.items() if isinstance(v, float)}
        print(f"POINT {key} {entry['state']} {entry.get('error', '')} {shown}", flush=True)
        cuda_is_broken = "CUDA error" in entry.get("error", "")
        return not (cuda_is_broken or self.failures > 2 or entry["left_gb"] > LEAK_GB)

    def run_all(self, plan: list[tuple[str, Point]]) -> int:
        for number, (key, point) in enumerate(plan):
            if key in self.result["points"]:
                continue
            if time.time() + self.longest > self.deadline:
                print(f"no time for {key}", flush=True)
                continue
            begin = time.perf_counter()
            if not self.run(key, point):
                return NEXT_PROCESS
            if number:  # the first one compiles kernels
                self.longest = max(self.longest, min(time.perf_counter() - begin, 30.0))
        return 0


def main() -> int:
    path, data_dir, work_dir, deadline, *names = sys.argv[1:]
    wait_for_turn()
    session = Session(Path(path), data_dir, Path(work_dir), float(deadline))
    code = session.run_all(keys_of(tuple(names) or PLAN))
    if code == 0 and "PLAN_SECONDS" in os.environ:  # the points of the cost model in the same process
        import plan_points

        return plan_points.run(
            session.path.with_name("plan_points.json"), data_dir, session.work_dir, float(os.environ["PLAN_SECONDS"])
        )
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # data loader workers and NCCL threads need not end first
