"""backend=megatron: pretraining through Megatron-Bridge's own `pretrain`, on one GPU or thousands.

The order matters: what can be refused without CUDA is refused first (`prepare`), then the first log line says where
the run starts, then Megatron-Bridge takes over. Rank and world size come from RANK, WORLD_SIZE and LOCAL_RANK as
torchrun, Slurm through nano3's launcher, or nobody (then it is a run of one) set them.
"""

import contextlib
import gc
import os
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

from nano3.config import PretrainConfig
from nano3.config.model import ModelConfig
from nano3.config.pretrain import megatron_section
from nano3.training.dataset import TrainingData, open_data
from nano3.training.megatron import recipe, schema, settings
from nano3.training.megatron.compile_cache import set_compile_cache
from nano3.training.megatron.errors import hide_expected_tracebacks, translate_errors
from nano3.training.megatron.recipe_check import tokenizer_problems
from nano3.training.megatron.start import Start, find_start, may_drop_old, remove_unfinished
from nano3.training.run import index_cache, parent_checkpoint
from nano3.training.run.checkpoint_owner import claim_dir, owner_problem
from nano3.training.run.checkpoints import MARKER, checkpoint_dir, read_checkpoint_info
from nano3.training.run.metrics import truncate_after
from nano3.training.run.outcome import Outcome, SaveHook, no_hook
from nano3.training.run.rank_sync import agree_on_rank0
from nano3.training.run.resume import check_fixed, check_new_phase, check_resume
from nano3.training.run.startup_timer import StartupTimer
from nano3.training.run.stop import StopRequest, last_iteration
from nano3.utils.console import is_rank_zero, say
from nano3.utils.errors import UserError
from nano3.utils.gc_pause import gc_paused
from nano3.utils.provenance import installed_versions, is_installed

# How the model is cut. Optimizer state saved for one cut cannot be read for another; ranks may join or leave the
# data-parallel group, and context parallelism and sequence parallelism cut no parameters.
FREE_MODEL_KEYS = ("context_parallel_size", "sequence_parallel", "mamba_chunk_size")
PACKAGES = ("torch", "megatron-bridge", "megatron-core", "transformer-engine")
# What a new phase may choose anew, besides what an iteration is: weights alone can be cut in any way.
CUT = ("model.tensor_model_parallel_size", "model.pipeline_model_parallel_size", "model.expert_model_parallel_size")


def train(config: PretrainConfig, data_dir: Path, run_dir: Path, *, on_save: SaveHook = no_hook) -> Outcome:
    """Train until `train.train_iters`, or until a signal or limit stops it with a checkpoint.

    Raises `UserError` for everything wrong with configuration or data, `Failure` when the loss is no longer a number.
    """
    stop = StopRequest(config.train.exit_iteration, config.train.exit_duration_in_mins)
    # One rank that is told to stop before its first step has nothing to save and leaves at once. Of several one may be
    # told earlier than another: they agree after the first step.
    with stop if world_size() > 1 else contextlib.nullcontext():
        return _train(config, Path(data_dir), Path(run_dir).absolute(), stop, on_save)


def _train(config: PretrainConfig, data_dir: Path, run_dir: Path, stop: StopRequest, on_save: SaveHook) -> Outcome:
    startup = StartupTimer()
    data = open_data(data_dir)
    data.require(config.train.seq_length, ["train"] + (["valid"] if config.train.eval_interval else []))
    set_environment()
    save = checkpoint_dir(config, run_dir)
    start = decide_start(config, data, save)
    if start.own and start.folder and start.iteration >= last_iteration(config):
        truncate_after(run_dir, start.iteration)
        say(f"finished: iteration {start.iteration} of {config.train.train_iters} is in {start.folder}; nothing to do")
        return Outcome("finished", start.iteration, start.folder)
    say(start.sentence(megatron_section(config, "checkpoint").get("pretrained_checkpoint")))
    startup.mark("checks")
    with gc_paused(freeze=True):  # imports the whole stack
        container = prepare(config, data, run_dir)
    index_cache.begin(index_cache.folder_of(run_dir, data.fingerprint))
    if is_rank_zero():
        remove_unfinished(save)
    if not start.drop_old:
        container.checkpoint.most_recent_k = -1
    load_from(container.checkpoint, start)
    return _run(config, container, run_dir, save, data, start, startup, stop, on_save)


