"""The evaluation scripts of the GPU benchmark, and that its page agrees with the recorded results."""

import ast
import gzip
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))


def event(name: str, start: float, length: float, category: str = "kernel") -> dict:
    return {"name": name, "ts": start, "dur": length, "cat": category, "ph": "X"}


@pytest.mark.parametrize(
    ("intervals", "total"),
    [
        ([], 0),
        ([(0, 5)], 5),
        ([(0, 5), (5, 7)], 7),
        ([(0, 5), (3, 7)], 7),
        ([(0, 10), (2, 3)], 10),
        ([(8, 9), (0, 2)], 3),
        ([(0, 4), (0, 4), (6, 8)], 6),
    ],
    ids=["none", "one", "touching", "overlapping", "within", "unsorted", "twice"],
)
def test_concurrent_kernels_are_counted_once(intervals: list[tuple[float, float]], total: float) -> None:
    import profile_table

    assert profile_table.union(intervals) == total


@pytest.mark.parametrize("kernel", json.loads((RESULTS / "profile_h100.json").read_text())["kernels"])
def test_every_large_kernel_of_the_recorded_profile_has_its_kind(kernel: dict[str, str]) -> None:
    import profile_table

    assert profile_table.kind_of(kernel["name"]) == kernel["kind"]


@pytest.mark.parametrize("name", ["ReduceScatter_Sum_bf16_RING_LL", "AllGather_RING_LL", "SendRecv"])
def test_collectives_are_no_routing(name: str) -> None:
    import profile_table

    assert profile_table.kind_of(f"ncclDevKernel_{name}(ncclDevKernelArgsStorage<4096ul>)") == "collectives"


def test_a_trace_becomes_milliseconds_per_step(tmp_path: Path) -> None:
    """Two steps: 3 + 1 ms of products, 2 ms of scan of which 1 ms runs beside a product, a copy, a gap of 3 ms."""
    events = [
        event("ProfilerStep#10", 0, 4000, "user_annotation"),
        event("ProfilerStep#11", 4000, 6000, "user_annotation"),
        event("nvjet_sm90_tst_128x160", 0, 3000),
        event("_chunk_scan_fwd_kernel", 2000, 2000),
        event("Memcpy DtoD (Device -> Device)", 4000, 1000, "gpu_memcpy"),
        event("nvjet_sm90_tst_128x160", 8000, 1000),
        event("aten::mm", 0, 9000, "cpu_op"),
    ]
    trace, table = tmp_path / "trace.json.gz", tmp_path / "table.json"
    with gzip.open(trace, "wt") as f:
        json.dump({"traceEvents": events}, f)
    script = [sys.executable, str(GPU / "profile_table.py"), str(trace), "--json", str(table)]
    shown = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    found = json.loads(table.read_text())
    assert found["kinds_ms"] == {"matrix products": 2.0, "Mamba": 1.0, "copies": 0.5}
    assert (found["ms_per_step"], found["busy_ms"], found["idle_ms"], found["launches"]) == (4.5, 3.0, 1.5, 2.0)
    assert "2 steps, each 4.5 ms" in shown and "GPU busy 3.0 ms, idle 1.5 ms" in shown


def test_the_comparison_that_is_shown_is_the_recorded_one() -> None:
    """The losses in the README are those of the files."""
    text = (RESULTS / "README.md").read_text()
    row = {name: text.split(f"\n| {name} |", 1)[1].split("\n", 1)[0] for name in ("step", "Megatron", "transformers")}
    steps = [int(cell) for cell in row["step"].strip(" |").split("|")]
    for name in ("Megatron", "transformers"):
        lines = (RESULTS / f"follow_{name.lower()}.jsonl").read_text().splitlines()
        losses = {m["iteration"]: m["loss"] for m in map(json.loads, lines) if "loss" in m}
        shown = [float(cell) for cell in row[name].strip(" |").split("|")]
        assert shown == [pytest.approx(losses[i], abs=6e-5) for i in steps]


