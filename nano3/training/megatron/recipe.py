"""A Megatron-Bridge recipe, called offline and fitted to the machine and the data at hand.

What nano3 changes in a recipe beyond the keys a user typed stands here, in `adaptations` and `data_settings`, and is
logged.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano3.config import PretrainConfig
from nano3.training.dataset import TrainingData
from nano3.training.megatron.settings import Setting
from nano3.training.run import index_cache
from nano3.training.run.checkpoints import checkpoint_dir
from nano3.utils.errors import UserError, did_you_mean
from nano3.utils.files import write_text

ALLOWED = "megatron.bridge.recipes."
# Recipes that read one small public file from the hub when they are called -> (model, commit). Its text ships in
# hub/, so that a compute node without internet can call them. Values of the public config.json (Apache-2.0), spaced
# for reading.
HUB_FILES = {
    "megatron.bridge.recipes.qwen.qwen3.qwen3_8b_pretrain_config": (
        "Qwen/Qwen3-8B",
        "b968826d9c46dd6066d109eabc6255188de91218",
    ),
}


def target_problems(target: str) -> list[str]:
    """Why `recipe._target_` is refused before anything is imported, or an empty list."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", target):
        return [f"recipe._target_={target}: not a dotted path."]
    if not target.startswith(ALLOWED):
        return [
            f"recipe._target_={target}: recipes come from {ALLOWED.rstrip('.')}; for example {next(iter(HUB_FILES))}."
        ]
    return []


def offline_hub(target: str, scratch: Path) -> None:
    """Make the one hub file that a recipe reads available without network, unless the user's own cache has it.

    huggingface_hub reads its environment variables when it is first imported: before that a cache of this run's own
    is named to it; afterwards the file goes into the cache in use, where a file of a fixed commit is found without
    asking the hub.
    """
    if target not in HUB_FILES:
        return
    model, revision = HUB_FILES[target]
    entry = Path(f"models--{model.replace('/', '--')}") / "snapshots" / revision / "config.json"
    loaded = sys.modules.get("huggingface_hub.constants")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(loaded.HF_HUB_CACHE if loaded else os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    if (cache / entry).exists():
        return
    if not loaded:
        cache = scratch
        os.environ["HF_HUB_CACHE"] = str(scratch)
        os.environ["HF_HUB_OFFLINE"] = "1"
    write_text(cache / entry, (Path(__file__).parent / "hub" / f"{model.replace('/', '--')}.json").read_text())


def call_recipe(target: str, per_split_data_args_path: str | None = None) -> Any:
    """Import and call a recipe. Releases differ: it is given the data path only if it has a parameter for it.

    Raises `UserError` when there is no such recipe.
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
    takes = inspect.signature(function).parameters
    if per_split_data_args_path and "per_split_data_args_path" in takes:
        return function(per_split_data_args_path=per_split_data_args_path)
    return function()


def data_settings(config: PretrainConfig, data: TrainingData, run_dir: Path) -> list[Setting]:
    """The data's own blend and tokenizer, the run's own folders."""
    train, valid, _ = data.blend_per_split
    # Without a test split Megatron-Bridge spends no time on it at the end of every run; it stays unseen for a real
    # evaluation.
    blends = [train, valid if config.train.eval_interval else None, None]
    tensorboard = config.logger.tensorboard_dir or str(run_dir / "tensorboard")
    save = str(checkpoint_dir(config, run_dir)) if config.checkpoint.save_interval else None
    # Megatron-Bridge's own validation is only the occasion for nano3's, which measures train.eval_iters batches.
    validation = [Setting("validation.eval_iters", 1, "train.eval_iters")] if config.train.eval_interval else []
    return [
        *validation,
        Setting("dataset.blend", None, "run.data"),
        Setting("dataset.blend_per_split", blends, "run.data"),
        Setting("dataset.split", None, "run.data"),
        Setting("dataset.path_to_cache", str(index_cache.folder_of(run_dir, data.fingerprint)), "run.output_dir"),
        Setting("tokenizer.tokenizer_type", "HuggingFaceTokenizer", "the data's tokenizer"),
        Setting("tokenizer.tokenizer_model", str(data.tokenizer), "the data's tokenizer"),
        Setting("tokenizer.hf_tokenizer_kwargs", {}, "the data's tokenizer"),
        Setting("logger.tensorboard_dir", f"{tensorboard}/megatron", "logger.tensorboard_dir"),
        Setting("logger.wandb_project", None, "run.wandb"),
        Setting("checkpoint.save", save, "checkpoint.save"),
    ]


def adaptations(get: Callable[[str], Any], world_size: int, has: Callable[[str], bool]) -> list[Setting]:
    """What a recipe made for eight H100s in NVIDIA's container needs elsewhere. `get` reads a field of the container
    by its path (None when absent), `has` tells whether a module can be imported. Each `origin` is the reason, for the
    log.
    """
    found = []
    if get("model.moe_token_dispatcher_type") == "flex":
        found += _dispatcher(get("model.expert_model_parallel_size"), get("model.tensor_model_parallel_size"), has)
    if get("model.gradient_accumulation_fusion") and not has("fused_weight_gradient_mlp_cuda"):
        found.append(Setting("model.gradient_accumulation_fusion", False, "APEX is not installed"))
    if world_size == 1 and get("comm_overlap") is not None:
        found.append(Setting("comm_overlap", None, "one rank has no communication to hide"))
    if get("dataset.create_attention_mask") and not get("dataset.reset_attention_mask"):
        found.append(
            Setting(
                "dataset.create_attention_mask", False, "attention is causal; a 4 M-entry mask per sample costs time"
            )
        )
    return found


def _dispatcher(expert: int | None, tensor: int | None, has: Callable[[str], bool]) -> list[Setting]:
    """What takes the place of DeepEP's and HybridEP's dispatcher where it cannot be used, or has nobody to send to."""
    if expert == 1:
        why = "every rank has all experts, so no token is sent"
    elif not has("deep_ep"):
        why = "deep_ep is not installed"
    else:
        return []
    # With nothing to send, allgather leaves out two sorts of alltoall's: 4 % of a step (benchmarks/results/gpu).
    kind = "allgather" if expert == 1 and (tensor or 1) == 1 else "alltoall"
    return [
        Setting("model.moe_token_dispatcher_type", kind, why),
        Setting("model.moe_flex_dispatcher_backend", None, why),
    ]


def field_getter(container: Any) -> Callable[[str], Any]:
    """`get` for `adaptations` on a live container."""

    def get(path: str) -> Any:
        node = container
        for name in path.split("."):
            node = getattr(node, name, None)
        return node

    return get
