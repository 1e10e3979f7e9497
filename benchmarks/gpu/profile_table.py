"""Summarize the GPU work of the profiled steps: profile_table.py TRACE.json.gz [--json FILE]

TRACE is a Chrome trace of torch.profiler. Times are summed over kernels by kind; "busy" is the union of their
intervals, so that kernels side by side are not counted twice, and "idle" is the rest of the steps.
"""

import argparse
import gzip
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

# The first match counts. The names come from CUDA libraries and Triton.
KINDS = {
    "collectives": r"nccl",
    "matrix products": r"nvjet|gemm|cutlass|xmma|cublas|splitK|Kernel2",
    "Mamba": r"chunk_scan|chunk_state|state_passing|chunk_cumsum|bmm_chunk|causal_conv|ssd|ssm|_layer_norm_(fwd|bwd)",
    "attention": r"fmha|flash|cudnn_generated_fort_native_sdpa|sdpa",
    "MoE routing": r"permute|sort|topk|router|_indices|histogram|scatter|gather|radix|pad_kernel|bincount",
    "norms": r"norm",
    "optimizer and gradients": r"multi_tensor|adam|l2norm|FusedAdam",
    "cross entropy": r"cross_entropy|softmax|log_softmax",
    "copies": r"memcpy|memset|copy|CatArray",
    "squared ReLU and other elementwise": r"elementwise|vectorized|triton|relu|reduce_kernel|fill",
}


def kind_of(name: str) -> str:
    """Return the kind of work of a kernel, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def union(intervals: list[tuple[float, float]]) -> float:
    """Return the total length of the union of (start, end) intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def summary(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return milliseconds per step by kind and by kernel, from trace events in microseconds."""
    steps = [
        e for e in events if str(e.get("name", "")).startswith("ProfilerStep#") and e.get("cat") == "user_annotation"
    ]
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    count = max(len(steps), 1)
    first, last = min(e["ts"] for e in kernels), max(e["ts"] + e["dur"] for e in kernels)
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    for e in kernels:
        by_kind[kind_of(e["name"])] += e["dur"] / 1e3 / count
        by_name[e["name"]].append(e["dur"] / 1e3 / count)
    busy = union([(e["ts"], e["ts"] + e["dur"]) for e in kernels]) / 1e3 / count
    span = (last - first) / 1e3 / count
    top = sorted(((sum(v), len(v) / count, name) for name, v in by_name.items()), reverse=True)[:40]
    return {
        "steps": len(steps),
        "ms_per_step": span,
        "busy_ms": busy,
        "idle_ms": span - busy,
        "launches": len(kernels) / count,
        "kinds_ms": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "kernels": [{"ms": ms, "launches": n, "kind": kind_of(name), "name": name[:160]} for ms, n, name in top],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--json", type=Path, help="also write the summary here")
    arguments = parser.parse_args()
    with gzip.open(arguments.trace) as f:
        table = summary(json.load(f)["traceEvents"])
    print(f"{table['steps']} steps, each {table['ms_per_step']:.1f} ms")
    print(f"GPU busy {table['busy_ms']:.1f} ms, idle {table['idle_ms']:.1f} ms;", end=" ")
    print(f"{table['launches']:.0f} launches a step\n")
    for kind, ms in table["kinds_ms"].items():
        print(f"{ms:9.1f} ms {ms / table['ms_per_step']:6.1%}  {kind}")
    print()
    for k in table["kernels"]:
        print(f"{k['ms']:9.2f} ms {k['launches']:7.0f} x  {k['kind'][:16]:16}  {k['name'][:110]}")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
