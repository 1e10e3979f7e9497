"""The report of a benchmark run: data.json (every run), data.md (medians and ratios), data.png (a picture)."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from contenders import CONTENDERS

Result = dict[str, Any]
SIZES = ["tiny", "small", "medium", "large"]


HEAD = """# Data preparation: nano3 and its peers

{date}, {cpu}, {cores} cores, {memory_gb} GB, {system}.
Written by `make bench-data`; every run is in [data.json](data.json).

Raw text to Megatron .bin/.idx (dolma: raw arrays), Tekken tokenizer (131,072 ids), an end-of-document token
after each document, {workers} workers, from starting the command to its exit. Medians of alternated runs.
Input is in the page cache, output goes to disk (nano3 also fsyncs and checksums what it writes; the peers do not).
CPU seconds and memory are of the whole process tree; memory is proportional set size, sampled every {sample_s} s.
"Others' CPU s" is what the rest of the machine did meanwhile: where it is not small, the wall time is too long,
and the ratio of CPU seconds is the one to look at. dolma strips white space around a document, hence fewer tokens.

![seconds per contender](data.png)"""

NOT_QUIET = """
**Provisional: in {busy} of {all} runs other work took more than a tenth of the machine. Wall times, and what
follows from them, are distorted; run `make bench-data` again when nothing else runs.**"""

TABLE = """
## {megabytes:,.0f} MB of text, {documents:,} documents

Commit {code}.

| | runs | wall s (min–max) | ÷ nano3 | CPU s | ÷ nano3 | others' CPU s | peak MB | one process MB | MB/s | ids |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"""

ENGINE = """
## Against the bare engine

fastokens in a loop over the {megabytes:,.0f} MB in memory, one thread a process, two passes over the text:

| processes | first pass MB/s | second pass MB/s | nano3 MB/s, from start to exit | share of the first pass | \
nano3 MB/s, once it works | share |
|--:|--:|--:|--:|--:|--:|--:|"""

WORKING = """
Once it works: the text that {megabytes:,.0f} MB have more than {fewer:,.0f} MB, by the time that they take longer."""

SCALING = """
{workers} workers are {one:.2f} times as fast as one worker (which may use a second core for reading and writing),
and {alone:.2f} times as fast as one worker held on one core; {workers} bare engines are {bare:.2f} times as fast as one
in their first pass."""

TEXT = """
## The text

One file is one document, each text once (SHA-256), ordered by that hash; a smaller size is a prefix. Left out:
files that are not UTF-8, blank, over 1 MB, or the kernel's generated register tables. `benchmarks/data/corpus.py`
makes it from:

| package | documents | MB as stored |
|---|--:|--:|"""

NOTES = """
"Thin equivalent": megatron-core's wheel has the classes but not the scripts of tools/, so a driver in
`benchmarks/data/peers` takes the tool's steps over the wheel's own classes; its docstring says exactly which.

## Commands

```"""


def save(result: Result, folder: Path) -> None:
    """Write data.json."""
    (folder / "data.json").write_text(json.dumps(result, indent=1) + "\n")


def write(result: Result, folder: Path) -> None:
    """Write data.md and data.png."""
    (folder / "data.md").write_text("\n".join([*head(result), *tables(result), *ceiling(result), *foot(result)]) + "\n")
    plot(result, folder / "data.png")


def runs_of(result: Result, size: str, contender: str | None = None) -> list[dict[str, Any]]:
    """Runs on this size, of one contender or all."""
    return [run for run in result["runs"] if run["size"] == size and contender in (None, run["contender"])]


def middle(runs: list[dict[str, Any]], key: str) -> float:
    """Median of a figure over runs."""
    return float(median(run[key] for run in runs))


def sizes_of(result: Result) -> list[str]:
    """The sizes that were measured, small to large."""
    return [size for size in SIZES if runs_of(result, size)]


def head(result: Result) -> list[str]:
    """What was measured, where, when."""
    facts = {key: result[key] for key in ("date", "sample_s", "workers")}
    lines = [HEAD.format(**facts, **result["machine"])]
    busy = [run for run in result["runs"] if run["other_cpu_s"] > 0.1 * run["wall_s"] * result["machine"]["cores"]]
    return [*lines, NOT_QUIET.format(busy=len(busy), all=len(result["runs"]))] if busy else lines


def tables(result: Result) -> list[str]:
    """One table a size."""
    lines = []
    for size in sizes_of(result):
        facts = result["corpus"][size]
        code = ", ".join(dict.fromkeys(run.get("code", result["code"]) for run in runs_of(result, size)))
        megabytes, documents = facts["text_bytes"] / 1e6, facts["documents"]
        lines.append(TABLE.format(megabytes=megabytes, documents=documents, code=code))
        lines += [row(result, size, name) for name in CONTENDERS if runs_of(result, size, name)]
    return lines


