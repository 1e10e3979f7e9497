"""Settings of Megatron-Bridge's ConfigContainer from nano3's typed sections and from the `megatron:` dict.

Megatron-Bridge's own override helper drops unknown keys with a warning and checks no types. nano3 therefore checks
each setting against the dataclasses (`schema`) and reports all problems at once, before CUDA is initialized.
"""

import dataclasses
import enum
import importlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nano3.config import ModelConfig, PretrainConfig
from nano3.config.model import MTP_KEYS, further_patterns
from nano3.config.pretrain import megatron_section
from nano3.training.checks.model_stats import LAYER_KINDS, UNEVEN_STAGES, count_layers, model_value
from nano3.training.checks.parallel_layout import parallel_layout
from nano3.training.megatron.schema import Field, Schema, dtype_name
from nano3.utils.errors import Failure

_ALLOWED_KINDS = "allowed: M Mamba-2, E experts, * attention, - dense MLP"
# nano3 key -> the container fields that it sets. A null keeps the recipe's value.
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
NO_KEY = "nothing: "  # before the reason
# Fields that nano3 computes itself -> the key to set instead, or NO_KEY and why there is none. `megatron:` must not set
# them.
RESERVED_FIELDS: dict[str, str] = {
    "dataset.blend": "run.data",
    "dataset.blend_per_split": "run.data",
    "dataset.split": "run.data",
    "dataset.mock": "run.data",
    "dataset.data_path": "run.data",
    "dataset.inter_document_masking": "train.document_boundaries",
    "checkpoint.save": "checkpoint.save",
    "checkpoint.load": "checkpoint.load",
    "checkpoint.ckpt_step": "checkpoint.load (the folder of one iteration)",
    "checkpoint.finetune": "checkpoint.load (another folder than checkpoint.save starts a new phase)",
    "checkpoint.custom_manager_class": f"{NO_KEY}nano3's manager saves",
    "train.exit_interval": "train.exit_iteration",
    "train.exit_duration_in_mins": "train.exit_duration_in_mins",
    "train.exit_signal_handler": f"{NO_KEY}SIGTERM and SIGUSR2 always save and stop",
    "logger.tensorboard_dir": "logger.tensorboard_dir",
    "logger.wandb_project": "run.wandb.project",
    "logger.wandb_entity": "run.wandb.entity",
    "validation.eval_iters": "train.eval_iters",
    "validation.eval_interval": "train.eval_interval",
    "model.vocab_size": "model.vocab_size",
    "train.iterations_to_skip": "train.skip_iterations",
    "validation.skip_train": f"{NO_KEY}a run always trains",
    "dist.use_decentralized_pg": f"{NO_KEY}nano3 reads Megatron's global process groups",
}


@dataclass(frozen=True)
class Setting:
    """A value for one field of the container, and its origin: a nano3 key, or the reason for an adaptation."""

    path: str
    value: Any
    origin: str


def typed_settings(config: PretrainConfig) -> list[Setting]:
    """Return the sections model, train, optimizer, scheduler, logger and checkpoint as settings."""
    found = []
    for key, paths in CONTAINER_FIELDS.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if key == "checkpoint.keep_last":
            value = value or -1
        if key == "train.eval_interval" and not value:
            value = None
        if value is None and key != "scheduler.lr_wsd_decay_iters" and key != "train.eval_interval":
            continue
        found += [Setting(path, value, key) for path in paths]
    if not config.train.eval_interval:
        found = [s if s.path != "validation.eval_iters" else Setting(s.path, 0, "train.eval_interval") for s in found]
    for f in dataclasses.fields(config.model):
        value = getattr(config.model, f.name)
        if value is not None:
            found.append(Setting(f"model.{f.name}", value, f"model.{f.name}"))
    found += _mtp_settings(config.model)
    if config.model.hybrid_layer_pattern:
        found.append(
            Setting("model.num_layers", count_layers(config.model.hybrid_layer_pattern), "model.hybrid_layer_pattern")
        )
    if config.model.vocab_size is not None:
        found.append(Setting("tokenizer.use_tokenizer_vocab_size", False, "model.vocab_size"))
    if config.train.document_boundaries == "isolate":
        found.append(Setting("dataset.inter_document_masking", True, "train.document_boundaries"))
    if config.train.loss_mask.eod:
        found.append(Setting("dataset.eod_mask_loss", True, "train.loss_mask.eod"))
    return found


def _mtp_settings(model: ModelConfig) -> list[Setting]:
    """Return the settings that keep depth and layers of multi-token prediction consistent.

    Megatron-Bridge builds the layers if either field is set, and its hybrid model fails in the first step if the depth
    is 0 then.
    """
    depths = further_patterns(model.hybrid_layer_pattern)
    if model.mtp_num_layers == 0:
        return [Setting("model.mtp_hybrid_override_pattern", None, "model.mtp_num_layers")]
    if not depths:
        return []
    return [
        Setting("model.mtp_num_layers", len(depths), "model.hybrid_layer_pattern"),
        Setting("model.mtp_hybrid_override_pattern", depths[0], "model.hybrid_layer_pattern"),
    ]


