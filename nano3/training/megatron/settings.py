"""nano3's typed sections and the `megatron:` dict as settings of Megatron-Bridge's ConfigContainer: listed, checked,
applied.

Megatron-Bridge's own override helper drops unknown keys with a warning and checks no types, so nano3 checks every
single setting against the dataclasses (`schema`) first, and tells all problems at once, before CUDA is touched.
"""

import dataclasses
import enum
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nano3.config import PretrainConfig
from nano3.training.megatron.schema import Field, Schema, dtype_name
from nano3.utils.errors import Failure

# nano3 key -> fields of the container that it sets. A null leaves the recipe's value.
CONTAINER_FIELDS: dict[str, tuple[str, ...]] = {
    "train.train_iters": ("train.train_iters", "scheduler.lr_decay_iters"),
    "train.global_batch_size": ("train.global_batch_size",),
    "train.micro_batch_size": ("train.micro_batch_size",),
    "train.seq_length": ("model.seq_length", "dataset.seq_length"),
    "train.seed": ("rng.seed", "dataset.random_seed"),
    "train.eval_interval": ("validation.eval_interval",),
    "train.eval_iters": ("validation.eval_iters",),
    "optimizer.lr": ("optimizer.lr",),
    "optimizer.min_lr": ("optimizer.min_lr",),
    "optimizer.adam_beta1": ("optimizer.adam_beta1",),
    "optimizer.adam_beta2": ("optimizer.adam_beta2",),
    "optimizer.adam_eps": ("optimizer.adam_eps",),
    "optimizer.weight_decay": ("optimizer.weight_decay", "scheduler.start_weight_decay", "scheduler.end_weight_decay"),
    "optimizer.clip_grad": ("optimizer.clip_grad",),
    "scheduler.lr_decay_style": ("scheduler.lr_decay_style",),
    "scheduler.lr_warmup_iters": ("scheduler.lr_warmup_iters",),
    "scheduler.lr_wsd_decay_iters": ("scheduler.lr_wsd_decay_iters",),
    "scheduler.lr_wsd_decay_style": ("scheduler.lr_wsd_decay_style",),
    "logger.log_interval": ("logger.log_interval",),
    "checkpoint.save_interval": ("checkpoint.save_interval",),
    "checkpoint.keep_last": ("checkpoint.most_recent_k",),
}
# Fields that nano3 computes from the data and the run folder; `megatron:` may not set them.
RESERVED_FIELDS: dict[str, str] = {
    "dataset.blend": "run.data",
    "dataset.blend_per_split": "run.data",
    "dataset.split": "run.data",
    "dataset.mock": "run.data",
    "dataset.data_path": "run.data",
    "checkpoint.save": "checkpoint.save",
    "checkpoint.load": "checkpoint.load",
    "checkpoint.ckpt_step": "checkpoint.load (the folder of one iteration)",
    "checkpoint.finetune": "checkpoint.load (another folder than checkpoint.save begins a new phase)",
    "train.exit_interval": "train.exit_iteration",
    "train.exit_duration_in_mins": "train.exit_duration_in_mins",
    "train.exit_signal_handler": "nothing: SIGTERM and SIGUSR2 always save and stop",
    "logger.tensorboard_dir": "logger.tensorboard_dir",
    "logger.wandb_project": "run.wandb.project",
    "logger.wandb_entity": "run.wandb.entity",
    "validation.eval_iters": "train.eval_iters",
    "validation.eval_interval": "train.eval_interval",
    "model.vocab_size": "model.vocab_size",
}


@dataclass(frozen=True)
class Setting:
    """One value for one field of the container, and what asked for it (a nano3 key, or the reason of an adaptation)."""

    path: str
    value: Any
    origin: str


def typed_settings(config: PretrainConfig) -> list[Setting]:
    """The sections model, train, optimizer, scheduler, logger and checkpoint as settings."""
    found = []
    for key, places in CONTAINER_FIELDS.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if key == "checkpoint.keep_last":
            value = value or -1
        if key == "train.eval_interval" and not value:
            value = None
        if value is None and key != "scheduler.lr_wsd_decay_iters" and key != "train.eval_interval":
            continue
        found += [Setting(path, value, key) for path in places]
    if not config.train.eval_interval:
        found = [s if s.path != "validation.eval_iters" else Setting(s.path, 0, "train.eval_interval") for s in found]
    for f in dataclasses.fields(config.model):
        value = getattr(config.model, f.name)
        if value is not None:
            found.append(Setting(f"model.{f.name}", value, f"model.{f.name}"))
    if config.model.hybrid_layer_pattern:
        found.append(
            Setting("model.num_layers", count_layers(config.model.hybrid_layer_pattern), "model.hybrid_layer_pattern")
        )
    if config.model.vocab_size is not None:
        found.append(Setting("tokenizer.use_tokenizer_vocab_size", False, "model.vocab_size"))
    return found


