"""Helpers for tests of the Megatron backend without a GPU or Megatron-Bridge: they use the recorded schema."""

import struct
from pathlib import Path

import numpy as np
from xxhash import xxh3_128

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.checks.model_stats import Architecture, architecture_from_config
from nano3.training.megatron import schema
from nano3.training.run.checkpoints import MARKER, folder_name
from nano3.utils.files import write_json

ROOT = Path(__file__).resolve().parents[3]
NANO, QWEN, LIGHTNING, NANO_4B, *_ = schema.RECIPES


def write_shard(folder: Path, prefix: str, split: str, dataset: str, tokens: int) -> dict:
    """Write a .bin/.idx pair of one document and return its manifest entry."""
    path = folder / prefix
    path.parent.mkdir(parents=True, exist_ok=True)
    body = np.arange(tokens, dtype=np.uint16) % 4096
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, 1, 2)
    index = header + struct.pack("<i", tokens) + struct.pack("<q", 0) + struct.pack("<qq", 0, 1)
    path.with_suffix(".bin").write_bytes(body.tobytes())
    path.with_suffix(".idx").write_bytes(index)
    return {
        "split": split, "prefix": prefix, "dataset": dataset, "documents": 1, "sequences": 1, "tokens": tokens,
        "bin_bytes": 2 * tokens, "bin_xxh128": xxh3_128(body.tobytes()).hexdigest(),
        "idx_xxh128": xxh3_128(index).hexdigest(), "source": [["a.jsonl", 0], ["a.jsonl", 0]],
    }  # fmt: skip


def model(name: str) -> ModelConfig:
    """Return a model of conf/model."""
    from omegaconf import OmegaConf

    return ModelConfig(**OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml"))


def checkpoint(
    root: Path,
    iteration: int,
    marked: bool = True,
    bridge: bool = True,
    settings: dict | None = None,
    identity: dict | None = None,
) -> Path:
    """Return a checkpoint folder as Megatron-Bridge writes it, with or without nano3's checkpoint.json."""
    folder = root / folder_name(iteration)
    folder.mkdir(parents=True)
    if bridge:
        (folder / ".metadata").write_bytes(b"x")
        (folder / "run_config.yaml").write_text("model: {}\n")
    if marked:
        info = {"iteration": iteration, "consumed_samples": 0, "consumed_tokens": 0, "elapsed_s": 0.0, "parameters": 1}
        write_json(
            folder / MARKER, info | {"run_identity": identity or {}, "mutable_settings": settings or {}, "files": {}}
        )
    return folder


def config_without_data(backend: str, target: str) -> PretrainConfig:
    """Return a configuration whose data does not exist, for a preflight in milliseconds."""
    config = PretrainConfig(backend=backend)
    config.recipe._target_, config.run.name = target, "a"
    config.run.data, config.run.output_dir = "/nowhere/data", "/nowhere/run"
    config.scheduler.lr_wsd_decay_iters = 100
    return config


def architecture_of(name: str, vocab_size: int) -> Architecture:
    """Return the architecture of a model of conf/model with the values of the Nano recipe."""
    found = architecture_from_config(PretrainConfig(model=model(name)), schema.load_bundled(NANO), vocab_size)
    assert found is not None
    return found