def mtp_problems(config: PretrainConfig, known: Schema | None) -> list[str]:
    """Return the keys that describe the layers of multi-token prediction in two ways, or not at all.

    Args:
        config: The run's configuration.
        known: The recorded values of its recipe, None if there are none.
    """
    model, free = config.model, megatron_section(config, "model")
    depths = further_patterns(model.hybrid_layer_pattern)
    problems = [
        f"megatron.model.{key}: this is set by model.{key}; set it there."
        for key in MTP_KEYS
        if key in free and getattr(model, key) is not None
    ]
    layers = model.mtp_hybrid_override_pattern or free.get("mtp_hybrid_override_pattern")
    if unknown := sorted(set(layers) - set(LAYER_KINDS)) if isinstance(layers, str) else []:
        problems.append(f"model.mtp_hybrid_override_pattern={layers} has {' '.join(unknown)}; {_ALLOWED_KINDS}.")
    if not depths:
        return problems + _missing_mtp_layers(model, free, known)
    if set(depths) != {depths[0]} or not depths[0]:
        problems.append(
            f"model.hybrid_layer_pattern={model.hybrid_layer_pattern}: the parts after / must be equal, one for each "
            "token that multi-token prediction predicts."
        )
    for key, value in (("mtp_num_layers", len(depths)), ("mtp_hybrid_override_pattern", depths[0])):
        own = getattr(model, key)
        if own is not None and own != value:
            problems.append(
                f"model.{key}={own}: model.hybrid_layer_pattern={model.hybrid_layer_pattern} says {value}. Leave out "
                "one of them."
            )
    return problems


def _missing_mtp_layers(model: ModelConfig, free: Mapping[str, Any], known: Schema | None) -> list[str]:
    """Return a problem if a hybrid model predicts further tokens without layers for it; Megatron would leave it out."""
    names = ("mtp_num_layers", "hybrid_layer_pattern", "mtp_hybrid_override_pattern")
    depths, pattern, layers = (model_value(model, free, known, name) for name in names)
    if not depths or not pattern or layers:
        return []
    return [
        f"model.mtp_num_layers={depths}: there are no layers for it. Set "
        "model.mtp_hybrid_override_pattern, for example '*E' as in Nemotron 3.5 Lightning."
    ]


def recompute_key_problems(config: PretrainConfig, known: Schema) -> list[str]:
    """Return what is missing, or too much, beside megatron.model.recompute_granularity.

    Args:
        config: The run's configuration.
        known: The recorded values of its recipe.
    """
    free = megatron_section(config, "model")
    granularity, method, layers = (
        free.get(name, known.value(f"model.{name}"))
        for name in ("recompute_granularity", "recompute_method", "recompute_num_layers")
    )
    if granularity == "full" and (method is None or layers is None):
        return [
            "megatron.model.recompute_granularity=full needs to know which layers: for all of them, set "
            "++megatron.model.recompute_method=uniform ++megatron.model.recompute_num_layers=1."
        ]
    if granularity == "selective" and layers is not None:
        return [
            f"megatron.model.recompute_num_layers={layers} is for recompute_granularity=full. For selective, set "
            "++megatron.model.recompute_num_layers=null."
        ]
    return []


def pattern_problems(pattern: str | None) -> list[str]:
    """Return why a hybrid pattern is invalid: unknown layer kinds, a stray |, or no layer in the main stack."""
    if pattern is None:
        return []
    allowed = f"{_ALLOWED_KINDS}; | between pipeline stages, / ends the main stack"
    if unknown := sorted(set(pattern) - set(f"{LAYER_KINDS}|/")):
        return [f"model.hybrid_layer_pattern={pattern} has {' '.join(unknown)}; {allowed}."]
    if "|" in "".join(further_patterns(pattern)):
        return [f"model.hybrid_layer_pattern={pattern} has | after /, where no stage ends; {allowed}."]
    return [] if count_layers(pattern) else [f"model.hybrid_layer_pattern={pattern} has no layer; {allowed}."]


