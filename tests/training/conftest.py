"""Real data for the training tests: a slice of the bundled corpus through data_prep, and one undisturbed run on it."""

import hashlib
import json
from pathlib import Path

import pytest
from megatron_helpers import ROOT, model, write_shard
from training_processes import SAMPLE, tiny_config, train_here

from nano3.config import PrepOptions, PretrainConfig, SourceConfig
from nano3.data.build.run import prepare

SOURCES = [
    SourceConfig(name="docs", path=str(SAMPLE / "docs.parquet"), weight=0.5),
    SourceConfig(name="code", path=str(SAMPLE / "code.jsonl.zst"), weight=0.3),
    SourceConfig(name="math", path=str(SAMPLE / "math.jsonl.gz"), weight=0.2),
]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets of 40 documents in three splits; read-only."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    options = PrepOptions(
        output_dir=str(folder),
        tokenizer_model=str(SAMPLE / "tokenizer"),
        num_shards=9,
        sample=40,
        valid_fraction=0.2,
        test_fraction=0.2,
        workers=1,
        split_by="position",
    )
    prepare(SOURCES, options, "sample")
    return folder


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of twelve undisturbed iterations; read-only."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    outcome = train_here(tiny_config(), data, run_dir)
    assert (outcome.status, outcome.iteration, outcome.exit_code()) == ("finished", 12, 0)
    return run_dir


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A prepared data folder of two small datasets in Megatron's format, written without data_prep."""
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
        "datasets": [
            {
                "name": name,
                "weight": weight,
                "path": "/raw",
                "revision": None,
                "files": 1,
                "documents": 2,
                "empty": 0,
                "tokens": 0,
                "text_bytes": 0,
                "skipped": {},
                "truncated": 0,
                "special_tokens": 0,
                "splits": {
                    x["split"]: {key: x[key] for key in ("documents", "sequences", "tokens")}
                    for x in shards
                    if x["dataset"] == name
                },
            }
            for name, weight in (("docs", 0.75), ("code", 0.25))
        ],
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
    """A configuration of backend=megatron that passes every check: the micro model on one rank."""
    config = PretrainConfig(model=model("nemotron_3_nano_micro"))
    config.run.data, config.run.output_dir, config.run.name = str(data_dir), str(tmp_path / "run"), "test"
    config.train.train_iters, config.train.seq_length = 20, 256
    config.train.global_batch_size, config.train.micro_batch_size = 8, 4
    config.scheduler.lr_warmup_iters, config.scheduler.lr_wsd_decay_iters = 2, 5
    config.recipe.per_split_data_args_path = str(data_dir / "blend.json")
    return config