def count_layers(pattern: str) -> int:
    """Number of layers of a hybrid pattern; `|` only cuts it into pipeline stages, `/` starts what is not the main
    stack."""
    return sum(c in "M*E-" for c in pattern.split("/")[0])


def pattern_problems(pattern: str | None) -> list[str]:
    """Why a pattern has no number of layers: kinds that nano3 cannot count, or none in the main stack."""
    if pattern is None:
        return []
    allowed = "allowed: M Mamba-2, E experts, * attention, - dense MLP; | between pipeline stages, / before the rest"
    if unknown := sorted(set(pattern) - set("M*E-|/")):
        return [f"model.hybrid_layer_pattern={pattern} has {' '.join(unknown)}; {allowed}."]
    return [] if count_layers(pattern) else [f"model.hybrid_layer_pattern={pattern} has no layer; {allowed}."]


def override_settings(tree: Mapping[str, Any], schema: Schema) -> list[Setting]:
    """The `megatron:` dict flattened to fields of the container; values inside a field that is itself a dict stay
    together."""

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[Setting]:
        for name, value in node.items():
            path = f"{prefix}{name}"
            found, _ = schema.lookup(path)
            if isinstance(value, Mapping) and found is not None and found.section:
                yield from walk(value, f"{path}.")
            else:
                yield Setting(path, value, f"megatron.{path}")

    return list(walk(tree, ""))


def setting_problems(settings: list[Setting], schema: Schema) -> list[str]:
    """Every problem of every setting: unknown path, wrong type, or a field that another key owns."""
    problems = []
    taken = RESERVED_FIELDS | {place: key for key, places in CONTAINER_FIELDS.items() for place in places}
    for s in settings:
        found, sentence = schema.lookup(s.path)
        free = s.origin.startswith("megatron.")
        if found is None:
            hint = " The recipe's model has no such field: leave it null." if not free else ""
            problems.append(f"{s.origin}={s.value}: {sentence}{hint}")
        elif free and (owner := taken.get(s.path) or _model_key(s.path)):
            problems.append(f"{s.origin}: this is set by {owner}; set it there.")
        elif problem := found.problem(s.value):
            problems.append(f"{s.origin}={s.value}: {problem}")
    return problems


def _model_key(path: str) -> str | None:
    names = {f.name for f in dataclasses.fields(PretrainConfig().model)} | {"num_layers"}
    section, _, name = path.partition(".")
    if section != "model" or name not in names - {"num_layers"}:
        return None
    return path


def apply_settings(container: Any, settings: list[Setting], schema: Schema) -> None:
    """Set every setting on the live container. `setting_problems` has passed."""
    for s in settings:
        node, *rest = _walk(container, s.path, schema)
        found, _ = schema.lookup(s.path)
        setattr(node, rest[0], _convert(s.value, found or Field(), getattr(node, rest[0], None)))


def _walk(container: Any, path: str, schema: Schema) -> tuple[Any, str]:
    """The object that holds the last name of `path`; a section that is None is made from its dataclass first."""
    *parents, last = path.split(".")
    node = container
    for i, name in enumerate(parents):
        inner = getattr(node, name)
        if inner is None:
            inner = _make(container, ".".join(parents[: i + 1]))
            setattr(node, name, inner)
        elif isinstance(inner, str):
            raise Failure(
                f"{path}: the recipe holds {name} by its name {inner!r}; set megatron.{name} to a name instead."
            )
        node = inner
    return node, last


def _make(container: Any, path: str) -> Any:
    """An instance with default values of the dataclass that the container declares for an unset section."""
    import typing

    hint = typing.get_type_hints(type(container))[path] if "." not in path else None
    for part in typing.get_args(hint) or (hint,):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            return part()
    raise Failure(f"megatron.{path} is unset in this recipe and nano3 cannot make one; choose a recipe that has it.")


def _convert(value: Any, found: Field, current: Any) -> Any:
    """Text for a dtype or an enumeration becomes the object that the dataclass holds; a dict is laid over the
    recipe's."""
    if isinstance(value, Mapping) and isinstance(current, Mapping) and "dict" in found.kinds:
        return {**current, **value}
    if isinstance(value, str) and "dtype" in found.kinds and (name := dtype_name(value)):
        return getattr(importlib.import_module("torch"), name)
    if isinstance(value, str) and isinstance(current, enum.Enum):
        members = {m.name.lower(): m for m in type(current)}
        return members.get(value.lower(), value)
    return value