def hybrid_stage_problems(config: PretrainConfig, known: Schema) -> list[str]:
    """Return the keys about pipeline stages that do not go with a hybrid model: its pattern marks the stages.

    Megatron-Bridge builds no virtual stages of hybrid models (`hybrid_provider.py`).

    Args:
        config: The run's configuration.
        known: The schema of its recipe.
    """
    if not (config.model.hybrid_layer_pattern or known.value("model.hybrid_layer_pattern")):
        return []
    chosen, virtual = chosen_fields(config, known), "model.virtual_pipeline_model_parallel_size"
    pipeline = parallel_layout(config, known).pipeline
    problems = []
    if chosen.get(virtual) is not None:
        problems.append(
            f"megatron.{virtual}={chosen[virtual]}: Megatron-Bridge has no virtual stages of hybrid models; leave it "
            "out."
        )
    if pipeline == 1:
        return problems
    for path in (f"model.{key}" for key in UNEVEN_STAGES):
        if chosen.get(path):
            problems.append(
                f"megatron.{path}: a hybrid model marks uneven pipeline stages with | in model.hybrid_layer_pattern, "
                "as in MEM*E|MEME; leave it out."
            )
    for path in ("model.overlap_moe_expert_parallel_comm", "comm_overlap.overlap_moe_expert_parallel_comm"):
        if chosen.get(path):
            problems.append(
                f"megatron.{path}=true needs virtual stages with model.pipeline_model_parallel_size={pipeline}, which "
                "hybrid models cannot have; leave it out."
            )
    return problems


def chosen_fields(config: PretrainConfig, known: Schema) -> dict[str, Any]:
    """Return the fields of the container that the section `megatron` sets, by path.

    Args:
        config: The run's configuration.
        known: The schema of its recipe.
    """
    return {setting.path: setting.value for setting in override_settings(config.megatron, known)}


def override_settings(tree: Mapping[str, Any], schema: Schema) -> list[Setting]:
    """Return the `megatron:` dict as one setting per container field. The value of a dict field stays a dict.

    Args:
        tree: The `megatron:` dict of the configuration.
        schema: Says which fields are sections.
    """

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
    """Return all problems of all settings: unknown paths, wrong types, and fields that another key sets.

    Args:
        settings: Settings from any source.
        schema: The schema of the recipe's container.
    """
    problems = []
    owners = RESERVED_FIELDS | {path: key for key, paths in CONTAINER_FIELDS.items() for path in paths}
    for s in settings:
        found, sentence = schema.lookup(s.path)
        is_override = s.origin.startswith("megatron.")
        if found is None:
            hint = "" if is_override else " The recipe's model has no such field: leave it null."
            problems.append(f"{s.origin}={s.value}: {sentence}{hint}")
        elif is_override and (owner := owners.get(s.path) or _model_key(s.path)):
            reason = owner.removeprefix(NO_KEY)
            sentence = f"this is set by {owner}; set it there." if reason == owner else f"leave it out: {reason}."
            problems.append(f"{s.origin}: {sentence}")
        elif problem := found.problem(s.value):
            problems.append(f"{s.origin}={s.value}: {problem}")
    return problems


def _model_key(path: str) -> str | None:
    names = {f.name for f in dataclasses.fields(ModelConfig)} - set(MTP_KEYS)
    section, _, name = path.partition(".")
    return path if section == "model" and name in names else None


def apply_settings(container: Any, settings: list[Setting], schema: Schema) -> None:
    """Set every setting on the live container, after `setting_problems` has found nothing.

    Args:
        container: A megatron.bridge ConfigContainer; changed in place.
        settings: The settings to apply, in order.
        schema: The schema of the container.

    Raises:
        Failure: A parent section is held by name, or is unset and cannot be created.
    """
    for s in settings:
        node, name = _resolve(container, s.path)
        found, _ = schema.lookup(s.path)
        setattr(node, name, _convert(s.value, found or Field(), getattr(node, name, None)))


def _resolve(container: Any, path: str) -> tuple[Any, str]:
    """Return the object that holds the last name of `path`, and that name. Create sections that are None."""
    *parents, last = path.split(".")
    node = container
    for i, name in enumerate(parents):
        inner = getattr(node, name)
        if inner is None:
            inner = _create_section(container, ".".join(parents[: i + 1]))
            setattr(node, name, inner)
        elif isinstance(inner, str):
            raise Failure(
                f"{path}: the recipe holds {name} by its name {inner!r}; set megatron.{name} to a name instead."
            )
        node = inner
    return node, last


def _create_section(container: Any, path: str) -> Any:
    """Return a default instance of the dataclass that the container declares for an unset section."""
    hint = typing.get_type_hints(type(container))[path] if "." not in path else None
    for cls in typing.get_args(hint) or (hint,):
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            return cls()
    raise Failure(f"megatron.{path} is unset in this recipe and nano3 cannot create it; choose a recipe that has it.")


def _convert(value: Any, found: Field, current: Any) -> Any:
    """Return a value as the dataclass holds it: a torch dtype, an enumeration member, or a merged dict."""
    if isinstance(value, Mapping) and isinstance(current, Mapping) and "dict" in found.kinds:
        return {**current, **value}
    if isinstance(value, str) and "dtype" in found.kinds and (name := dtype_name(value)):
        return getattr(importlib.import_module("torch"), name)
    if isinstance(value, str) and isinstance(current, enum.Enum):
        members = {m.name.lower(): m for m in type(current)}
        return members.get(value.lower(), value)
    return value
