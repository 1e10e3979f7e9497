"""backend=megatron: pretraining with Megatron-Bridge's own `pretrain`, on one GPU or thousands.

Everything that can be checked without CUDA is checked before Megatron-Bridge takes over. Rank and world size come from
RANK, WORLD_SIZE and LOCAL_RANK, set by torchrun or by nano3's launcher; without them the run has one rank.
"""

import contextlib
import gc
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from nano3.config import PretrainConfig
from nano3.config.model import MTP_KEYS, ModelConfig
from nano3.config.pretrain import megatron_section
from nano3.training.checks.model_stats import architecture_from_config, flops_per_token
from nano3.training.checks.value_checks import blend_file_problems
from nano3.training.dataset import TrainingData, open_data
from nano3.training.megatron import recipe, schema, settings
from nano3.training.megatron.checkpoints import MegatronSearch, may_prune, remove_unfinished
from nano3.training.megatron.compile_cache import set_compile_cache
from nano3.training.megatron.errors import hide_expected_tracebacks, translate_errors
from nano3.training.megatron.isolation import choose_forward_step, isolation_problems
from nano3.training.megatron.recipe_check import recipe_problems, tokenizer_problems
from nano3.training.megatron.saving import SaveContext, complete_pending_saves, run_in_writer, use_manager
from nano3.training.order.plan import OrderPlan
from nano3.training.run import index_cache, resume
from nano3.training.run.checkpoints import checkpoint_dir
from nano3.training.run.failed_saves import FailedSaves
from nano3.training.run.guard import make_guard
from nano3.training.run.hang_watch import note_progress
from nano3.training.run.metrics import truncate_after
from nano3.training.run.outcome import Outcome, SaveHook, no_hook
from nano3.training.run.resume import ResumePoint, world_size
from nano3.training.run.startup_timer import StartupTimer
from nano3.training.run.stop import StopRequest, last_iteration
from nano3.utils.console import is_rank_zero, say, warn
from nano3.utils.errors import UserError, exit_code_of
from nano3.utils.gc_pause import gc_paused
from nano3.utils.provenance import is_installed, missing_modules

# The optimizer's state can only be read for the tensor, pipeline and expert parallelism it was saved for. Context and
# sequence parallelism split no parameters, and the data-parallel size is free.
MUTABLE_MODEL_KEYS = ("context_parallel_size", "sequence_parallel", "mamba_chunk_size", "mtp_loss_scaling_factor")
VERSIONS = ("torch", "megatron-bridge", "megatron-core", "transformer-engine")
PACKAGES: tuple[str, ...] = ("torch", "megatron.bridge")
INSTALL = "a GPU container or the extra `megatron` (docs/gpu.md)"


def missing() -> list[str]:
    """Return the packages this backend needs that are not installed in this Python."""
    return missing_modules(PACKAGES)


def check(config: PretrainConfig) -> list[str]:
    """Return why the recipe cannot be used, and the problems with every setting of Megatron-Bridge's configuration."""
    target = config.recipe._target_
    known = schema.load_bundled(target)
    chosen = [*settings.typed_settings(config), *settings.override_settings(config.megatron, known)]
    return [
        *(recipe.target_problems(target) or recipe_problems(target)),
        *blend_file_problems(config),
        *settings.setting_problems(chosen, known),
        *settings.pattern_problems(config.model.hybrid_layer_pattern),
        *settings.mtp_problems(config, known),
        *settings.hybrid_stage_problems(config, known),
        *settings.recompute_key_problems(config, known),
        *isolation_problems(config, known),
    ]


