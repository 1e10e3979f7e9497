"""Time and memory to open the order of a run, and to find a sample and a document: nano3's plan and Megatron's index.

    python benchmarks/data/order.py FOLDER [--samples 1e9] [--megatron 1e6 1e7] [--shards 2000]

Both read the same shards, in four datasets. To have a thousand million samples in little space, a sample has 16 tokens
and a document about 400; the .bin files are sparse. The sizes of both orders depend on the number of samples, not on
their length. Each measurement is a process of its own: CPU seconds, the peak of its memory without that of the imports,
and the bytes that it wrote. Megatron's index is built (cold) and then opened by a second process (warm), as on every
rank but the first. results/order.md has figures.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
NAMES, WEIGHTS = ("docs", "code", "math", "web"), (0.4, 0.3, 0.2, 0.1)
SEQ_LENGTH, BATCH, DOCUMENT = 16, 1000, 400
READS = 2000


def main() -> None:
    """Write the shards once, and run every measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=float, default=1e9, help="samples of nano3's order")
    parser.add_argument("--megatron", type=float, nargs="*", default=[1e6, 1e7], help="samples of Megatron's orders")
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--child", choices=["nano3", "megatron"])
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args.folder, int(args.samples), args.shards)))
        return
    write_shards(args.folder, int(args.samples), args.shards)
    rows = [row("nano3", args, int(args.samples))]
    for samples in args.megatron:
        shutil.rmtree(args.folder / "cache", ignore_errors=True)
        rows += [row("megatron", args, int(samples), " (build)"), row("megatron", args, int(samples), " (open again)")]
    text = table(rows)
    print(text)
    (args.folder / "order.md").write_text(text)


def row(kind: str, args: argparse.Namespace, samples: int, suffix: str = "") -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, str(args.folder), "--child", kind, "--samples", str(samples)]
    done = subprocess.run([*command, "--shards", str(args.shards)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"order": kind + suffix, "samples": samples, **json.loads(done.stdout.splitlines()[-1])}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the measurements as a table in Markdown."""
    columns = list(dict.fromkeys(key for one in rows for key in one))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for one in rows:
        cells = (one.get(key, "") for key in columns)
        lines.append("| " + " | ".join(f"{cell:,}" if isinstance(cell, int | float) else cell for cell in cells) + " |")
    return (
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n\n"
        + "\n".join(lines)
        + "\n"
    )


def prefixes(folder: Path, shards: int) -> list[Path]:
    """Return the prefixes of all shards."""
    return [folder / "train" / f"data_{number:05d}" for number in range(shards)]


def write_shards(folder: Path, samples: int, shards: int) -> None:
    """Write the shards, each with the same documents, and a manifest for `Streams`."""
    from nano3.data.dataset.indexed import write_index

    documents = samples * SEQ_LENGTH // DOCUMENT // shards
    lengths = np.random.default_rng(1).integers(DOCUMENT // 2, DOCUMENT * 3 // 2, documents).astype(np.int32)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    paths = prefixes(folder, shards)
    with paths[0].with_suffix(".idx").open("wb") as f:
        write_index(f.write, lambda: iter([lengths]), documents, documents, "uint16")
    for path in paths:
        if path != paths[0]:
            shutil.copyfile(paths[0].with_suffix(".idx"), path.with_suffix(".idx"))
        with path.with_suffix(".bin").open("wb") as f:
            f.truncate(int(lengths.sum()) * 2)
    (folder / "shape.json").write_text(json.dumps({"tokens": int(lengths.sum()), "sequences": documents}))


class Meter:
    """CPU and wall seconds, memory and files of what happens between its creation and `show`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cpu, self.wall = folder, time.process_time(), time.perf_counter()
        self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def show(self) -> dict[str, Any]:
        """Return the figures."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        files = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return {
            "CPU s to open": round(time.process_time() - self.cpu, 2),
            "wall s": round(time.perf_counter() - self.wall, 2),
            "MB of memory": round((peak - self.memory) / 1024),
            "MB of files": round(files / 2**20),
        }


def per_read(read: Any, samples: int) -> float:
    """Return the CPU microseconds of a sample at random, which opens shards too."""
    chosen = np.random.default_rng(2).integers(0, samples, READS).tolist()
    for sample in chosen[: READS // 2]:
        read(sample)
    began = time.process_time()
    for sample in chosen[READS // 2 :]:
        read(sample)
    return round((time.process_time() - began) / (READS // 2) * 1e6, 1)


def open_nano3(folder: Path, samples: int, shards: int) -> dict[str, Any]:
    """Make the plan, locate samples, and find all reads of a document."""
    from nano3.config import PretrainConfig
    from nano3.training.dataset import Shard, TrainingData
    from nano3.training.order.budgets import make_plan
    from nano3.training.order.stream import DatasetStream, StreamShard

    shape = json.loads((folder / "shape.json").read_text())
    config = PretrainConfig()
    config.train.sample_order, config.train.seq_length = "nano3", SEQ_LENGTH
    config.train.global_batch_size, config.train.train_iters = BATCH, samples // BATCH
    meter = Meter(folder / "none")
    by_dataset = {name: prefixes(folder, shards)[number :: len(NAMES)] for number, name in enumerate(NAMES)}
    found = tuple(
        Shard("train", name, path, weight / len(paths), shape["tokens"], shape["sequences"])
        for (name, paths), weight in zip(by_dataset.items(), WEIGHTS, strict=True)
        for path in paths
    )
    data = TrainingData(folder, found, folder, 1, 0, "f", dataset_fingerprints=dict.fromkeys(NAMES, "f"))
    plan = make_plan(config, data)
    streams = {
        name: DatasetStream(name, [StreamShard(p, *shape.values()) for p in paths], SEQ_LENGTH, plan.seed)
        for name, paths in by_dataset.items()
    }

    def read(sample: int) -> None:
        name, position = plan.locate(sample)
        list(streams[name].parts(position))

    read(samples - 1)
    opened = meter.show()
    each = per_read(read, samples)
    consumed = plan.consumed(plan.stages[-1].end)
    began = time.process_time()
    reads = [plan.sample_of("docs", position) for position, _ in streams["docs"].reads_of(7, 99, consumed["docs"])]
    assert reads and None not in reads
    return {**opened, "µs a sample": each, "s to trace a document": round(time.process_time() - began, 4)}


def open_megatron(folder: Path, samples: int, shards: int) -> dict[str, Any]:
    """Build Megatron's blended index, or open it if it is there, and read entries of it."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.tokenizers import MegatronTokenizer

    tokenizer = MegatronTokenizer.from_pretrained(
        str(ROOT / "nano3/sample/tokenizer"), metadata_path={"library": "huggingface"}
    )
    paths = [str(path) for path in prefixes(folder, shards)]
    weights = [WEIGHTS[number % len(NAMES)] / (shards // len(NAMES)) for number in range(shards)]
    meter = Meter(folder / "cache")
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQ_LENGTH,
        path_to_cache=str(folder / "cache"),
        blend_per_split=[(paths, weights), None, None],
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    blend = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]

    def read(sample: int) -> None:
        member = blend.datasets[blend.dataset_index[sample]]
        row = member.shuffle_index[blend.dataset_sample_index[sample]]
        (first, _), (last, _) = member.sample_index[row], member.sample_index[row + 1]
        member.document_index[first : last + 1].tolist()

    read(samples - 1)
    return {**meter.show(), "µs a sample": per_read(read, samples)}


CHILDREN = {"nano3": open_nano3, "megatron": open_megatron}

if __name__ == "__main__":
    main()
