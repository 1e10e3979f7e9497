"""Time of `nano3 trace` for a run of a thousand million samples over 2,000 shards in nano3's order.

    python benchmarks/data/trace.py FOLDER [--samples 1e9] [--shards 2000]

The shards are those of order.py: samples of 16 tokens and sparse .bin files. The folder becomes prepared data with a
manifest, and gets a run of two stages that is at its last iteration. Each command is a process of its own, run twice;
the second one finds the files in memory. results/order.md has figures.
"""

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from order import BATCH, NAMES, ROOT, SEQ_LENGTH, WEIGHTS, prefixes, write_shards

from nano3.config import PretrainConfig
from nano3.data.dataset.manifest import (
    FORMAT,
    Counts,
    DatasetEntry,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    encode_json,
    encode_manifest,
    make_blend,
)
from nano3.data.dataset.verify import tokenizer_checksums
from nano3.training.dataset import open_data
from nano3.training.order.budgets import make_plan
from nano3.training.run.record import DataReference, save_run_config

COMMANDS = {
    "--document SHARD:N": ["--document", "train/data_00007:99"],
    "--dataset NAME": ["--dataset", "docs"],
    "--iteration N": ["--iteration", "500000", "--no-sources"],
}


def main() -> None:
    """Make data and run, and print the time of every command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=float, default=1e9)
    parser.add_argument("--shards", type=int, default=2000)
    args = parser.parse_args()
    data, run_dir = args.folder.absolute(), args.folder.absolute() / "run"
    write_shards(data, int(args.samples), args.shards)
    write_data(data, args.shards)
    write_run(data, run_dir, int(args.samples))
    print("| command | CPU s | wall s | lines |\n|---|---|---|---|")
    for name, words in COMMANDS.items():
        for _ in range(2):
            began, cpu = time.perf_counter(), children_cpu()
            command = [sys.executable, "-m", "nano3", "trace", str(run_dir), *words]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
        seconds = children_cpu() - cpu, time.perf_counter() - began
        print(f"| `nano3 trace RUN {name}` | {seconds[0]:.2f} | {seconds[1]:.2f} | {len(done.stdout.splitlines()):,} |")


def children_cpu() -> float:
    """Return the CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_data(data: Path, shards: int) -> None:
    """Write the manifest, blend.json and the tokenizer."""
    shutil.copytree(ROOT / "nano3/sample/tokenizer", data / "tokenizer", dirs_exist_ok=True)
    shape = json.loads((data / "shape.json").read_text())
    each = Counts(shape["sequences"], shape["sequences"], shape["tokens"])
    entries, datasets = [], []
    for number, (name, weight) in enumerate(zip(NAMES, WEIGHTS, strict=True)):
        mine = prefixes(Path(), shards)[number :: len(NAMES)]
        entries += [
            ShardEntry(
                "train", str(path), name, each.documents, each.sequences, each.tokens, each.tokens * 2, "", "", []
            )
            for path in mine
        ]
        total = Counts(*(len(mine) * value for value in (each.documents, each.sequences, each.tokens)))
        datasets.append(
            DatasetEntry(
                name=name,
                weight=weight,
                path=name,
                revision=None,
                files=1,
                documents=total.documents,
                empty=0,
                tokens=total.tokens,
                text_bytes=0,
                skipped={},
                truncated=0,
                special_tokens=0,
                splits={"train": total},
            )
        )
    files = tokenizer_checksums(data / "tokenizer")
    sha256 = hashlib.sha256((data / "tokenizer/tokenizer.json").read_bytes()).hexdigest()
    tokenizer = TokenizerEntry("sample", None, sha256, "tokenizer", 4096, 2, "</s>", files=files)
    totals = Counts(*(shards * value for value in (each.documents, each.sequences, each.tokens)))
    options: dict[str, str | int | float | bool | None] = {"add_eos": True}
    manifest = Manifest(
        FORMAT, "trace", "0" * 64, tokenizer, "uint16", options, datasets, {"train": totals}, entries, {}
    )
    (data / "manifest.json").write_text(encode_manifest(manifest))
    (data / "blend.json").write_text(encode_json(make_blend(manifest, data)))


def write_run(data: Path, run_dir: Path, samples: int) -> None:
    """Write the record of a run over two stages, its order, and its last line of metrics."""
    run_dir.mkdir(exist_ok=True)
    config = PretrainConfig(backend="transformers")
    config.run.name, config.run.data, config.run.output_dir = "run", str(data), str(run_dir)
    config.data_blend.name, config.recipe.per_split_data_args_path = "trace", str(data / "blend.json")
    config.train.sample_order, config.train.seq_length = "nano3", SEQ_LENGTH
    config.train.global_batch_size, config.train.train_iters = BATCH, samples // BATCH
    config.train.mixture = [
        {"until": "60%", "blend": {"docs": 3, "code": 2, "math": 1}},
        {"blend": {"docs": 1, "web": 1}},
    ]
    save_run_config(run_dir, config, DataReference(str(data), str(data), ""), [])
    make_plan(config, open_data(data)).write(run_dir)
    line = {"iteration": config.train.train_iters, "loss": 1.0, "time": 0.0}
    (run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
