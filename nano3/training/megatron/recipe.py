"""Call a Megatron-Bridge recipe offline and adapt it to the machine and the data.

`adaptations` and `data_settings` contain all that nano3 changes in a recipe besides the user's keys. Adaptations are
logged.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nano3.config import PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.training.dataset import TrainingData
from nano3.training.megatron.settings import Setting
from nano3.training.run import index_cache
from nano3.training.run.checkpoints import checkpoint_dir
from nano3.utils.console import say, warn
from nano3.utils.errors import UserError, did_you_mean
from nano3.utils.files import expand_user, write_text

ALLOWED = ("megatron.bridge.recipes.", "megatron.bridge.perf_recipes.")
# Recipes that read the config.json of a model from the Hugging Face Hub when called -> (model, commit). hub/ contains
# the files (Apache-2.0, reformatted), so that a compute node without internet access can call these recipes.
HUB_FILES = {
    "megatron.bridge.recipes.qwen.qwen3.qwen3_8b_pretrain_config": (
        "Qwen/Qwen3-8B",
        "b968826d9c46dd6066d109eabc6255188de91218",
    ),
}


def target_problems(target: str) -> list[str]:
    """Return why `recipe._target_` cannot be a recipe, judged by its name alone."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", target):
        return [f"recipe._target_={target}: not a dotted path."]
    if not target.startswith(ALLOWED):
        packages = " or ".join(name.rstrip(".") for name in ALLOWED)
        return [f"recipe._target_={target}: recipes come from {packages}, for example {next(iter(HUB_FILES))}."]
    return []


def offline_hub(target: str, scratch: Path) -> None:
    """Make the hub file that a recipe reads available without network access, unless the user's cache has it.

    huggingface_hub reads its environment variables when it is imported. Before the import, point it to a cache in
    `scratch`; after the import, write the file to the cache in use, where a file of a fixed commit is found offline.

    Args:
        target: Dotted name of the recipe.
        scratch: A folder of this run for the cache.
    """
    if target not in HUB_FILES:
        return
    model, revision = HUB_FILES[target]
    entry = Path(f"models--{model.replace('/', '--')}") / "snapshots" / revision / "config.json"
    loaded = sys.modules.get("huggingface_hub.constants")
    home = expand_user(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = expand_user(loaded.HF_HUB_CACHE if loaded else os.environ.get("HF_HUB_CACHE", home / "hub"))
    if (cache / entry).exists():
        return
    if not loaded:
        cache = scratch
        os.environ["HF_HUB_CACHE"] = str(scratch)
        os.environ["HF_HUB_OFFLINE"] = "1"
    write_text(cache / entry, (Path(__file__).parent / "hub" / f"{model.replace('/', '--')}.json").read_text())


def call_recipe(target: str, per_split_data_args_path: str | None = None) -> Any:
    """Import and call a recipe, and return its ConfigContainer.

    Args:
        target: Dotted name of the recipe.
        per_split_data_args_path: Passed to recipes that have a parameter of this name; releases differ.

    Raises:
        UserError: There is no such recipe.
    """
    if problems := target_problems(target):
        raise UserError(problems)
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or "-"):
            raise
        raise UserError(f"recipe._target_={target}: there is no module {error.name}.") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        names = [n for n in vars(module) if n.endswith("_config") and not n.startswith("_")]
        raise UserError(f"recipe._target_={target}: {module_name} has no {name!r}.{did_you_mean(name, names)}")
    parameters = inspect.signature(function).parameters
    if per_split_data_args_path and "per_split_data_args_path" in parameters:
        return function(per_split_data_args_path=per_split_data_args_path)
    return function()


def data_settings(config: PretrainConfig, data: TrainingData, run_dir: Path) -> list[Setting]:
    """Return the settings that follow from the prepared data and the run folder.

    Args:
        config: The run's configuration.
        data: The prepared data, with its blend and tokenizer.
        run_dir: The run folder, for sample index, TensorBoard and checkpoints.
    """
    train, valid, _ = data.blend_per_split
    # Megatron-Bridge would evaluate the test split at the end of every run. Keep it unseen for a real evaluation.
    blends = [train, valid if config.train.eval_interval else None, None]
    tensorboard = config.logger.tensorboard_dir or str(run_dir / "tensorboard")
    save = str(checkpoint_dir(config, run_dir)) if config.checkpoint.save_interval else None
    # Megatron-Bridge's validation only triggers that of nano3, which measures train.eval_iters batches.
    validation = [Setting("validation.eval_iters", 1, "train.eval_iters")] if config.train.eval_interval else []
    return [
        *validation,
        Setting("dataset.blend", None, "run.data"),
        Setting("dataset.blend_per_split", blends, "run.data"),
        Setting("dataset.split", None, "run.data"),
        Setting("dataset.path_to_cache", str(index_cache.cache_folder(run_dir, data.fingerprint)), "run.output_dir"),
        Setting("tokenizer.tokenizer_type", "HuggingFaceTokenizer", "the data's tokenizer"),
        Setting("tokenizer.tokenizer_model", str(data.tokenizer), "the data's tokenizer"),
        Setting("tokenizer.hf_tokenizer_kwargs", {}, "the data's tokenizer"),
        Setting("logger.tensorboard_dir", f"{tensorboard}/megatron", "logger.tensorboard_dir"),
        Setting("logger.wandb_project", None, "run.wandb"),
        Setting("checkpoint.save", save, "checkpoint.save"),
    ]


