"""Folders outside the run folder that a job's ranks read or write: what a container must have mounted."""

import os
from pathlib import Path

from nano3.artifacts import store
from nano3.config import PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.utils.files import unwritable_reason

# Caches that a user may have put anywhere; without the variable, only nano3's own is worth keeping.
_CACHES = ("NANO3_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME")
_DEFAULT_CACHE = "~/.cache/nano3"


def folders_read(config: PretrainConfig) -> list[str]:
    """What a run reads: prepared data, the checkpoint it starts from, weights of another model."""
    weights = megatron_section(config, "checkpoint").get("pretrained_checkpoint")
    return [str(Path(place).absolute()) for place in (config.run.data, config.checkpoint.load, weights) if place]


def folders_written(config: PretrainConfig) -> list[str]:
    """What a run writes besides its run folder: checkpoints, the artifact store, compiled kernels."""
    caches = [os.environ.get(name) for name in _CACHES]
    kernels = [] if os.environ.get("NANO3_CACHE") or config.backend != "megatron" else [_DEFAULT_CACHE]
    places = [config.checkpoint.save, str(store.home()), *caches, *kernels]
    return [str(Path(place).expanduser().absolute()) for place in places if place]


def unwritable_problems(config: PretrainConfig) -> list[str]:
    """Folders in which a run could write nothing, as far as that can be told from here; leaves nothing behind. What
    only the nodes of a cluster have is left to its ranks."""
    named = {"run.output_dir": config.run.output_dir}
    if config.cluster.kind == "local" or config.cluster.container_runtime != "none":
        named |= {"checkpoint.save": config.checkpoint.save or ""} if config.checkpoint.save_interval else {}
        named |= {"logger.tensorboard_dir": config.logger.tensorboard_dir or ""}
    found = {key: why for key, place in named.items() if place and (why := unwritable_reason(Path(place)))}
    if "run.output_dir" in found and Path(named.get("checkpoint.save", "/")).is_relative_to(config.run.output_dir):
        found.pop("checkpoint.save", None)
    return [f"{key}={named[key]}: cannot be written: {why}. Choose another {key}." for key, why in found.items()]
