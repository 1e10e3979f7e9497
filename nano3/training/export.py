"""Export a checkpoint as a Hugging Face model folder (config.json, safetensors, tokenizer) for `from_pretrained`.

The last checkpoint of a finished run of backend=transformers already holds that folder. For another one, the model is
built from checkpoint.json and takes the weights of state.pt. A Megatron checkpoint is converted by Megatron-Bridge's
AutoBridge, which needs a visible GPU and a Hugging Face description of the model; that description is made from the
configuration which Megatron-Bridge saved with the checkpoint. The run's current configuration is never used.

    python -m nano3.training.export CHECKPOINT OUTPUT RUN

is what a run starts in the background (checkpoint.export_every).
"""

import json
import math
import os
import shutil
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from nano3.config.model import ModelConfig
from nano3.training.checks.model_stats import Architecture, count_kinds, count_parameters, padded_vocab_size
from nano3.training.hf.checkpoints import load_state
from nano3.training.hf.model import HF_NAMES, build_model, hf_config
from nano3.training.run.checkpoint_owner import owner_of
from nano3.training.run.checkpoints import (
    MARKER,
    CheckpointInfo,
    checkpoint_fingerprint,
    complete_checkpoints,
    iteration_of,
    read_checkpoint_info,
    recorded_checkpoint_dir,
)
from nano3.training.run.config_file import load_config_file
from nano3.training.run.exports import INFO, ExportInfo
from nano3.training.run.sound_checkpoints import verify_checkpoint
from nano3.utils.console import print_problems
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import Failure, Nano3Error, UserError
from nano3.utils.files import fsync_dir, read_json, temp_name, unwritable_reason
from nano3.utils.records import write_record

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Hugging Face's names of a dense Qwen3's sizes -> Megatron's.
QWEN3 = {
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "rms_norm_eps": "layernorm_epsilon",
    "rope_theta": "rotary_base",
    "initializer_range": "init_method_std",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
    "max_position_embeddings": "seq_length",
}

# The sizes that decide the parameters of a layer.
MTP_SIZES = {f.name for f in fields(Architecture)} & HF_NAMES.keys()


def export(run_dir: Path, output: Path, iteration: int | None = None) -> Path:
    """Write a checkpoint of a run to `output`, and return `output`.

    Args:
        run_dir: The run folder, or a checkpoint folder.
        output: The folder to write.
        iteration: The iteration of the checkpoint; None for the newest.

    Raises:
        UserError: There is no such checkpoint, or `output` exists or cannot be written.
        Failure: The checkpoint is damaged, or the result is not a complete model.
    """
    run_dir, output = Path(run_dir).absolute(), Path(output).absolute()
    checkpoint = find_checkpoint(run_dir, iteration)
    if output.exists():
        chosen = read_checkpoint_info(checkpoint).iteration
        raise UserError(f"{output} exists already. Choose another --output for iteration {chosen}, or remove it.")
    if why := unwritable_reason(output):
        raise UserError(f"--output={output}: cannot be written: {why}. Choose another --output.")
    owner = (owner_of(checkpoint.parent) or checkpoint.parent.parent) if run_dir == checkpoint else run_dir
    write_export(checkpoint, output, owner)
    return output