def train(config: PretrainConfig, data_dir: Path, run_dir: Path, on_save: SaveHook = no_hook) -> Outcome:
    """Train until train.train_iters, a limit or a signal; resume from the newest checkpoint if there is one.

    Args:
        config: The configuration of the run; the same on every rank.
        data_dir: The folder of the prepared data.
        run_dir: The run folder.
        on_save: Called on rank 0 with the iteration and folder of each complete checkpoint.

    Raises:
        UserError: The configuration or the data is wrong.
        Failure: The training cannot continue, for example because the loss is not a number.
    """
    stop = StopRequest(config.train.exit_iteration, config.train.exit_duration_in_mins)
    # A single rank that receives a signal before its first step has nothing to save and exits at once. Several ranks
    # may receive it at different moments, so they agree after the first step.
    with stop if world_size() > 1 else contextlib.nullcontext():
        return _train(config, Path(data_dir), Path(run_dir).absolute(), stop, on_save)


def _train(config: PretrainConfig, data_dir: Path, run_dir: Path, stop: StopRequest, on_save: SaveHook) -> Outcome:
    startup = StartupTimer()
    data = open_data(data_dir)
    data.require(config.train.seq_length, ["train"] + (["valid"] if config.train.eval_interval else []))
    set_environment()
    save = checkpoint_dir(config, run_dir)
    point = agree_on_resume_point(config, run_dir, data)
    if point.own and point.folder and point.iteration >= last_iteration(config):
        truncate_after(run_dir, point.iteration)
        say(f"finished: iteration {point.iteration} of {config.train.train_iters} is in {point.folder}; nothing to do")
        return Outcome("finished", point.iteration, point.folder)
    say(point.sentence("weights", megatron_section(config, "checkpoint").get("pretrained_checkpoint")))
    startup.mark("checks")
    with gc_paused(freeze=True):  # imports the whole stack
        container = prepare(config, data, run_dir)
    index_cache.prepare_cache(index_cache.cache_folder(run_dir, data.fingerprint))
    if is_rank_zero():
        remove_unfinished(save)
    load_from(container.checkpoint, point)
    if point.order:
        container.dataset = planned_dataset(container.dataset, point.order, data)
    leading = point.skips.leading(point.iteration)
    container.train.iterations_to_skip = point.skips.after(point.iteration + leading)
    return _run(config, container, run_dir, save, data, point, startup, stop, on_save)


def find_resume_point(config: PretrainConfig, run_dir: Path, data: TrainingData | None) -> ResumePoint:
    """Return where a run starts.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        data: The prepared data; None if it is not prepared yet.

    Raises:
        UserError: The run may not start there.
    """
    identity = run_identity(config, data) if data else None
    return resume.find_resume_point(config, run_dir, MegatronSearch(), identity)


def agree_on_resume_point(config: PretrainConfig, run_dir: Path, data: TrainingData) -> ResumePoint:
    """Return the resume point that rank 0 finds, on every rank.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        data: The prepared data.

    Raises:
        UserError: The run may not start there; on every rank.
    """
    return resume.agree_on_resume_point(
        config,
        run_dir,
        lambda: find_resume_point(config, run_dir, data),
        run_identity(config, data),
        mutable_settings(config),
        lambda save: config.checkpoint.keep_last == 0 or may_prune(save),
        data,
    )


def planned_dataset(dataset: Any, order: OrderPlan, data: TrainingData) -> Any:
    """Return the dataset section of a run in nano3's order: a provider around the recipe's section.

    Args:
        dataset: The recipe's GPTDatasetConfig, with all settings.
        order: The plan of the run.
        data: The prepared data.
    """
    from nano3.training.megatron.planned_provider import PlannedProvider

    return PlannedProvider.around(dataset, order, data.folder)


def load_from(checkpoint: Any, point: ResumePoint) -> None:
    """Point Megatron-Bridge's checkpoint section at the resume point.

    A new phase is what Megatron-Bridge calls finetuning. It takes the weights alone, since the optimizer's state is
    stored for one split of the model over ranks.
    """
    if point.new_phase:
        checkpoint.load, checkpoint.pretrained_checkpoint, checkpoint.finetune = None, str(point.folder), True
        return
    checkpoint.load = str(point.folder) if point.folder else None
    if other_world_size(point):
        # With expert parallelism Megatron-Bridge stores random states per rank, and would look for those of ranks that
        # did not exist. The run does not depend on them after initialization: there is no dropout, and the data order
        # follows the consumed samples.
        checkpoint.load_rng = False