def look(config: PretrainConfig, data: TrainingData | None, save: Path) -> Start:
    """Where this run starts. Raises `UserError` when it may not start there, as far as that can be told (`data` None:
    it is not prepared yet)."""
    if problem := owner_problem(save, Path(config.run.output_dir).absolute()):
        raise UserError(problem)
    start = find_start(save, config.checkpoint.load, config.checkpoint.keep_iteration)
    if data:
        check_same_run(config, data, start, quiet=True)
    if start.folder and not start.own and start.iteration >= config.train.train_iters:
        raise UserError(
            f"checkpoint.keep_iteration=true: {start.folder} has {start.iteration} iterations already, "
            f"train.train_iters is {config.train.train_iters}. Give more, or leave it out to begin a new phase."
        )
    return start


def decide_start(config: PretrainConfig, data: TrainingData, save: Path) -> Start:
    """Where this run starts, as rank 0 sees it. Raises `UserError`, on every rank, when it may not start there."""

    def decide() -> dict[str, Any]:
        c = config.checkpoint
        start = look(config, data, save)
        check_same_run(config, data, start)
        run_dir = Path(config.run.output_dir).absolute()
        if c.save_interval:
            claim_dir(save, run_dir)
        if start.own and start.folder:
            parent_checkpoint.warn_unused_load(run_dir, config, start.folder)
        else:
            parent_checkpoint.record_parent(run_dir, start.folder, start.new_phase)
        drop_old = c.keep_last == 0 or may_drop_old(save)
        return vars(start) | {"folder": start.folder and str(start.folder), "drop_old": drop_old}

    told = agree_on_rank0(decide)
    return Start(**told | {"folder": told["folder"] and Path(told["folder"])})


def load_from(checkpoint: Any, start: Start) -> None:
    """Point Megatron-Bridge's checkpoint section at the start. A new phase is what it calls finetuning: weights alone,
    since the optimizer's state is stored for one cut of the model."""
    if start.new_phase:
        checkpoint.load, checkpoint.pretrained_checkpoint, checkpoint.finetune = None, str(start.folder), True
        return
    checkpoint.load = str(start.folder) if start.folder else None
    if other_world_size(start):
        # Megatron-Bridge stores random states per rank with expert parallelism, and would look for those of ranks
        # that were not there. Nothing of a run depends on them after initialisation: there is no dropout, and data go
        # by consumed samples.
        checkpoint.load_rng = False


def check_same_run(config: PretrainConfig, data: TrainingData, start: Start, quiet: bool = False) -> None:
    """Refuse to go on from a checkpoint of another model or other data; tell (unless `quiet`) what else changed."""
    if not start.folder or not (start.folder / MARKER).is_file():
        return
    info, fixed = read_checkpoint_info(start.folder), fixed_keys(config, data)
    if start.new_phase:
        check_new_phase(info, start.folder, fixed, free=CUT)
    elif quiet:
        check_fixed(info, start.folder, fixed, start.own)
    else:
        check_resume(info, start.folder, fixed, told_keys(config), start.own)


def other_world_size(start: Start) -> bool:
    """Whether the checkpoint was written by another number of ranks; False when that is not known."""
    if not start.folder or not (start.folder / MARKER).is_file():
        return False
    return read_checkpoint_info(start.folder).mutable_settings.get("world size") not in (None, world_size())


