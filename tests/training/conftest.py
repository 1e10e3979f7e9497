"""Real data for the training tests: a slice of the bundled corpus, tokenized with the bundled tokenizer, in Megatron's format."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.json
import pyarrow.parquet

from nano3.files import write_json

SAMPLE = Path(__file__).parents[2] / "nano3" / "sample"
WEIGHTS = {"docs": 0.5, "code": 0.3, "math": 0.2}


def texts() -> dict[str, list[str]]:
    """Every document of the bundled corpus, by dataset."""
    jsonl = {
        name: pyarrow.json.read_json(pyarrow.input_stream(SAMPLE / file, compression=kind))
        for name, file, kind in (("code", "code.jsonl.zst", "zstd"), ("math", "math.jsonl.gz", "gzip"))
    }
    return {
        "docs": pyarrow.parquet.read_table(SAMPLE / "docs.parquet")["text"].to_pylist(),
        **{k: t["text"].to_pylist() for k, t in jsonl.items()},
    }


def write_data(
    folder: Path, documents: int | None = None, splits: tuple[str, ...] = ("train", "valid", "test")
) -> Path:
    """A data folder as data_prep leaves it; `documents` of each dataset, every tenth for each of valid and test."""
    import numpy
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer" / "tokenizer.json"))
    eod = tokenizer.token_to_id(json.loads((SAMPLE / "tokenizer" / "tokenizer_config.json").read_text())["eos_token"])
    shards, blend = [], {s: [] for s in ("train", "valid", "test")}
    for name, rows in texts().items():
        ids = [e.ids + [eod] for e in tokenizer.encode_batch(rows[:documents])]
        parts = {"valid": ids[::10], "test": ids[1::10], "train": [d for i, d in enumerate(ids) if i % 10 > 1]}
        for split in splits:
            number = sum(s["split"] == split for s in shards)
            relative = f"{split}/data_{number:05d}"
            prefix = folder / relative
            prefix.parent.mkdir(parents=True, exist_ok=True)
            builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
            for d in parts[split]:
                builder.add_document(numpy.array(d), [len(d)])
            builder.finalize(f"{prefix}.idx")
            shas = {
                f"{k}_sha256": hashlib.sha256(Path(f"{prefix}.{k}").read_bytes()).hexdigest() for k in ("bin", "idx")
            }
            n, tokens = len(parts[split]), sum(map(len, parts[split]))
            shards.append(
                {
                    "split": split,
                    "prefix": relative,
                    "dataset": name,
                    "documents": n,
                    "sequences": n,
                    "tokens": tokens,
                    "bin_bytes": 2 * tokens,
                    **shas,
                }
            )
            blend[split] += [str(WEIGHTS[name]), str(prefix)]
    shutil.copytree(SAMPLE / "tokenizer", folder / "tokenizer")
    sha = hashlib.sha256((folder / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
    tok = {
        "model": "sample",
        "sha256": sha,
        "path": "tokenizer",
        "vocab_size": tokenizer.get_vocab_size(),
        "eod_id": eod,
        "eod_token": "",
    }
    write_json(
        folder / "manifest.json",
        {"format": 1, "blend": "sample", "plan_hash": "0", "tokenizer": tok, "dtype": "uint16", "shards": shards},
    )
    write_json(folder / "blend.json", blend)
    return folder
