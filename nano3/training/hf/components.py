"""Assemble a run of backend=transformers and load a checkpoint into it."""

import logging
import os
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.pretrain import PretrainConfig
from nano3.training.checks.lr_schedule import make_scheduler
from nano3.training.checks.model_stats import architecture_from_config, flops_per_token
from nano3.training.cost.throughput import Throughput
from nano3.training.dataset import TrainingData
from nano3.training.hf.batch import BatchPlan
from nano3.training.hf.checkpoints import CheckpointWriter, load_rng, load_state
from nano3.training.hf.expert_bias import ExpertBalance
from nano3.training.hf.loop import Loop, LoopClock, TrainerComponents, any_rank
from nano3.training.hf.model import build_model, embedding_rows, parameter_count, value_or_default
from nano3.training.hf.rng import restore_rng, seed_all
from nano3.training.order.plan import OrderPlan
from nano3.training.run import index_cache
from nano3.training.run.checkpoints import checkpoint_dir
from nano3.training.run.guard import make_guard
from nano3.training.run.metrics import Metrics
from nano3.training.run.outcome import SaveHook
from nano3.training.run.resume import ResumePoint
from nano3.training.run.startup_timer import StartupTimer
from nano3.utils.errors import Failure, exit_code_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nano3.training.hf.datasets import Datasets


@dataclass(frozen=True)
class RunInputs:
    """What is known of a run before torch is imported. `threads` is per rank."""

    config: PretrainConfig
    data: TrainingData
    plan: BatchPlan
    run_dir: Path
    point: ResumePoint
    threads: int
    run_identity: dict[str, Any]
    mutable_settings: dict[str, Any]
    on_save: SaveHook
    startup: StartupTimer = field(default_factory=StartupTimer)


def assemble(inputs: RunInputs) -> Loop:
    """Return the loop, ready to run from the resume point."""
    config, data, point = inputs.config, inputs.data, inputs.point
    clock = LoopClock(elapsed_before=point.info.elapsed_s if point.info and not point.new_phase else 0.0)
    accelerator = make_accelerator(inputs.threads)
    inputs.startup.mark("imports")
    datasets = _datasets(config, data, inputs.run_dir, point.order)
    inputs.startup.mark("data")
    seed_all(config.train.seed)
    raw = build_model(config.model, embedding_rows(config.model, data.vocab_size), config.train.seq_length, data.eod_id)
    rate = value_or_default(config.model, "moe_router_bias_update_rate")
    balance = ExpertBalance(raw, rate, lambda counts: accelerator.reduce(counts, "sum"))
    model, optimizer = accelerator.prepare(raw, make_optimizer(raw, config))
    rank = accelerator.process_index
    save = checkpoint_dir(config, inputs.run_dir)
    writer = CheckpointWriter(save, config.checkpoint.keep_last, rank, lambda failed: any_rank(accelerator, failed))
    writer.clean()
    parts = TrainerComponents(
        config=config,
        plan=inputs.plan,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config),
        balance=balance,
        guard=make_guard(config, inputs.run_dir, rank, data.folder, point),
        datasets=datasets,
        metrics=Metrics(
            inputs.run_dir, rank, point.iteration, config, data=data, startup=inputs.startup, order=point.order
        ),
        throughput=make_throughput(config, data.vocab_size, accelerator),
        writer=writer,
        parameters=parameter_count(raw),
        run_identity=inputs.run_identity,
        mutable_settings=inputs.mutable_settings,
        on_save=inputs.on_save,
        export=lambda trained, folder: export_hf(trained, data.tokenizer, folder),
        order=point.order,
    )
    if point.folder is not None:
        try:
            restore(parts, point.folder, point.new_phase)
        except BaseException as error:
            parts.metrics.close(exit_code_of(error))
            raise
    inputs.startup.mark("model and checkpoint")
    return Loop(parts, point.iteration, clock, None if point.new_phase else point.folder)


