"""Folders outside the run folder that a run reads or writes. A container must have them mounted."""

import os
from pathlib import Path

from nano3.artifacts import store
from nano3.config import PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.training.run.config_file import load_config_file
from nano3.training.run.record import latest_start_dir
from nano3.utils.errors import UserError
from nano3.utils.files import expand_user, unwritable_reason

# Variables that move a cache elsewhere. Without NANO3_CACHE, only the default cache of compiled kernels is mounted.
_CACHE_VARIABLES = ("NANO3_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME")
_DEFAULT_CACHE = "~/.cache/nano3"
# Files that a run writes in its folder even if one of that name is there.
REPLACED = ("config.yaml", "finished.json", "progress.json", "began.json", "local.json", "loss.png", "samples.txt")


def folders_read(config: PretrainConfig) -> list[str]:
    """Return the absolute paths a run reads: prepared data, checkpoint.load, weights of another model."""
    weights = megatron_section(config, "checkpoint").get("pretrained_checkpoint")
    return [str(Path(path).absolute()) for path in (config.run.data, config.checkpoint.load, weights) if path]


def folders_written(config: PretrainConfig) -> list[str]:
    """Return the absolute paths a run writes outside its run folder: checkpoints, artifact store, compiled kernels."""
    caches = [os.environ.get(name) for name in _CACHE_VARIABLES]
    kernels = [] if os.environ.get("NANO3_CACHE") or config.backend != "megatron" else [_DEFAULT_CACHE]
    paths = [config.checkpoint.save, str(store.home()), *caches, *kernels]
    return [str(expand_user(path).absolute()) for path in paths if path]


def unwritable_problems(config: PretrainConfig) -> list[str]:
    """Return a sentence for each folder of a run that cannot be written. Create nothing.

    Folders that only the nodes of a cluster have are not checked here; the ranks check them.
    """
    folders = {"run.output_dir": config.run.output_dir}
    if config.cluster.kind == "local" or config.cluster.container_runtime != "none":
        folders |= {"checkpoint.save": config.checkpoint.save or ""} if config.checkpoint.save_interval else {}
        folders |= {"logger.tensorboard_dir": config.logger.tensorboard_dir or ""}
    reasons = {key: why for key, path in folders.items() if path and (why := unwritable_reason(Path(path)))}
    if "run.output_dir" in reasons and Path(folders.get("checkpoint.save", "/")).is_relative_to(config.run.output_dir):
        reasons.pop("checkpoint.save", None)
    return [f"{key}={folders[key]}: cannot be written: {why}. Choose another {key}." for key, why in reasons.items()]


def foreign_file_problems(run_dir: Path) -> list[str]:
    """Return why a run must not use a folder in which it would replace files that nano3 did not write.

    A folder is a run's if it records a start, or if its config.yaml is one of nano3. The files of a run are then its
    own.

    Args:
        run_dir: The run folder.
    """
    found = [name for name in REPLACED if os.path.lexists(run_dir / name)]
    if not found or latest_start_dir(run_dir) or _is_run_config(run_dir / "config.yaml"):
        return []
    return [
        f"run.output_dir={run_dir}: holds files that nano3 did not write and that the run would replace: "
        f"{', '.join(found)}. Move them elsewhere, or choose another run.output_dir or run.name."
    ]


def _is_run_config(path: Path) -> bool:
    try:
        config = load_config_file(path)
    except (FileNotFoundError, UserError):
        return False
    return {"run", "train", "checkpoint"} <= {str(key) for key in config}