def row(result: Result, size: str, name: str) -> str:
    """A contender's line in the table of a size."""
    runs = runs_of(result, size, name)
    base = runs_of(result, size, "nano3")
    wall = middle(runs, "wall_s")
    walls = sorted(run["wall_s"] for run in runs)
    cells = [
        CONTENDERS[name].title,
        str(len(runs)),
        f"{wall:.1f} ({walls[0]:.1f}–{walls[-1]:.1f})",
        f"{wall / middle(base, 'wall_s'):.1f}" if base else "",
        f"{middle(runs, 'cpu_s'):.1f}",
        f"{middle(runs, 'cpu_s') / middle(base, 'cpu_s'):.1f}" if base else "",
        f"{middle(runs, 'other_cpu_s'):.1f}",
        f"{middle(runs, 'peak_mb'):,.0f}",
        f"{middle(runs, 'peak_process_mb'):,.0f}",
        f"{result['corpus'][size]['text_bytes'] / 1e6 / wall:.1f}",
        agreement(runs, base, CONTENDERS[name].in_order),
    ]
    return "| " + " | ".join(cells) + " |"


def agreement(runs: list[dict[str, Any]], base: list[dict[str, Any]], in_order: bool) -> str:
    """In words, how a contender's token ids compare with nano3's."""
    if not base:
        return ""
    if any(run["tokens"] != base[0]["tokens"] for run in runs):
        return f"{runs[0]['tokens'] - base[0]['tokens']:+,} tokens"
    if any(run["counts"] != base[0]["counts"] for run in runs):
        return "differ"
    if in_order and all(run["stream"] == base[0]["stream"] for run in runs):
        return "same"
    return "same, other order"


def ceiling(result: Result) -> list[str]:
    """The bare engine against nano3, and one worker against several."""
    if not result["engine"]:
        return []
    size = result["engine"][-1]["size"]
    smaller = next((other for other in sizes_of(result)[::-1] if SIZES.index(other) < SIZES.index(size)), None)
    megabytes, fewer = (result["corpus"][s]["text_bytes"] / 1e6 if s else 0.0 for s in (size, smaller))
    lines = [ENGINE.format(megabytes=megabytes)]
    rates = []
    for processes, name in [(1, "nano3-1-core"), (result["workers"], "nano3")]:
        passes = [run for run in result["engine"] if run["processes"] == processes and run["size"] == size]
        runs, quick = runs_of(result, size, name), runs_of(result, smaller or "", name)
        if passes and runs:
            first, second = middle(passes, "cold_mb_per_s"), middle(passes, "warm_mb_per_s")
            rates.append(first)
            rate = megabytes / middle(runs, "wall_s")
            cells = [str(processes), f"{first:.0f}", f"{second:.0f}", f"{rate:.0f}", f"{rate / first:.0%}", "", ""]
            if quick:
                working = (megabytes - fewer) / (middle(runs, "wall_s") - middle(quick, "wall_s"))
                cells[-2:] = [f"{working:.0f}", f"{working / first:.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
    if smaller:
        lines.append(WORKING.format(megabytes=megabytes, fewer=fewer))
    walls = {name: runs_of(result, size, name) for name in ("nano3", "nano3-1-worker", "nano3-1-core")}
    if all(walls.values()) and len(rates) == 2:
        both, one, alone = (middle(runs, "wall_s") for runs in walls.values())
        facts = {"one": one / both, "alone": alone / both, "bare": rates[1] / rates[0]}
        lines.append(SCALING.format(workers=result["workers"], **facts))
    return lines


def foot(result: Result) -> list[str]:
    """Text, versions, commands."""
    lines = [TEXT]
    for name, facts in sorted(result["sources"].items(), key=lambda item: -item[1]["bytes"]):
        lines.append(f"| {name} | {facts['documents']:,} | {facts['bytes'] / 1e6:.1f} |")
    lines += ["", "## Versions", ""]
    for name, found in result["versions"].items():
        lines.append(f"- {name}: " + ", ".join(f"{package} {number}" for package, number in found.items()))
    last = {run["contender"]: run["command"] for run in result["runs"]}
    return [*lines, NOTES, *last.values(), "```"]


def plot(result: Result, path: Path) -> None:
    """Horizontal bars of wall seconds, one panel a size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sizes_of(result)
    names = {size: [name for name in CONTENDERS if runs_of(result, size, name)] for size in sizes}
    heights = [len(names[size]) for size in sizes]
    figure, panels = plt.subplots(
        len(sizes), 1, figsize=(8, 0.34 * sum(heights) + 0.9 * len(sizes)), squeeze=False, height_ratios=heights
    )
    for panel, size in zip(panels[:, 0], sizes, strict=True):
        walls = [middle(runs_of(result, size, name), "wall_s") for name in names[size]]
        colours = ["#1b7f5c" if name.startswith("nano3") else "#9aa3ad" for name in names[size]]
        bars = panel.barh([CONTENDERS[name].title for name in names[size]], walls, color=colours)
        panel.bar_label(bars, labels=[f"{wall:.1f} s" for wall in walls], padding=3, fontsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.set_title(
            f"{result['corpus'][size]['text_bytes'] / 1e6:,.0f} MB of text: seconds, shorter is better",
            fontsize=9,
            loc="left",
        )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