def write_export(checkpoint: Path, output: Path, run_dir: Path) -> None:
    """Write a checkpoint to `output`, completely or not at all.

    Args:
        checkpoint: The checkpoint folder.
        output: The folder to write.
        run_dir: The run folder.

    Raises:
        Failure: The checkpoint is damaged, or the result is not a complete model.
    """
    info = read_checkpoint_info(checkpoint)
    verify_checkpoint(checkpoint, info)
    output.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_name(output)
    try:
        if info.run_identity.get("backend") == "megatron":
            _convert(checkpoint, _tokenizer(run_dir, checkpoint), temp)
        elif (checkpoint / "hf").is_dir():
            shutil.copytree(checkpoint / "hf", temp)
        else:
            _build(checkpoint, info, _tokenizer(run_dir, checkpoint), temp)
        check_complete(temp)
        write_record(temp / INFO, ExportInfo(str(run_dir), info.iteration, checkpoint_fingerprint(checkpoint)))
        temp.rename(output)
        fsync_dir(output.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def find_checkpoint(run_dir: Path, iteration: int | None) -> Path:
    """Return the checkpoint folder of an iteration, or the newest one.

    Args:
        run_dir: The run folder, or a checkpoint folder.
        iteration: The iteration; None for the newest.

    Raises:
        UserError: There is no such checkpoint.
    """
    if (run_dir / MARKER).is_file():
        found = {read_checkpoint_info(run_dir).iteration: run_dir}  # its folder may have any name
    else:
        found = {iteration_of(p): p for p in complete_checkpoints(recorded_checkpoint_dir(run_dir))}
    if not found:
        raise UserError(f"{run_dir} holds no complete checkpoint. Give the folder of a run, as in run.output_dir.")
    wanted = max(found) if iteration is None else iteration
    if wanted not in found:
        there = ", ".join(map(str, found))
        raise UserError(f"{run_dir} has no checkpoint of iteration {iteration}; it has {there}.")
    return found[wanted]


def _run_config(run_dir: Path) -> dict[str, Any]:
    """Return config.yaml of a run folder, or an empty dict."""
    from omegaconf import OmegaConf

    path = run_dir / "config.yaml"
    config = OmegaConf.to_container(load_config_file(path)) if path.is_file() else {}
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _tokenizer(run_dir: Path, checkpoint: Path) -> Path:
    """Return the tokenizer folder of the run's data, or the one inside the checkpoint."""
    section = _run_config(run_dir).get("run")
    data = section.get("data") if isinstance(section, dict) else None
    folders = [*([Path(data) / "tokenizer"] if data else []), checkpoint / "tokenizer"]
    found = [folder for folder in folders if (folder / "tokenizer.json").is_file()]
    if not found:
        raise Failure(
            f"{folders[-1]} holds no tokenizer.json, and the run's data folder is gone: put the tokenizer there."
        )
    return found[0]


def _build(checkpoint: Path, info: CheckpointInfo, tokenizer: Path, output: Path) -> None:
    """Write the model that checkpoint.json describes, with the weights of state.pt, to `output`."""
    from transformers.utils import logging

    from nano3.training.hf.components import export_hf

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    names = {f.name for f in fields(ModelConfig)}
    saved = {key.removeprefix("model."): value for key, value in info.run_identity.items() if key.startswith("model.")}
    saved["mamba_chunk_size"] = info.mutable_settings.get("model.mamba_chunk_size")
    try:
        shape = msgspec.convert({name: value for name, value in saved.items() if name in names}, ModelConfig)
        model = build_model(
            shape, int(saved["vocab_size"]), int(info.run_identity["train.seq_length"]), _data_eod(tokenizer)
        )
        model.load_state_dict(load_state(checkpoint)["model"], strict=True)
    except (KeyError, RuntimeError, UserError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise Failure(f"{checkpoint}: {MARKER} and state.pt do not describe one model: {error}") from error
    export_hf(model, tokenizer, output)


def model_section(checkpoint: Path) -> dict[str, Any]:
    """Return the section `model` of Megatron-Bridge's run_config.yaml in a checkpoint.

    Raises:
        Failure: There is no run_config.yaml.
    """
    import yaml

    path = checkpoint / "run_config.yaml"
    if not path.is_file():
        raise Failure(f"{path} is missing: the checkpoint was not written by Megatron-Bridge, or not completely.")
    section: dict[str, Any] = yaml.safe_load(path.read_text())["model"]
    return section


def hf_description(model: dict[str, Any], eod_id: int | None) -> dict[str, Any]:
    """Return config.json of a trained model: NemotronH for a hybrid, Qwen3 for the dense recipe.

    Args:
        model: The section `model` of run_config.yaml.
        eod_id: Id of the end-of-document token.

    Raises:
        UserError: The model is neither of the two.
    """
    tensor = int(model.get("tensor_model_parallel_size") or 1)
    rows = int(model["vocab_size"])
    if model.get("should_pad_vocab"):
        divisor = int(model.get("make_vocab_size_divisible_by") or 128)
        rows = padded_vocab_size(rows, tensor, divisor)
    if pattern := model.get("hybrid_layer_pattern"):
        names = {f.name for f in fields(ModelConfig)} - {"vocab_size"}
        shape = ModelConfig(**{k: v for k, v in model.items() if k in names})
        main, *depths = str(pattern).replace("|", "").split("/")
        shape.hybrid_layer_pattern = main
        config: dict[str, Any] = hf_config(shape, rows, int(model["seq_length"]), eod_id).to_dict()
        config |= {"torch_dtype": "bfloat16", "use_mamba_kernels": True, "use_cache": True}
        return config | (_mtp_description(model, depths[0]) if depths else {})
    if model.get("qk_layernorm"):
        base: dict[str, Any] = json.loads(
            (Path(__file__).parent / "megatron" / "hub" / "Qwen--Qwen3-8B.json").read_text()
        )
        sizes = {hf: model[name] for hf, name in QWEN3.items() if model.get(name) is not None}
        return (
            base
            | sizes
            | {
                "vocab_size": rows,
                "max_window_layers": model["num_layers"],
                "bos_token_id": eod_id,
                "eos_token_id": eod_id,
            }
        )
    raise UserError(
        "nano3 export knows hybrid (NemotronH) and Qwen3 models; use Megatron-Bridge's AutoBridge for this recipe."
    )


def _mtp_description(model: dict[str, Any], layers: str) -> dict[str, Any]:
    """Return the entries of config.json for multi-token prediction, as Megatron-Bridge's NemotronHBridge reads them.

    Args:
        model: The section `model` of run_config.yaml.
        layers: Layer types of one depth.
    """
    same = ("mtp_use_repeated_layer", "keep_mtp_spec_in_bf16", "mtp_loss_scaling_factor")
    return {
        "num_nextn_predict_layers": int(model["mtp_num_layers"]),
        "mtp_hybrid_override_pattern": layers,
        **{name: model[name] for name in same if name in model},
    }


def _convert(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    """Write a Megatron checkpoint to `output`, through an AutoBridge made from the configuration alone."""
    from megatron.bridge import AutoBridge
    from transformers import AutoConfig, GenerationConfig

    from nano3.training.megatron.backend import set_environment

    set_environment()
    eod_id = _eod_id(tokenizer)
    shape = hf_description(model_section(checkpoint), eod_id)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    AutoBridge.from_hf_config(config).export_ckpt(str(checkpoint), str(output), show_progress=False)
    config.save_pretrained(output)
    GenerationConfig(bos_token_id=eod_id, eos_token_id=eod_id, pad_token_id=eod_id).save_pretrained(output)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, output / name)


def _data_eod(tokenizer: Path) -> int | None:
    """Return the id of the data's end-of-document token, or the tokenizer's own if there is no manifest."""
    manifest = tokenizer.parent / "manifest.json"
    return int(read_json(manifest)["tokenizer"]["eod_id"]) if manifest.is_file() else _eod_id(tokenizer)


def _eod_id(tokenizer: Path) -> int | None:
    """Return the id of the end-of-document token according to the tokenizer's files."""
    from tokenizers import Tokenizer

    from nano3.data.tokenization.tokenizer import read_special_tokens

    text = read_special_tokens(tokenizer).get("eos_token")
    return Tokenizer.from_file(str(tokenizer / "tokenizer.json")).token_to_id(text) if text else None


def check_complete(folder: Path) -> None:
    """Compare the number of stored parameters with that of the model in config.json.

    transformers has no modules for the tensors of multi-token prediction, so these are counted from the sizes.

    Raises:
        Failure: They differ.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    further = sum(math.prod(shape) for name, shape in found.items() if name.startswith("mtp."))
    if further != (wanted := mtp_size(config)):
        raise Failure(
            f"The export holds {further:,} parameters of multi-token prediction; config.json describes {wanted:,}. The "
            "incomplete export was removed."
        )
    stored = sum(math.prod(shape) for name, shape in found.items() if not name.startswith("mtp."))
    expected = sum(p.numel() for p in model.parameters()) + sum(
        b.numel() for n, b in model.named_buffers() if "e_score_correction" in n
    )
    tied = config.vocab_size * config.hidden_size if getattr(config, "tie_word_embeddings", False) else 0
    if stored not in (expected, expected + tied):
        raise Failure(
            f"The export holds {stored:,} parameters in {len(found)} tensors; a {type(model).__name__} has "
            f"{expected:,}. The incomplete export was removed."
        )


def mtp_size(config: Any) -> int:
    """Return the stored parameters of multi-token prediction that a Hugging Face configuration describes.

    Args:
        config: A NemotronHConfig, or the configuration of a model without multi-token prediction.
    """
    depths = getattr(config, "num_nextn_predict_layers", 0) or 0
    if not depths:
        return 0
    sizes: dict[str, Any] = {key: getattr(config, hf) for key, hf in HF_NAMES.items() if key in MTP_SIZES}
    shape = Architecture(
        layers={},
        vocab_size=0,
        mtp_depths=depths,
        mtp_layers=count_kinds(config.mtp_hybrid_override_pattern),
        mtp_shared=bool(getattr(config, "mtp_use_repeated_layer", True)),
        **sizes,
    )
    last_norm, biases = shape.hidden_size, shape.held_layers.get("E", 0) * shape.num_moe_experts
    return count_parameters(shape).total - last_norm + biases


def main() -> int:
    """Export as a background process of a run: with low priority, and only while the run's process lives."""
    os.nice(19)
    threading.Thread(target=_end_with_input, daemon=True).start()
    checkpoint, output, run_dir = map(Path, sys.argv[1:])
    try:
        with translate_disk_errors(str(output)):
            write_export(checkpoint, output, run_dir)
    except Nano3Error as error:
        print_problems(error.problems)
        return error.exit_code
    return 0


def _end_with_input() -> None:
    os.read(0, 1)  # without the lock of sys.stdin, which would fail at the end of this process
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