def world_size() -> int:
    """Ranks of this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fixed_keys(config: PretrainConfig, data: TrainingData) -> dict[str, Any]:
    """What must be the same on a resume."""
    shape = [f.name for f in fields(ModelConfig) if f.name not in FREE_MODEL_KEYS]
    return {
        "backend": "megatron",
        "recipe": config.recipe._target_,
        **{f"model.{name}": getattr(config.model, name) for name in shape},
        "train.seed": config.train.seed,
        "train.seq_length": config.train.seq_length,
        "train.global_batch_size": config.train.global_batch_size,
        "data": data.fingerprint,
    }


def told_keys(config: PretrainConfig) -> dict[str, Any]:
    """What may change on a resume, but is told."""
    return {
        **{f"optimizer.{k}": v for k, v in vars(config.optimizer).items()},
        **{f"scheduler.{k}": v for k, v in vars(config.scheduler).items()},
        **{f"model.{name}": getattr(config.model, name) for name in FREE_MODEL_KEYS},
        "train.train_iters": config.train.train_iters,
        "train.micro_batch_size": config.train.micro_batch_size,
        "megatron": str(config.megatron),
        "world size": world_size(),
        **{f"version of {name}": number for name, number in installed_versions(PACKAGES).items()},
    }


def set_environment() -> None:
    """Rank variables for a plain process, and caches that make every start after the first one fast; before torch is
    imported, which reads them."""
    if "RANK" not in os.environ:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        alone = {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for name, value in alone.items():
            os.environ.setdefault(name, value)
    set_compile_cache()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def prepare(config: PretrainConfig, data: TrainingData, run_dir: Path) -> Any:
    """The checked ConfigContainer: recipe, typed sections, data, adaptations, then `megatron:`. Touches no GPU.

    Raises `UserError` with every problem.
    """
    target = config.recipe._target_
    if problems := recipe.target_problems(target):
        raise UserError(problems)
    recorded = schema.load_bundled(target)
    free = settings.override_settings(config.megatron, recorded)
    problems = tokenizer_problems(free, data)
    if schema.is_bundled(target) and schema.versions() == dict(recorded.versions):
        problems += settings.setting_problems([*settings.typed_settings(config), *free], recorded)
    if problems:
        raise UserError(problems)
    recipe.offline_hub(target, run_dir / "hub")
    container = recipe.call_recipe(target, config.recipe.per_split_data_args_path)
    live = schema.extract(container, target)
    typed = [*settings.typed_settings(config), *recipe.data_settings(config, data, run_dir)]
    free = settings.override_settings(config.megatron, live)
    if problems := settings.setting_problems([*typed, *free], live):
        raise UserError(problems)
    settings.apply_settings(container, typed, live)
    adapted = recipe.adaptations(recipe.field_getter(container), world_size(), is_installed)
    settings.apply_settings(container, adapted, live)
    settings.apply_settings(container, free, live)
    chosen = {s.path for s in free}
    for s in adapted:
        if s.path not in chosen:
            say(f"adapted {s.path}={s.value}: {s.origin}")
    return container


def _run(
    config: PretrainConfig,
    container: Any,
    run_dir: Path,
    save: Path,
    data: TrainingData,
    start: Start,
    startup: StartupTimer,
    stop: StopRequest,
    on_save: SaveHook,
) -> Outcome:
    """Hand over to Megatron-Bridge and translate how it ended."""
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    from nano3.training.megatron.callbacks import RunContext, TrainingHooks
    from nano3.training.megatron.per_dataset_eval import PerDatasetEval
    from nano3.training.run.metrics import Metrics

    startup.mark("imports and recipe")
    train = config.train
    metrics = Metrics(run_dir, int(os.environ["RANK"]), start.iteration, config, train.train_iters)
    with stop, hide_expected_tracebacks():
        hooks = TrainingHooks(
            RunContext(
                metrics=metrics,
                stop=stop,
                on_save=on_save,
                save_folder=save,
                index_cache=index_cache.folder_of(run_dir, data.fingerprint),
                log_interval=config.logger.log_interval,
                global_batch_size=train.global_batch_size,
                seq_length=train.seq_length,
                save_interval=config.checkpoint.save_interval,
                train_iters=train.train_iters,
                startup=startup,
                run_identity=fixed_keys(config, data),
                mutable_settings=told_keys(config),
                validation=PerDatasetEval(data, train.eval_iters, forward_step) if train.eval_interval else None,
            )
        )
        failed = 1
        try:
            with translate_errors(hooks, config.train.micro_batch_size):
                pretrain(config=container, forward_step_func=forward_step, callbacks=[hooks])
            failed = 0
        finally:
            metrics.close(failed)
            _release()
    if hooks.reason:
        return Outcome("stopped", hooks.iteration, hooks.saved, hooks.reason)
    return Outcome("finished", hooks.iteration, hooks.saved)


def _release() -> None:
    """Destroy what is left of the process group and the garbage that manual collection kept."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    gc.enable()
    gc.collect()
