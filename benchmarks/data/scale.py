"""Measure how time grows with the number of shards, datasets, files and columns, and with the length of a document.

    python benchmarks/data/scale.py [KIND ...] [--largest N]

Each row runs in processes of its own: one prepares the data, one repeats the command, one opens the data for training.
The text is as small as it can be, so only the work for each item counts. Prints CPU seconds of all processes, wall
seconds, the CPU of the preparation divided by the number of items, and the memory of the largest process. The tokenizer
is the bundled one. Run it on an idle machine; results/scale.md has figures.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "shards": [300, 3_000, 30_000],
    "datasets": [20, 200, 2_000],
    "files": [1_000, 10_000, 100_000],
    "columns": [10, 100, 1_000],
    "characters": [1_000_000, 10_000_000, 100_000_000],
}
STEPS = {
    "prepare": "from nano3.data.build.run import prepare; prepare(sources, options, 'scale')",
    "again": "from nano3.data.build.run import prepare; prepare(sources, options, 'scale')",
    "open": "from nano3.training.dataset import open_data; open_data(options.output_dir)",
}
PROGRAM = """
import json, sys
from nano3.config import PrepOptions, SourceConfig
request = json.loads(sys.stdin.read())
sources, options = [SourceConfig(**s) for s in request["sources"]], PrepOptions(**request["options"])
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(SIZES), metavar="KIND", help=", ".join(SIZES))
    parser.add_argument("--largest", type=int, default=1 << 60, help="leave out larger sizes")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}\n")
    print("| items | prepare: CPU s | wall s | CPU ms per item | again: CPU s | open: CPU s | MB |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        for number in (n for n in SIZES[kind] if n <= options.largest):
            with tempfile.TemporaryDirectory() as folder:
                request = make_request(kind, number, Path(folder))
                rows = {step: measure(PROGRAM + code, request) for step, code in STEPS.items()}
            cpu, wall, memory = rows["prepare"]
            print(
                f"| {number:,} {kind} | {cpu:.2f} | {wall:.1f} | {1000 * cpu / number:.4f} | {rows['again'][0]:.2f} | "
                f"{rows['open'][0]:.2f} | {memory} |",
                flush=True,
            )


def make_request(kind: str, number: int, folder: Path) -> dict[str, Any]:
    """Write the input and return the arguments of the preparation."""
    datasets, files = (number if kind == "datasets" else 1), (number if kind == "files" else 1)
    documents = [{"text": f"document {i} has a few words"} for i in range(2 * number if kind == "shards" else 4)]
    if kind == "columns":
        documents = [{**{f"column{c}": "x" for c in range(number)}, **document} for document in documents]
    elif kind == "characters":
        documents.append({"text": "word and another " * (number // 17)})
    text = "".join(json.dumps(document) + "\n" for document in documents)
    sources = []
    for d in range(datasets):
        (folder / f"d{d}").mkdir()
        for f in range(files):
            (folder / f"d{d}" / f"{f}.jsonl").write_text(text)
        sources.append({"name": f"d{d}", "path": str(folder / f"d{d}")})
    shards = {"num_shards": number} if kind == "shards" else {"num_shards": 1}
    tokenizer = str(ROOT / "nano3" / "sample" / "tokenizer")
    options = {"output_dir": str(folder / "out"), "tokenizer_model": tokenizer, **shards}
    return {"sources": sources, "options": {**options, "valid_fraction": 0.0, "test_fraction": 0.0, "split_by": "text"}}


def measure(program: str, request: dict[str, Any]) -> tuple[float, float, int]:
    """Return CPU seconds of a process and its children, wall seconds, and MB of the largest process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    report = "\nimport resource\nprint([resource.getrusage(w).ru_maxrss for w in (0, -1)], file=sys.stderr)"
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program + report], input=json.dumps(request), env=env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.monotonic() - began, max(json.loads(done.stderr.splitlines()[-1])) // 1024


if __name__ == "__main__":
    main()
