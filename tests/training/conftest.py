"""Real data for the training tests: a slice of the bundled corpus in Megatron's format, and one undisturbed run on
it."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.json
import pyarrow.parquet
import pytest
from training_processes import Child, tiny_config, train_here

from nano3.files import write_json

SAMPLE = Path(__file__).parents[2] / "nano3" / "sample"
WEIGHTS = {"docs": 0.5, "code": 0.3, "math": 0.2}
SPLITS = ("train", "valid", "test")


def corpus(documents: int) -> dict[str, list[str]]:
    """The first documents of each dataset of the bundled corpus."""
    found = {"docs": pyarrow.parquet.read_table(SAMPLE / "docs.parquet")["text"].to_pylist()}
    for name, file, kind in (("code", "code.jsonl.zst", "zstd"), ("math", "math.jsonl.gz", "gzip")):
        with pyarrow.input_stream(SAMPLE / file, compression=kind) as stream:
            found[name] = pyarrow.json.read_json(stream)["text"].to_pylist()
    return {name: texts[:documents] for name, texts in found.items()}


def write_data(folder: Path, documents: int) -> Path:
    """A data folder as data_prep leaves it: every fifth document is for validation, the next one for test."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer" / "tokenizer.json"))
    settings = json.loads((SAMPLE / "tokenizer" / "tokenizer_config.json").read_text())
    eod = tokenizer.token_to_id(settings["eos_token"])
    shards: list[dict] = []
    for name, texts in corpus(documents).items():
        ids = [[*e.ids, eod] for e in tokenizer.encode_batch(texts)]
        parts = {"valid": ids[::5], "test": ids[1::5], "train": [d for i, d in enumerate(ids) if i % 5 > 1]}
        shards += [write_shard(folder, split, name, parts[split], shards) for split in SPLITS]
    shutil.copytree(SAMPLE / "tokenizer", folder / "tokenizer")
    identity = {
        "model": "sample",
        "sha256": hashlib.sha256((folder / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest(),
        "path": "tokenizer",
        "vocab_size": tokenizer.get_vocab_size(),
        "eod_id": eod,
        "eod_token": settings["eos_token"],
    }
    write_json(folder / "manifest.json", {"format": 1, "tokenizer": identity, "dtype": "uint16", "shards": shards})
    blend = {s: [x for e in shards if e["split"] == s for x in (str(WEIGHTS[e["dataset"]]), str(folder / e["prefix"]))] for s in SPLITS}  # fmt: skip  # noqa: E501
    write_json(folder / "blend.json", blend)
    return folder


def write_shard(folder: Path, split: str, dataset: str, documents: list[list[int]], earlier: list[dict]) -> dict:
    """One .bin/.idx by Megatron's own builder; returns its manifest entry."""
    import numpy
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    relative = f"{split}/data_{sum(e['split'] == split for e in earlier):05d}"
    prefix = folder / relative
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for ids in documents:
        builder.add_document(numpy.array(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")
    entry = {"split": split, "prefix": relative, "dataset": dataset}
    entry |= {"documents": len(documents), "sequences": len(documents), "tokens": sum(map(len, documents))}
    entry["bin_bytes"] = Path(f"{prefix}.bin").stat().st_size
    for suffix in ("bin", "idx"):
        entry[f"{suffix}_sha256"] = hashlib.sha256(Path(f"{prefix}.{suffix}").read_bytes()).hexdigest()
    return entry


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60,000 tokens of three datasets; read-only."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    return Child(write_data, (folder, 15), folder.parent / "log.txt").result()


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of twelve undisturbed iterations; read-only."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    outcome = train_here(tiny_config(), data, run_dir)
    assert (outcome.status, outcome.iteration, outcome.exit_code) == ("finished", 12, 0)
    return run_dir
