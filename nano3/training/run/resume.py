"""What makes two starts the same run: keys that a checkpoint fixes, and keys whose change is told."""

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nano3.config.model import ModelConfig
from nano3.config.pretrain import PretrainConfig
from nano3.training.dataset import TrainingData
from nano3.training.hf.model import PARALLEL, embedding_rows, value
from nano3.training.run.checkpoints import CheckpointInfo
from nano3.utils.console import warn
from nano3.utils.errors import UserError

# Two settings of the model that change only its speed, or nothing in this backend.
_FREE_MODEL_KEYS = ("mamba_chunk_size", "sequence_parallel", *PARALLEL)
# What may differ on a start from another run's checkpoint in the same schedule.
_FREE_OF_ANOTHER_RUN = ("data", "train.seed")
_VERSIONS = ("torch", "transformers", "megatron-core")


@dataclass(frozen=True)
class Start:
    """Where a run starts: from nothing (`folder` and `info` None) or from a checkpoint; and what identifies the run.

    `new_phase`: weights and optimizer come from the checkpoint; iterations, schedule and data order begin at 0.
    """

    folder: Path | None
    info: CheckpointInfo | None
    run_identity: dict[str, Any]
    mutable_settings: dict[str, Any]
    threads: int
    new_phase: bool = False

    @property
    def iteration(self) -> int:
        """Iterations of this run that are done."""
        return self.info.iteration if self.info and not self.new_phase else 0


def fixed_keys(config: PretrainConfig, data: TrainingData) -> dict[str, Any]:
    """Values that must be the same on a resume: architecture, data, seed, and what a sample and an iteration are."""
    shape = [f.name for f in fields(ModelConfig) if f.name not in _FREE_MODEL_KEYS]
    fixed = {f"model.{key}": value(config.model, key) for key in shape}
    fixed["model.vocab_size"] = embedding_rows(config.model, data.vocab_size)
    fixed["train.seed"] = config.train.seed
    fixed["train.seq_length"] = config.train.seq_length
    fixed["train.global_batch_size"] = config.train.global_batch_size
    fixed["data"] = data.fingerprint
    return fixed


def told_keys(config: PretrainConfig, world_size: int, threads: int) -> dict[str, Any]:
    """Values that may change on a resume; a change is told, because losses then differ from an undisturbed run's."""
    told: dict[str, Any] = {f"optimizer.{k}": v for k, v in asdict(config.optimizer).items()}
    told |= {f"scheduler.{k}": v for k, v in asdict(config.scheduler).items()}
    told["train.train_iters"] = config.train.train_iters
    told["train.micro_batch_size"] = config.train.micro_batch_size
    told["model.mamba_chunk_size"] = value(config.model, "mamba_chunk_size")
    told["world size"] = world_size
    told["threads per rank"] = threads
    told["processor"] = platform.machine()
    told |= {f"version of {name}": version(name) for name in _VERSIONS}
    return told


def check_fixed(info: CheckpointInfo, folder: Path, fixed: dict[str, Any], own_folder: bool) -> None:
    """Raise `UserError` naming every fixed key that differs.

    A run that goes on at the iteration of another run's checkpoint (checkpoint.keep_iteration; `own_folder` false) may
    bring other data and another seed: that is how the rest of one schedule is trained on other data.
    """
    changed = _differences(info.run_identity, fixed)
    if not own_folder:
        changed = {key: values for key, values in changed.items() if key not in _FREE_OF_ANOTHER_RUN}
    if changed:
        rows = [f"{key}: {_show(old)} in the checkpoint, now {_show(new)}" for key, (old, new) in changed.items()]
        raise UserError(
            f"{folder} is a checkpoint of a different run: {'; '.join(rows)}. Give these their old values, or start "
            "a new run with another run.name. May change on a resume: train.train_iters, train.micro_batch_size, "
            "train.eval_*, train.exit_*, "
            "train.threads, optimizer, scheduler, logger, checkpoint, cluster."
        )


def check_resume(
    info: CheckpointInfo, folder: Path, fixed: dict[str, Any], told: dict[str, Any], own_folder: bool
) -> None:
    """`check_fixed`, and warn of everything else that has changed."""
    check_fixed(info, folder, fixed, own_folder)
    for key in _FREE_OF_ANOTHER_RUN:
        if info.run_identity.get(key) != fixed.get(key):
            warn(f"{folder} was trained with another value of {key}; going on with the new one.")
    for key, (old, new) in _differences(info.mutable_settings, told).items():
        warn(f"{key} was {_show(old)} when {folder.name} was saved and is {_show(new)} now: {_effect(key)}")


def check_new_phase(info: CheckpointInfo, folder: Path, fixed: dict[str, Any], free: Iterable[str] = ()) -> None:
    """Raise `UserError` unless the checkpoint's weights fit this run's model; everything else is this run's own."""
    skipped = {"backend", "data", "recipe", *free}
    changed = {
        k: v
        for k, v in _differences(info.run_identity, fixed).items()
        if k not in skipped and not k.startswith("train.")
    }
    if info.run_identity.get("backend") != fixed.get("backend"):
        raise UserError(
            f"{folder} was written by the other backend. Export it (nano3 export) and start from that folder: "
            "+megatron.checkpoint.pretrained_checkpoint=FOLDER."
        )
    if changed:
        rows = [f"{key}: {_show(old)} in the checkpoint, now {_show(new)}" for key, (old, new) in changed.items()]
        raise UserError(
            f"{folder} holds another model: {'; '.join(rows)}. A new phase starts from the weights of the same model; "
            "give these their old values, or leave checkpoint.load out."
        )


def _effect(key: str) -> str:
    if key == "train.train_iters":
        return (
            "the learning-rate schedule follows the new length, and since the data order is drawn for train_iters x "
            "global_batch_size samples, samples already seen may come again before all others were."
        )
    if key.startswith(("optimizer.", "scheduler.")):
        return "the run goes on with the new value."
    return "sums are added up in another order or by other code, so losses can differ in their last digits."


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {k: (old.get(k), new.get(k)) for k in [*old, *(n for n in new if n not in old)] if old.get(k) != new.get(k)}


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text