def ladder_settings(config: PretrainConfig) -> list[Setting]:
    """Return the changes that a recipe needs for a model of the ladder: cuDNN has no norm for widths such as 416."""
    if config.ladder.size is None:
        return []
    own_kernels = {"NVTE_NORM_FWD_USE_CUDNN": 0, "NVTE_NORM_BWD_USE_CUDNN": 0}
    why = "cuDNN has no norm for some widths of the ladder; Transformer Engine's own kernels take any"
    return [Setting("env_vars", own_kernels, why)]


def set_variables(config: PretrainConfig, variables: Mapping[str, Any]) -> None:
    """Set the variables that a model of the ladder needs, and report settings that the environment overrides.

    Megatron-Bridge sets only variables that the environment lacks (`apply_environment_variables`).

    Args:
        config: The run's configuration.
        variables: The section `env_vars` of the container, with all settings.
    """
    needed = {name for setting in ladder_settings(config) for name in setting.value}
    chosen = megatron_section(config, "env_vars")
    for name, value in variables.items():
        if os.environ.get(name, str(value)) == str(value):
            continue
        if name in needed:
            say(f"adapted {name}={value}, which the environment sets to {os.environ[name]}")
            os.environ[name] = str(value)
        elif name in chosen:
            warn(
                f"megatron.env_vars.{name} has no effect: the environment sets {name} to another value, which "
                f"Megatron-Bridge keeps. Unset it there, or set cluster.env.{name}."
            )


def adaptations(
    get: Callable[[str], Any], world_size: int, has: Callable[[str], bool], guarded: bool = False
) -> list[Setting]:
    """Return the changes that a recipe for eight H100s in NVIDIA's container needs elsewhere.

    Each `origin` is the reason, for the log.

    Args:
        get: Returns a field of the container by its dotted path; None if it is absent.
        world_size: Ranks of the run.
        has: Returns whether a module can be imported.
        guarded: Whether the guard watches the loss.
    """
    found = []
    if guarded:
        # Megatron's checks fail on the one rank whose batch has the NaN, while the others wait for it.
        checks = ("rerun_state_machine.check_for_nan_in_loss", "ddp.check_for_nan_in_grad")
        found += [Setting(path, False, "the guard finds NaN, on all ranks together") for path in checks if get(path)]
        if get("ddp.check_for_large_grads"):
            # The host waits for the GPU at every bucket of gradients, to log a warning.
            found.append(Setting("ddp.check_for_large_grads", False, "the guard watches the gradient norm"))
    if get("model.moe_token_dispatcher_type") == "flex":
        found += _dispatcher(get("model.expert_model_parallel_size"), get("model.tensor_model_parallel_size"), has)
    if get("model.gradient_accumulation_fusion") and not has("fused_weight_gradient_mlp_cuda"):
        found.append(Setting("model.gradient_accumulation_fusion", False, "APEX is not installed"))
    if world_size == 1 and get("comm_overlap") is not None:
        found.append(Setting("comm_overlap", None, "one rank has no communication to hide"))
    if get("dataset.inter_document_masking") and get("model.cuda_graph_impl") not in (None, "none"):
        why = "train.document_boundaries=isolate: CUDA graphs take no documents of changing lengths"
        found += [Setting("model.cuda_graph_impl", "none", why), Setting("model.cuda_graph_modules", [], why)]
    if get("checkpoint.save") and get("checkpoint.ckpt_format") == "torch_dist" and not get("checkpoint.async_save"):
        found.append(Setting("checkpoint.async_save", True, "training goes on while a checkpoint is written"))
    if get("dataset.create_attention_mask") and not get("dataset.reset_attention_mask"):
        found.append(
            Setting(
                "dataset.create_attention_mask", False, "attention is causal; a 4 M-entry mask per sample costs time"
            )
        )
    return found


def _dispatcher(expert: int | None, tensor: int | None, has: Callable[[str], bool]) -> list[Setting]:
    """Return the replacement of the DeepEP and HybridEP dispatcher where it is missing or not needed."""
    if expert == 1:
        why = "every rank has all experts, so no token is sent"
    elif not has("deep_ep"):
        why = "deep_ep is not installed"
    else:
        return []
    # With nothing to send, allgather saves two sorts compared to alltoall: 4 % of a step (benchmarks/results/gpu).
    kind = "allgather" if expert == 1 and (tensor or 1) == 1 else "alltoall"
    return [
        Setting("model.moe_token_dispatcher_type", kind, why),
        Setting("model.moe_flex_dispatcher_backend", None, why),
    ]


def field_getter(container: Any) -> Callable[[str], Any]:
    """Return the function `get` of `adaptations` for a live container."""

    def get(path: str) -> Any:
        node = container
        for name in path.split("."):
            node = getattr(node, name, None)
        return node

    return get