def make_accelerator(threads: int) -> "Accelerator":
    """Return an accelerator with `threads` torch threads, on a GPU if there is one, and silence the libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Waiting threads sleep instead of spinning: on a busy machine two spinning threads are slower than one. OpenMP
    # reads this when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from accelerate import Accelerator
    from transformers.utils import logging as hf_logging

    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return Accelerator(cpu=not torch.cuda.is_available())


def make_throughput(config: PretrainConfig, vocab_size: int, accelerator: "Accelerator") -> Throughput:
    """Return what turns seconds per iteration into tokens per second and the like.

    Args:
        config: The run's configuration.
        vocab_size: Ids of the data's tokenizer.
        accelerator: The accelerator of the run.
    """
    import torch

    t, model = config.train, architecture_from_config(config, None, vocab_size)
    on_gpu = accelerator.device.type == "cuda"
    return Throughput(
        tokens=t.global_batch_size * t.seq_length,
        flops_per_token=flops_per_token(model, t.seq_length) if model else None,
        gpus=accelerator.num_processes if on_gpu else 0,
        device_name=torch.cuda.get_device_name() if on_gpu else "",
    )


def _datasets(config: PretrainConfig, data: TrainingData, run_dir: Path, order: OrderPlan | None) -> "Datasets":
    from nano3.training.hf.datasets import DatasetBuilder, Datasets

    t, cache = config.train, index_cache.cache_folder(run_dir, data.fingerprint)
    index_cache.prepare_cache(cache)
    isolate = t.document_boundaries == "isolate"
    builder = DatasetBuilder(data, t.seq_length, t.seed, cache, isolate=isolate, mask_eod=t.loss_mask.eod)
    valid = builder.valid(t.eval_iters, t.global_batch_size) if t.eval_interval else ()
    datasets = Datasets(builder.train(t.train_iters * t.global_batch_size, order), valid)
    index_cache.mark_complete(cache)
    return datasets


def make_optimizer(model: Any, config: PretrainConfig) -> Any:
    """Return AdamW with weight decay on parameters of two or more dimensions only, as in Megatron."""
    import torch

    o = config.optimizer
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "wd_mult": 0.0},
    ]
    betas = (o.adam_beta1, o.adam_beta2)
    return torch.optim.AdamW(groups, lr=o.lr, betas=betas, eps=o.adam_eps, weight_decay=o.weight_decay, fused=True)


def restore(parts: TrainerComponents, folder: Path, new_phase: bool = False) -> None:
    """Load a verified checkpoint. Learning rates and betas come from the configuration.

    Args:
        parts: The assembled run.
        folder: The checkpoint folder.
        new_phase: Whether to load only model and optimizer; schedule and random numbers then start fresh.

    Raises:
        Failure: The checkpoint does not fit the model or the optimizer.
    """
    state = load_state(folder)
    try:
        parts.accelerator.unwrap_model(parts.model).load_state_dict(state["model"], strict=True)
        parts.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise Failure(f"{folder}/state.pt does not fit this model or optimizer: {error}") from error
    o = parts.config.optimizer
    for group in parts.optimizer.param_groups:
        group["betas"], group["eps"] = (o.adam_beta1, o.adam_beta2), o.adam_eps
    if new_phase:
        parts.scheduler.step(0)  # restores the first rate, which loading the optimizer overwrote
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron warns about ranks in a single process
        parts.scheduler.load_state_dict(state["scheduler"])
    rng = load_rng(folder, parts.accelerator.process_index)
    if rng is not None:
        restore_rng(rng)


def export_hf(model: Any, tokenizer: Path, folder: Path) -> None:
    """Write model and tokenizer for transformers' from_pretrained.

    Args:
        model: The trained model.
        tokenizer: The folder of the data's tokenizer.
        folder: The folder to write.
    """
    # Training uses no cache. Generation needs one, and NemotronH can build it only with an attention layer.
    cached = "full_attention" in model.config.layers_block_type
    model.config.use_cache = model.generation_config.use_cache = cached
    model.save_pretrained(folder)
    model.config.use_cache = False
    for path in sorted(tokenizer.iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
