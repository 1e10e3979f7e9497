"""Shared by the data tests: files of every format, preparations, and expected results from other libraries."""

import bz2
import gzip
import hashlib
import json
import lzma
import random
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.run import prepare, write_plan
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import Manifest, load_manifest
from nano3.data.dataset.verify import verify
from nano3.data.planning.plan import DatasetPlan, Plan
from nano3.data.planning.planner import make_request
from nano3.data.tokenization.engines import Engines, load_engines
from nano3.data.tokenization.tokenizer import TokenizerInfo

WORDS = [
    "the",
    "of",
    "model",
    "data",
    "train",
    "é",
    "日本",
    "token",
    "loss",
    "\t",
    "\n",
    "{}",
    "0",
    "1",
    "2",
    "42",
    "def",
    "return",
    "😀",
    "x_y",
    "A.B",
    "(c)",
    "##",
    "</s",
]


def texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Return different documents, a few of them empty."""
    rng = random.Random(seed)
    made = [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(0, longest))) for i in range(count)]
    return ["" if i % 37 == 36 else text for i, text in enumerate(made)]


def jsonl(documents: list[str]) -> bytes:
    """Return JSON lines, half of them with ASCII escapes."""
    rows = [{"id": i, "text": text, "meta": {"text": "not this"}} for i, text in enumerate(documents)]
    return "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()


def write(path: Path, documents: list[str], **parquet: Any) -> Path:
    """Write documents in the format of the name's suffixes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    table = pa.table({"id": range(len(documents)), "text": pa.array(documents, pa.string())})
    if ".parquet" in name:
        pq.write_table(table, path, **parquet)
    elif ".arrows" in name:
        with pa.ipc.new_stream(path, table.schema) as out:
            out.write_table(table, 7)
    elif ".arrow" in name:
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table, 7)
    else:
        data = (
            json.dumps([{"text": t} for t in documents], indent=1).encode()
            if ".json." in f"{name}."
            else jsonl(documents)
        )
        path.write_bytes(pack(data, path.suffix))
    return path


def pack(data: bytes, suffix: str) -> bytes:
    """Compress data in the format of the suffix."""
    if suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as out:
            out.write(data)
        return sink.getvalue().to_pybytes()
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    return packers.get(suffix, bytes)(data)


def source(path: Path | str, name: str = "d", **keys: Any) -> SourceConfig:
    """Return the configuration of a dataset."""
    return SourceConfig(name=name, path=str(path), **keys)


def options(output: Path, tokenizer: Path, **keys: Any) -> PrepOptions:
    """Return options of a small and fast preparation; `keys` override them."""
    return PrepOptions(
        **{"output_dir": str(output), "tokenizer_model": str(tokenizer), "num_shards": 8, "workers": 1, **keys}
    )


def run(path: Path | list[SourceConfig], output: Path, tokenizer: Path, **keys: Any) -> Manifest:
    """Prepare one path or several datasets."""
    sources = path if isinstance(path, list) else [source(path)]
    return prepare(sources, options(output, tokenizer, **keys), "test")


def plan_build(sources: list[SourceConfig], options: PrepOptions, blend: str) -> Path:
    """Write a plan and return its path."""
    return write_plan(make_request(sources, options, blend))


def documents(folder: Path, split: str | None = None, dataset: str | None = None) -> list[list[int]]:
    """Return the token ids of every document, in the order of splits and shards."""
    found = []
    for shard in load_manifest(folder).shards:
        if split in (None, shard.split) and dataset in (None, shard.dataset):
            data = IndexedFile(folder / shard.prefix)
            found += [data.document(i).tolist() for i in range(len(data))]
    return found


def reference(tokenizer: Path, documents: list[str]) -> list[list[int]]:
    """Return the token ids expected on disk, by the simplest call of tokenizers."""
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    eod = loaded.token_to_id("</s>")
    ids = [loaded.encode(text, add_special_tokens=False).ids for text in documents]
    return [[*row, eod] if row else [] for row in ids]


@cache
def loaded_engines(tokenizer: Path) -> Engines:
    """Return both engines of a tokenizer; a large one takes seconds to load."""
    return load_engines(str(tokenizer / "tokenizer.json"), False, fast=True)


def tree(folder: Path) -> dict[str, str]:
    """Return the name and SHA-256 of every published file.

    Without blend.json, which contains absolute paths, and manifest.json, which contains options.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and ".prep" not in p.parts)
    skip = {"blend.json", "manifest.json"}
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.name not in skip}


def healthy(folder: Path) -> bool:
    """Return whether `nano3 verify` finds no problem."""
    return not [problem for _, problems in verify(folder) for problem in problems]


def paper_plan(output: Path, datasets: list[DatasetPlan], **keys: Any) -> Plan:
    """Return a plan of datasets and a tokenizer that do not exist; `keys` are options."""
    info = TokenizerInfo("t", "/t", "0" * 64, 1000, 2, "</s>", 1, (0, 1, 2))
    settings = options(output, Path("/t"), **{"split_by": "position", **keys})
    return Plan("f" * 64, "paper", str(output), settings, info, "uint16", datasets)


def paper_dataset(estimates: list[int], formats: list[str] | None = None, name: str = "d", **keys: Any) -> DatasetPlan:
    """Return a dataset that does not exist, cut into units and shards by `keys`."""
    files = [f"{i:06d}" for i in range(len(estimates))]
    keys.setdefault("times", [0] * len(estimates))
    return DatasetPlan(
        name, 1.0, "p", "text", "/r", None, files, list(estimates), [f"print {f}" for f in files],
        formats or ["jsonl"] * len(estimates), list(estimates), **keys,
    )  # fmt: skip
