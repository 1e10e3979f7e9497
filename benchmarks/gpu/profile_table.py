"""Summarize the GPU work of the profiled steps: profile_table.py TRACE.json.gz [--json FILE]

TRACE is a Chrome trace of torch.profiler. Times are summed over kernels by kind; "busy" is the union of their
intervals, so that kernels side by side are not counted twice, and "idle" is the rest of the steps. A second sum by kind
divides the time of kernels that run side by side among them. Gaps are the times without a kernel, by the kernel after
them; what waits on the host is counted by the name of the call.
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


def shares(kernels: list[tuple[float, float, str]]) -> dict[str, float]:
    """Return the time of each kind, from (start, end, kind); kernels side by side get equal shares of that time."""
    edges = sorted([(start, 1, kind) for start, _, kind in kernels] + [(end, -1, kind) for _, end, kind in kernels])
    running: dict[str, int] = defaultdict(int)
    total: dict[str, float] = defaultdict(float)
    count, before = 0, 0.0
    for at, change, kind in edges:
        if count and at > before:
            for one, n in running.items():
                total[one] += (at - before) * n / count
        running[kind] += change
        count, before = count + change, at
    return dict(total)


def gaps(kernels: list[dict[str, Any]]) -> list[tuple[float, str, str]]:
    """Return the times without a kernel: length in microseconds, the name of the kernel before, and after."""
    found, reached, last = [], float("inf"), ""
    for e in sorted(kernels, key=lambda e: e["ts"]):
        if e["ts"] > reached:
            found.append((e["ts"] - reached, last, e["name"]))
        if last == "" or e["ts"] + e["dur"] > reached:
            reached, last = e["ts"] + e["dur"], e["name"]
    return found


def grouped(items: list[tuple[float, str]], count: int, most: int) -> list[dict[str, Any]]:
    """Return the largest sums of (microseconds, name) by name, as milliseconds and times per step."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for length, name in items:
        by_name[name].append(length / 1e3 / count)
    largest = sorted(((sum(v), len(v) / count, name) for name, v in by_name.items()), reverse=True)[:most]
    return [{"ms": round(ms, 3), "times": n, "name": name} for ms, n, name in largest]


def summary(events: list[dict[str, Any]], steps: int | None = None) -> dict[str, Any]:
    """Return milliseconds per step by kind and by kernel, from trace events in microseconds.

    Args:
        events: Events of a Chrome trace.
        steps: The number of steps that it covers; by default that of its ProfilerStep annotations.
    """
    marks = [
        e for e in events if str(e.get("name", "")).startswith("ProfilerStep#") and e.get("cat") == "user_annotation"
    ]
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    count = max(steps or len(marks), 1)
    calls = [e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    waits = [(e["dur"], e["name"]) for e in calls if "Synchronize" in e["name"]]
    first, last = min(e["ts"] for e in kernels), max(e["ts"] + e["dur"] for e in kernels)
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    for e in kernels:
        by_kind[kind_of(e["name"])] += e["dur"] / 1e3 / count
        by_name[e["name"]].append(e["dur"] / 1e3 / count)
    busy = union([(e["ts"], e["ts"] + e["dur"]) for e in kernels]) / 1e3 / count
    span = (last - first) / 1e3 / count
    top = sorted(((sum(v), len(v) / count, name) for name, v in by_name.items()), reverse=True)[:40]
    spans = [(e["ts"], e["ts"] + e["dur"], kind_of(e["name"])) for e in kernels]
    sizes = [(e["dur"], f"{kind_of(e['name'])} {_grid(e)} {e['name'][:100]}") for e in kernels]
    return {
        "steps": steps or len(marks),
        "ms_per_step": span,
        "busy_ms": busy,
        "idle_ms": span - busy,
        "launches": len(kernels) / count,
        "kinds_ms": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "shares_ms": {k: v / 1e3 / count for k, v in sorted(shares(spans).items(), key=lambda item: -item[1])},
        "gaps": grouped([(us, f"{_short(a)} -> {_short(b)}") for us, a, b in gaps(kernels)], count, 25),
        "waits": grouped(waits, count, 8),
        "sizes": grouped(sizes, count, 70),
        "kernels": [{"ms": ms, "launches": n, "kind": kind_of(name), "name": name[:160]} for ms, n, name in top],
    }


def _short(name: str) -> str:
    return re.sub(r"^void |at::native::|<.*", "", name)[:50]


def _grid(event: dict[str, Any]) -> str:
    return "x".join(str(n) for n in event.get("args", {}).get("grid", []))


def text(table: dict[str, Any]) -> list[str]:
    """Return the lines that show a summary."""
    lines = [f"{table['steps']} steps, each {table['ms_per_step']:.1f} ms"]
    busy = f"GPU busy {table['busy_ms']:.1f} ms, idle {table['idle_ms']:.1f} ms"
    lines += [f"{busy}; {table['launches']:.0f} launches a step", ""]
    lines += ["      sum  shared  of a step"]
    for kind, ms in table["kinds_ms"].items():
        shared = table["shares_ms"].get(kind, 0.0)
        lines.append(f"{ms:9.1f} {shared:7.1f} ms {shared / table['ms_per_step']:6.1%}  {kind}")
    lines.append("")
    for k in table["kernels"]:
        lines.append(f"{k['ms']:9.2f} ms {k['launches']:7.0f} x  {k['kind'][:16]:16}  {k['name'][:110]}")
    for title in ("gaps", "waits", "sizes"):
        lines += ["", title]
        lines += [f"{one['ms']:9.2f} ms {one['times']:7.1f} x  {one['name']}" for one in table[title]]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--json", type=Path, help="also write the summary here")
    arguments = parser.parse_args()
    with gzip.open(arguments.trace) as f:
        table = summary(json.load(f)["traceEvents"])
    print("\n".join(text(table)))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
