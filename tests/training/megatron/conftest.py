"""Fixtures of the Megatron backend: no GPU and no Megatron-Bridge needed, the recorded schema stands in."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from megatron_helpers import ROOT, model, write_shard

from nano3.config import PretrainConfig


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A start of the backend sets variables for a run of one and its caches; they end with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A prepared data folder of two datasets in the format of nano3.data, small but real: Megatron's own files."""
    folder = tmp_path / "data"
    shards, blend = [], {"train": [], "valid": [], "test": []}
    for split, tokens in (("train", 20000), ("valid", 3000)):
        for number, name in enumerate(("docs", "code")):
            prefix = f"{split}/data_{number:05d}"
            shards.append(write_shard(folder, prefix, split, name, tokens))
            blend[split] += ["0.75" if name == "docs" else "0.25", str(folder / prefix)]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    source = ROOT / "nano3" / "sample" / "tokenizer"
    for file in source.iterdir():
        (tokenizer / file.name).write_bytes(file.read_bytes())
    sha = hashlib.sha256((tokenizer / "tokenizer.json").read_bytes()).hexdigest()
    manifest = {
        "format": 2,
        "blend": "test",
        "plan_hash": "0" * 64,
        "tokenizer": {
            "model": "t",
            "revision": None,
            "sha256": sha,
            "path": "tokenizer",
            "vocab_size": 4096,
            "eod_id": 2,
            "eod_token": "</s>",
        },
        "dtype": "uint16",
        "options": {"add_eos": True},
        "datasets": [],
        "splits": {
            s: {key: sum(x[key] for x in shards if x["split"] == s) for key in ("documents", "sequences", "tokens")}
            for s in blend
        },
        "shards": shards,
        "versions": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "blend.json").write_text(json.dumps(blend))
    return folder


@pytest.fixture
def config(data_dir: Path, tmp_path: Path) -> PretrainConfig:
    """A configuration that passes every check: the micro model on one rank."""
    config = PretrainConfig(model=model("nemotron_3_nano_micro"))
    config.run.data, config.run.output_dir, config.run.name = str(data_dir), str(tmp_path / "run"), "test"
    config.train.train_iters, config.train.seq_length = 20, 256
    config.train.global_batch_size, config.train.micro_batch_size = 8, 4
    config.scheduler.lr_warmup_iters, config.scheduler.lr_wsd_decay_iters = 2, 5
    config.recipe.per_split_data_args_path = str(data_dir / "blend.json")
    return config