def test_a_transcript_holds_commands_in_order_and_nothing_of_megatron(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import transcript

    logs, report = tmp_path / "logs", tmp_path / "tests_rest.txt"
    logs.mkdir()
    (logs / "100.2_7.txt").write_text(
        "$ python -m nano3.pretrain two\nINFO:megatron: noise\nerror: no\n[exit code 2]\n"
    )
    (logs / "99.5_80.txt").write_text(
        "$ python one /tmp/nano3-gpu/tests/data\niteration  5/40  loss 7.1\n[exit code 0]\n"
    )
    report.write_text(
        "[gw1] [ 50%] PASSED tests/a\nnoise\nPASSED tests/a\n[gw0] [100%] FAILED tests/b\n=== 1 failed, 1 passed ===\n"
    )
    monkeypatch.setattr(sys, "argv", ["transcript.py", str(logs), str(report)])
    transcript.main()
    assert capsys.readouterr().out.splitlines() == [
        "######## tests_rest.txt",
        "[gw1] [ 50%] PASSED tests/a",
        "[gw0] [100%] FAILED tests/b",
        "=== 1 failed, 1 passed ===",
        "",
        "$ python one tests/data",
        "iteration  5/40  loss 7.1",
        "[exit code 0]",
        "",
        "$ python -m nano3.pretrain two",
        "error: no",
        "[exit code 2]",
        "",
    ]


def make_cache(folder: Path) -> Path:
    """A kernel cache like Triton's: binaries, metadata and results of autotuning between files of other stages."""
    kernel = folder / "kernels/nvidia-h200_torch-2.11.0_triton-3.6.0/triton/ABC"
    kernel.mkdir(parents=True)
    names = [
        "k.cubin",
        "k.json",
        "__grp__k.json",
        "k.autotune.json",
        "k.ptx",
        "k.ttir",
        "k.ttgir",
        "k.llir",
        "k.source",
    ]
    for name in names:
        (kernel / name).write_bytes(name.encode() * 100)
    inductor = kernel.parents[1] / "inductor/fxgraph/aa"
    inductor.mkdir(parents=True)
    (inductor / "graph").write_bytes(b"graph")
    (kernel.parent / "tmp.pid_7").mkdir()
    (kernel.parent / "tmp.pid_7/k.cubin").write_bytes(b"half")
    return folder


def test_compiled_kernels_are_taken_to_the_next_machine(tmp_path: Path) -> None:
    import kernels

    cache, packed, other = make_cache(tmp_path / "cache"), tmp_path / "kernels.tar.zst", tmp_path / "other"
    assert "kept in kernels.tar.zst: 5 files" in kernels.pack(cache, packed)
    assert kernels.unpack(packed, other) == "KERNELS unpacked: 5 files"
    there = {str(p.relative_to(other)): p.read_bytes() for p in other.rglob("*") if p.is_file()}
    assert there == {str(p.relative_to(cache)): p.read_bytes() for p in kernels.kept_files(cache)}
    assert {Path(name).name for name in there} == {"k.cubin", "k.json", "__grp__k.json", "k.autotune.json", "graph"}


def test_too_many_and_damaged_kernels_are_left_out(tmp_path: Path) -> None:
    import kernels

    cache, packed = make_cache(tmp_path / "cache"), tmp_path / "kernels.tar.zst"
    assert "not kept: 5 files" in kernels.pack(cache, packed, largest_mib=0.0001)
    assert not packed.exists()
    assert kernels.pack(tmp_path / "none", packed) == "KERNELS none are cached"
    kernels.pack(cache, packed)
    for damaged in (packed.read_bytes()[:200], b"", b"noise" * 100):
        packed.write_bytes(damaged)
        assert "not unpacked" in kernels.unpack(packed, tmp_path / "other")


def test_run_all_brings_kernels_along(tmp_path: Path) -> None:
    """The whole script without a stage: with kernels in .gpu, which end up in the cache and in $OUT again."""
    import kernels

    root, work, out = tmp_path / "root", tmp_path / "work", tmp_path / "out"
    shutil.copytree(GPU, root / "benchmarks/gpu")
    (root / ".gpu").mkdir()
    kernels.pack(make_cache(tmp_path / "cache"), root / ".gpu/kernels.tar.zst")
    (work / "data").mkdir(parents=True)  # prepared before
    env = {**os.environ, "K": str(work), "OUT": str(out), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = ["bash", str(root / "benchmarks/gpu/run_all.sh")]
    text = subprocess.run(script, check=True, capture_output=True, text=True, env=env).stdout
    assert "KERNELS unpacked: 5 files" in text and "KERNELS kept in kernels.tar.zst: 5 files" in text
    assert len(kernels.kept_files(work / "cache")) == 5
    assert (out / "kernels.tar.zst").read_bytes() == (root / ".gpu/kernels.tar.zst").read_bytes()


# Megatron-Core's lines, as train.py formats them: seconds, process, message. The writer's tasks 0 and 1 are no saves.
MCORE_LOG = [
    "101.200 7 rank: 0, takes 0.01 to schedule async ckpt ",
    "102.500 8 0 has completed saving 1",
    "106.050 7 rank: 0, starting state dict save",
    "106.070 7 rank: 0, plan time: 0.02",
    "106.080 7 106.08 rank: 0, write(async) time: 0.01",
    "106.240 7 rank: 0, takes 0.15 to finish D2H ",
    "106.250 7 rank: 0, takes 0.16 to schedule async ckpt ",
    "107.000 8 107.0, rank: 0, write(sync,threads): 0.7",
    "112.060 7 rank: 0, starting state dict save",
    "112.090 7 rank: 0, plan time: 0.03",
    "112.100 7 112.1 rank: 0, write(async) time: 0.01",
    "112.200 7 rank: 0, takes 0.1 to finish D2H ",
    "112.200 7 rank: 0, takes 0.1 to schedule async ckpt ",
]


def test_the_table_of_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four steps of half a second with saves at 2 and 4: the first one was removed later."""
    import saving_table

    lines: list[dict[str, float]] = [{"start": 1, "iteration": 0, "time": 100.0}]
    lines += [
        {"iteration": i, "loss": 7.0, "seconds_per_iteration": 0.5, "time": 100.0 + i, "seconds/step": 0.5}
        for i in range(1, 13)
    ]
    lines[7]["seconds/save"] = 0.25
    lines.append({"iteration": 12, "exit_code": 0, "time": 116.0, "seconds/save": 3.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = tmp_path / "checkpoints/iter_0000006/__0_0.distcp"
    written.parent.mkdir(parents=True)
    written.write_bytes(bytes(10**6))
    os.utime(written, (108.0, 108.0))
    monkeypatch.setattr(sys, "argv", ["saving_table.py", str(tmp_path), "6"])
    saving_table.main()
    table = [
        "SAVE at 6: training waited 0.25 s; 0.0 GB written after 2.0 s",
        "  steps meanwhile: 4, median 0.500 s",
        "SAVE at 12: training waited 3.00 s; 0.0 GB written after 0.0 s",
        "STEPS before the first save: median 0.500 s",
    ]
    assert capsys.readouterr().out.splitlines() == table
    log = tmp_path / "save.log"
    log.write_text("\n".join(MCORE_LOG) + "\n")
    monkeypatch.setattr(sys, "argv", ["saving_table.py", str(tmp_path), "6", str(log)])
    saving_table.main()
    parts = ["state dict", "planning", "collecting tensors", "copy to the host", "handed over"]
    times = [(0.05, 0.02, 0.01, 0.15, 0.25), (0.06, 0.03, 0.01, 0.1, 0.2)]
    rows = ["  " + ", ".join(f"{p} {s:.2f} s" for p, s in zip(parts, row, strict=True)) for row in times]
    task = "TASK of the writer after the first step: 1.5 s; steps 1, median 0.500 s; later 10, median 0.500 s"
    assert capsys.readouterr().out.splitlines() == [task, table[0], rows[0], *table[1:3], rows[1], table[3]]


@pytest.fixture
def gpu_tests(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module tests/gpu/test_gpu_saving.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "gpu"))
    return importlib.import_module("test_gpu_saving")


def test_kills_are_spread_over_a_save(gpu_tests: ModuleType) -> None:
    moments = [gpu_tests.kill_moments(seed) for seed in range(gpu_tests.RUNS)]
    assert {saves for one in moments for saves, _ in one} == {1, 2}
    for one in moments:
        parts = sorted(int(seconds / gpu_tests.SPREAD_S * gpu_tests.KILLS) for _, seconds in one)
        assert parts == list(range(gpu_tests.KILLS))


def test_lost_and_too_few_kills_are_found(gpu_tests: ModuleType) -> None:
    """The kills of the recorded run, and the same with one more interval lost, a fall back, and none during a save."""
    text = (RESULTS / "tests_h200_saving_guard.txt").read_text()
    kills = ast.literal_eval(re.search(r"begun and kept iterations: (\[\[.*\]\])$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert gpu_tests.kill_problems(kills) == []
    assert gpu_tests.kill_problems([[(9, 3), *kills[0]], *kills[1:]]) == ["run 0: more than one interval lost: (9, 3)"]
    (fell,) = gpu_tests.kill_problems([[(15, 12), (3, 0)], *kills])
    assert "fell behind" in fell
    assert "only 0 kills" in gpu_tests.kill_problems([[(3, 3)]])[0]


# Tests that have not passed on a GPU as they are written; why is in the transcript.
# Its bounds for the noise of two runs were too narrow in the last transcript, and were mended after it.
NOT_YET_PASSED = {"test_a_poisoned_batch_is_rolled_back_and_left_out"}
TRANSCRIPTS = (
    "tests_h200_x2.txt",
    "tests_h200_saving_guard.txt",
    "tests_h200_kills.txt",
    "tests_h200_writers.txt",
    "tests_h200_poisoned.txt",
    "tests_h200_order.txt",
    "tests_h200_reserved.txt",
    "tests_h200_boundaries.txt",
    "tests_h200_ahead.txt",
    "lightning_h200.txt",
    "tests_h200_kills_again.txt",
    "slurm_h200.txt",
    "tests_h200_alone.txt",
    "tests_h200_layouts.txt",
    "tests_h200_poisoned_again.txt",
    "tests_h200_hangs.txt",
)


def test_the_transcripts_have_every_gpu_test_passed() -> None:
    """A new test must have run on a GPU. Parametrized tests count once, and tests that were removed do not count."""
    text = "".join((RESULTS / name).read_text() for name in TRANSCRIPTS)
    found = re.findall(r"(PASSED|FAILED) tests/gpu/\w+\.py::(\w+)", text)
    verdicts = {name: verdict for verdict, name in found}  # the transcripts are in the order of time
    passed = {name for name, verdict in verdicts.items() if verdict == "PASSED"}
    written = {
        name
        for path in (Path(__file__).parents[1] / "gpu").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert written - passed == NOT_YET_PASSED
    assert verdicts.keys() - passed <= NOT_YET_PASSED


def test_every_point_of_the_cost_model_is_a_run_that_nano3_accepts() -> None:
    import plan_points
    from train import build

    from nano3.training.checks.model_stats import architecture_from_config, divisibility_problems
    from nano3.training.checks.parallel_layout import layout_problems, parallel_layout
    from nano3.training.megatron import schema
    from nano3.training.megatron.backend import check

    roles = [point.role for point in plan_points.POINTS]
    assert len({point.name for point in plan_points.POINTS}) == len(roles)
    assert min(roles.count("calibrate"), roles.count("test")) >= 8
    for point in plan_points.POINTS:
        config = build("data", "run", point.arguments())
        known = schema.load_bundled(config.recipe._target_)
        model = architecture_from_config(config, known, 4096)
        assert model is not None
        problems = [*check(config), *layout_problems(config, parallel_layout(config, known))]
        assert (point.name, problems + divisibility_problems(model, 1)) == (point.name, [])


def test_kernels_side_by_side_share_their_time_and_gaps_name_their_neighbors() -> None:
    import profile_table

    found = profile_table.shares([(0, 10, "a"), (4, 10, "b"), (4, 8, "b"), (20, 21, "c")])
    assert found == {"a": 4 + 4 / 3 + 1, "b": 8 / 3 + 1, "c": 1}
    kernels = [event("long", 0, 10), event("within", 2, 3), event("next", 12, 1), event("last", 20, 1)]
    assert profile_table.gaps(kernels) == [(2, "long", "next"), (7, "next", "last")]
    table = profile_table.summary([*kernels, event("cudaStreamSynchronize", 13, 6, "cuda_runtime")], steps=2)
    assert table["gaps"][0] == {"ms": 0.004, "times": 0.5, "name": "next -> last"}
    assert table["waits"] == [{"ms": 0.003, "times": 0.5, "name": "cudaStreamSynchronize"}]
    assert [line for line in profile_table.text(table) if "next -> last" in line]


def tuned(point: str, ms: float) -> dict:
    """A finished measurement of one point, with one micro batch."""
    losses = {"losses": [8.0, 7.5], "memory_gb": 50.0, "tokens_per_s": 1e5, "mfu_bridge": 0.4, "mfu": 0.36}
    return {"point": point, "state": "finished", "ms": ms, "sizes": [16, 16], "from": [], **losses}


def test_every_change_that_is_tuned_is_a_run_that_nano3_accepts() -> None:
    import tune_points
    from train import build

    from nano3.training.checks.model_stats import architecture_from_config, divisibility_problems
    from nano3.training.megatron import schema
    from nano3.training.megatron.backend import check

    all_gained = {"points": {name: tuned(name, 1 if p.group else 2) for name, p in tune_points.POINTS.items()}}
    assert len(tune_points.resolve(tune_points.POINTS["fp8_together"], all_gained)[1]) == len(
        {p.group for p in tune_points.POINTS.values()} - {""}
    )
    for point in tune_points.POINTS.values():
        config = build("data", "run", tune_points.resolve(point, all_gained)[0].arguments())
        model = architecture_from_config(config, schema.load_bundled(config.recipe._target_), 4096)
        assert model is not None
        assert (point.name, check(config) + divisibility_problems(model, 1)) == (point.name, [])
    keys = [key for key, _ in tune_points.keys_of(tune_points.PLAN)]
    assert len(set(keys)) == len(keys) and keys.count("base_3") == 1


def test_what_gained_is_put_together_once_for_each_group() -> None:
    import tune_points

    times = {"base": 100.0, "no_waits": 97.0, "router_fusion": 99.9, "no_margin": 99.0, "te_norms": 98.0}
    result = {"points": {name: tuned(name, ms) for name, ms in times.items()}}
    result["points"]["base_2"] = tuned("base", 100.4)
    result["points"]["fp8_current"] = tuned("fp8_current", 101.0)
    result["points"]["fp8_delayed"] = {"point": "fp8_delayed", "state": "failed", "error": "full", "sizes": [16, 16]}
    point, names = tune_points.resolve(tune_points.POINTS["together"], result)
    assert (sorted(names), point.changes) == (["no_waits", "te_norms"], (*tune_points.NO_WAITS, *tune_points.TE_NORMS))
    assert sorted(tune_points.resolve(tune_points.POINTS["fp8_together"], result)[1])[0] == "fp8_current"
    lines = tune_points.table(result)
    assert [line for line in lines if line.startswith("no_waits") and " 3.2%" in line]
    assert [line for line in lines if line.startswith("fp8_delayed") and "failed: full" in line]


def test_a_point_that_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process goes on after the point that ended the first one."""
    import tune_points

    def measure(point: object, *_: object) -> dict:
        name = point.name  # type: ignore[attr-defined]
        if name == "no_waits":
            raise ValueError("not this one")
        if name == "router_fusion":
            raise KeyboardInterrupt  # as a crash would: nothing is written any more
        return {k: v for k, v in tuned(name, 100.0).items() if k not in ("point", "state", "sizes", "from")}

    monkeypatch.setattr(tune_points, "measure", measure)
    monkeypatch.setattr(tune_points, "release", lambda: 1.0)
    plan = tune_points.keys_of(("base", "no_waits", "router_fusion", "base"))

    def session(name: str = "tune.json", deadline: float = 2e10) -> tune_points.Session:
        return tune_points.Session(tmp_path / name, "data", tmp_path, deadline)

    # Perhaps a process can only train once, so its second point is tried again, first in another one.
    assert session().run_all(plan) == tune_points.NEXT_PROCESS
    with pytest.raises(KeyboardInterrupt):
        session().run_all(plan)
    assert session().run_all(plan) == 0
    points = json.loads((tmp_path / "tune.json").read_text())["points"]
    states = {key: e["state"] for key, e in points.items()}
    assert states == {"base": "finished", "no_waits": "failed", "router_fusion": "crashed", "base_2": "finished"}
    assert "ValueError: not this one" in (tmp_path / "tune.txt").read_text()
    late = session("late.json", 1.0)
    assert late.run_all(plan) == 0 and not late.result["points"]


def test_the_memory_of_a_model_is_freed_though_references_to_it_stay() -> None:
    from types import SimpleNamespace

    import torch
    from free_memory import free_model

    chunk = torch.nn.Linear(4, 4)
    chunk.weight.main_grad = torch.ones(16)
    chunk.expert_parallel_buffers = [SimpleNamespace(param_data=torch.ones(8), grad_data=torch.ones(8))]
    main, moment = torch.ones(16), torch.ones(16)
    main.grad, main.decoupled_grad = torch.ones(16), torch.ones(16)
    inner = SimpleNamespace(param_groups=[{"params": [main]}], state={main: {"exp_avg": moment, "step": 3}})
    optimizer = SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=inner, shard_fp32_groups=[[main]])])
    (buffer,) = chunk.expert_parallel_buffers
    freed = [main, moment, chunk.weight, chunk.bias, chunk.weight.main_grad, buffer.param_data, buffer.grad_data]
    freed += [main.grad, main.decoupled_grad]
    free_model([chunk], optimizer)
    assert [tensor.untyped_storage().size() for tensor in freed] == [0] * 9