def take_keep_last(checkpoint: Any) -> int:
    """Return how many checkpoints to keep (0: all), and keep Megatron-Bridge from removing any itself."""
    keep, checkpoint.most_recent_k = max(int(checkpoint.most_recent_k or 0), 0), -1
    return int(keep)


def other_world_size(point: ResumePoint) -> bool:
    """Return whether the checkpoint was written by another number of ranks; False if that is unknown."""
    return point.info is not None and point.info.mutable_settings.get("world size") not in (None, world_size())


def run_identity(config: PretrainConfig, data: TrainingData) -> dict[str, Any]:
    """Return the values that must be the same on a resume: recipe, architecture, data, seed, sample and batch size."""
    shape = [f.name for f in fields(ModelConfig) if f.name not in MUTABLE_MODEL_KEYS]
    model = {name: getattr(config.model, name) for name in shape}
    model = {name: value for name, value in model.items() if value is not None or name not in MTP_KEYS}
    return {
        "backend": "megatron",
        "recipe": config.recipe._target_,
        **resume.run_identity(config, data, model),
    }


def mutable_settings(config: PretrainConfig) -> dict[str, Any]:
    """Return the values that may change on a resume; a change is logged, since losses then differ."""
    model = {f"model.{name}": getattr(config.model, name) for name in MUTABLE_MODEL_KEYS}
    return resume.mutable_settings(config, {**model, "megatron": str(config.megatron)}, VERSIONS)


