"""Folders outside the run folder that a job's ranks read or write: what a container must have mounted."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from nano3.artifacts import store
from nano3.config import PrepOptions, PretrainConfig, SourceConfig
from nano3.config.pretrain import megatron_section
from nano3.utils.files import unwritable_reason

# Caches that a user may have put anywhere; without the variable, only nano3's own is worth keeping.
_CACHES = ("NANO3_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME")
_DEFAULT_CACHE = "~/.cache/nano3"


def read_by(config: PretrainConfig) -> list[str]:
    """What a run reads: prepared data, the checkpoint it starts from, weights of another model."""
    weights = megatron_section(config, "checkpoint").get("pretrained_checkpoint")
    return [str(Path(place).absolute()) for place in (config.run.data, config.checkpoint.load, weights) if place]


def written_by(config: PretrainConfig) -> list[str]:
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


def of_preparation(options: PrepOptions, sources: Iterable[SourceConfig]) -> tuple[str, ...]:
    """What preparing data reads and writes on this file system."""
    named = [source.path for source in sources if "://" not in source.path]
    if Path(options.tokenizer_model).expanduser().exists():
        named.append(options.tokenizer_model)
    caches = [place for name in ("HF_HOME", "HF_HUB_CACHE") if (place := os.environ.get(name))]
    if options.hf_files == "download" and not caches:
        caches = ["~/.cache/huggingface"]
    folders = [*map(_folder_of, named), *(Path(p).expanduser() for p in [options.output_dir, *caches]), store.home()]
    return tuple(dict.fromkeys(str(folder.absolute()) for folder in folders))


def _folder_of(path: str) -> Path:
    """The folder that holds a file, or everything a pattern can match."""
    place = Path(path).expanduser()
    while glob.has_magic(str(place)):
        place = place.parent
    return place if place.is_dir() else place.parent