def set_environment() -> None:
    """Set the rank variables of a single process and the folders of compiled kernels.

    Call it before torch is imported, which reads them.
    """
    if "RANK" not in os.environ:
        port = free_port()
        single_rank = {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        os.environ.update(single_rank)  # also over what an earlier launcher has left in the shell
    set_compile_cache()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def free_port() -> int:
    """Return a free port below 32768, where no outgoing connection takes it before torch listens on it."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def prepare(config: PretrainConfig, data: TrainingData, run_dir: Path) -> Any:
    """Return Megatron-Bridge's ConfigContainer of a run. It uses no GPU.

    The recipe's values are overridden by the typed sections, the data's settings, nano3's adaptations and `megatron:`,
    in that order.

    Args:
        config: The configuration of the run.
        data: The prepared data.
        run_dir: The run folder.

    Raises:
        UserError: Lists every problem found.
    """
    target = config.recipe._target_
    if problems := recipe.target_problems(target):
        raise UserError(problems)
    recorded = schema.load_bundled(target)
    free = settings.override_settings(config.megatron, recorded)
    problems = tokenizer_problems(free, data)
    difference = schema.version_difference(schema.versions(), recorded.versions)
    if difference:
        say(
            f"installed: {difference}. nano3 was recorded with {schema.IMAGE}; every setting is checked against the "
            "installed version now, and `nano3 doctor` checks the installation."
        )
    elif schema.is_bundled(target):
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
    guarded = config.guard.action != "none"
    adapted = recipe.adaptations(recipe.field_getter(container), world_size(), is_installed, guarded)
    adapted += recipe.ladder_settings(config)
    settings.apply_settings(container, adapted, live)
    settings.apply_settings(container, free, live)
    chosen = {s.path for s in free}
    for s in adapted:
        if s.path not in chosen:
            say(f"adapted {s.path}={s.value}: {s.origin}")
    recipe.set_variables(config, recipe.field_getter(container)("env_vars") or {})
    return container


def _run(
    config: PretrainConfig,
    container: Any,
    run_dir: Path,
    save: Path,
    data: TrainingData,
    point: ResumePoint,
    startup: StartupTimer,
    stop: StopRequest,
    on_save: SaveHook,
) -> Outcome:
    """Call Megatron-Bridge's `pretrain` and translate how it ended."""
    from megatron.bridge.training.pretrain import pretrain

    from nano3.training.megatron.callbacks import RunContext, TrainingHooks
    from nano3.training.megatron.data_waits import time_data_waits
    from nano3.training.megatron.guard_hooks import GuardHooks, skip_ahead
    from nano3.training.megatron.per_dataset_eval import PerDatasetEval
    from nano3.training.megatron.writer_memory import ReserveMemory
    from nano3.training.run.metrics import Metrics

    startup.mark("imports and recipe")
    forward_step = choose_forward_step(config)
    train, rank = config.train, int(os.environ["RANK"])
    model = architecture_from_config(config, schema.load_bundled(config.recipe._target_), data.vocab_size)
    guard = make_guard(config, run_dir, rank, data.folder, point)
    metrics = Metrics(run_dir, rank, point.iteration, config, train.train_iters, data, startup, point.order)
    with stop, hide_expected_tracebacks():
        hooks = TrainingHooks(
            RunContext(
                metrics=metrics,
                stop=stop,
                on_save=on_save,
                save_folder=save,
                index_cache=index_cache.cache_folder(run_dir, data.fingerprint),
                log_interval=config.logger.log_interval,
                global_batch_size=train.global_batch_size,
                seq_length=train.seq_length,
                save_interval=config.checkpoint.save_interval,
                train_iters=train.train_iters,
                keep_last=take_keep_last(container.checkpoint) * point.may_prune,
                startup=startup,
                run_identity=run_identity(config, data),
                mutable_settings=mutable_settings(config),
                validation=PerDatasetEval(data, train.eval_iters, forward_step) if train.eval_interval else None,
                flops_per_token=flops_per_token(model, train.seq_length) if model else None,
                guard=guard,
                order=point.order,
            )
        )
        if config.checkpoint.save_interval:
            use_manager(container, SaveContext(save, FailedSaves(config.checkpoint.max_failed_saves), hooks.is_last))
        callbacks: list[Any] = [*skip_ahead(point.skips, point.iteration, train.global_batch_size), hooks]
        if config.checkpoint.save_interval and container.checkpoint.async_save:
            callbacks.append(ReserveMemory(run_in_writer))
        if config.guard.action != "none":
            callbacks.append(GuardHooks(guard, hooks.saves_after, before_rollback=complete_pending_saves))
        timed = time_data_waits(forward_step, metrics.clock, hooks.fed)
        return _outcome(lambda: pretrain(container, timed, callbacks=callbacks), config, hooks, metrics)


def _outcome(pretrain: Callable[[], None], config: PretrainConfig, hooks: Any, metrics: Any) -> Outcome:
    """Call Megatron-Bridge's `pretrain`, close the outputs, and return how it ended."""
    from nano3.training.megatron.guard_hooks import RolledBack

    code = 1
    try:
        with translate_errors(hooks, config.train.micro_batch_size):
            pretrain()
        outcome = Outcome("stopped" if hooks.reason else "finished", hooks.iteration, hooks.saved, hooks.reason)
        code = outcome.exit_code(config.train.exit_iteration)
    except RolledBack:
        outcome = Outcome("rolled back", hooks.iteration, hooks.saved, "guard.action=rollback")
        code = outcome.exit_code(config.train.exit_iteration)
    except BaseException as error:
        code = exit_code_of(error)
        raise
    finally:
        note_progress(hooks.iteration, "end")
        hooks.finisher.wait()
        metrics.close(code)
        _release()
    return outcome


def _release() -> None:
    """Destroy the process group if there is one, and collect garbage. A failure does not change how the run ended."""
    import torch.distributed as dist

    try:
        if dist.is_initialized():
            dist.destroy_process_group()
    except Exception as error:  # NCCL's, of any type
        warn(f"the process group could not be destroyed: {error}")
    gc.enable()
    gc.collect()
