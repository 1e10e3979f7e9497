"""backend=transformers: Hugging Face's NemotronH on a CPU or one GPU, data parallel under torchrun.

It shares configuration, data, batch arithmetic and learning-rate schedule with backend=megatron: Megatron's GPTDataset
and OptimizerParamScheduler in an accelerate loop.
"""

import os
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

from nano3.config.model import MTP_KEYS, ModelConfig
from nano3.config.pretrain import PretrainConfig, RecipeConfig
from nano3.training.checks.lr_schedule import schedule_problems
from nano3.training.checks.value_checks import blend_file_problems, value_problems, vocabulary_problems
from nano3.training.dataset import TrainingData, open_data
from nano3.training.hf.batch import BatchPlan, plan_batches
from nano3.training.hf.model import PARALLEL, embedding_rows, model_problems, value_or_default
from nano3.training.run import resume
from nano3.training.run.hang_watch import note_progress
from nano3.training.run.metrics import truncate_after
from nano3.training.run.outcome import Outcome, SaveHook, no_hook
from nano3.training.run.resume import CheckpointSearch, ResumePoint, agree_on_resume_point, world_size
from nano3.training.run.startup_timer import StartupTimer
from nano3.training.run.stop import StopRequest
from nano3.utils.console import say, warn
from nano3.utils.errors import UserError, exit_code_of
from nano3.utils.gc_pause import gc_paused
from nano3.utils.provenance import install_command, missing_modules

PACKAGES: tuple[str, ...] = ("torch", "transformers", "accelerate", "megatron.core")
INSTALL = install_command("train")
# Settings of the model that change only its speed, or nothing in this backend.
_MUTABLE_MODEL_KEYS = ("mamba_chunk_size", "sequence_parallel", *PARALLEL, *MTP_KEYS)
_VERSIONS = ("torch", "transformers", "megatron-core")


def missing() -> list[str]:
    """Return the packages this backend needs that are not installed in this Python."""
    return missing_modules(PACKAGES)


def check(config: PretrainConfig) -> list[str]:
    """Return why this backend cannot build the model, and the sections that only backend=megatron reads."""
    problems = []
    if config.megatron:
        problems.append("megatron: is used by backend=megatron only; remove it, or choose that backend.")
    if config.recipe._target_ != RecipeConfig._target_:
        problems.append(
            f"recipe._target_={config.recipe._target_} is used by backend=megatron only; leave it out, or choose "
            "that backend."
        )
    if config.recipe.per_split_data_args_path != RecipeConfig.per_split_data_args_path:
        problems += blend_file_problems(config)
    return problems + model_problems(config.model)


def run_identity(config: PretrainConfig, data: TrainingData) -> dict[str, Any]:
    """Return the values that must be the same on a resume: architecture, data, seed, sample and batch size."""
    shape = [f.name for f in fields(ModelConfig) if f.name not in _MUTABLE_MODEL_KEYS]
    model = {key: value_or_default(config.model, key) for key in shape}
    model["vocab_size"] = embedding_rows(config.model, data.vocab_size)
    return resume.run_identity(config, data, model)


def mutable_settings(config: PretrainConfig) -> dict[str, Any]:
    """Return the values that may change on a resume; a change is logged, since losses then differ."""
    more = {
        "model.mamba_chunk_size": value_or_default(config.model, "mamba_chunk_size"),
        "threads per rank": thread_count(config),
        "processor": platform.machine(),
    }
    return resume.mutable_settings(config, more, _VERSIONS)


def find_resume_point(config: PretrainConfig, run_dir: Path, data: TrainingData | None) -> ResumePoint:
    """Return where a run starts.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        data: The prepared data; None if it is not prepared yet.

    Raises:
        UserError: The run may not start there.
    """
    comparable = data is not None and not vocabulary_problems(config, data.vocab_size)  # else reported by preflight
    identity = run_identity(config, data) if data and comparable else None
    return resume.find_resume_point(config, run_dir, CheckpointSearch(), identity)


def train(config: PretrainConfig, data_dir: Path, run_dir: Path, on_save: SaveHook = no_hook) -> Outcome:
    """Train until train_iters, a limit or a signal; resume from the newest checkpoint if there is one.

    Args:
        config: The configuration of the run; the same on every rank.
        data_dir: The folder of the prepared data.
        run_dir: The run folder.
        on_save: Called on rank 0 with the iteration and folder of each complete checkpoint.

    Raises:
        UserError: The configuration or the data is wrong.
        Failure: The training cannot continue.
    """
    run_dir, startup = Path(run_dir).absolute(), StartupTimer()
    with StopRequest(config.train.exit_iteration, config.train.exit_duration_in_mins) as stop:
        data, plan = validate_inputs(config, Path(data_dir), world_size())
        identity, settings = run_identity(config, data), mutable_settings(config)
        point = agree_on_resume_point(
            config, run_dir, lambda: find_resume_point(config, run_dir, data), identity, settings, data=data
        )
        if outcome := _nothing_to_do(config, run_dir, point):
            return outcome
        say(point.sentence("weights and optimizer"))
        startup.mark("checks")
        return _train(config, data, plan, run_dir, point, startup, stop, on_save)


def _nothing_to_do(config: PretrainConfig, run_dir: Path, point: ResumePoint) -> Outcome | None:
    """Return how a run ends that has no iteration left, or None."""
    if point.folder is None or point.new_phase:
        return None
    if point.iteration >= config.train.train_iters:
        truncate_after(run_dir, point.iteration)
        say(f"already finished: {point.folder} has all {config.train.train_iters} iterations; nothing to do")
        return Outcome("finished", point.iteration, point.folder)
    if config.train.exit_iteration is not None and point.iteration >= config.train.exit_iteration:
        # The one reason to stop that all ranks see alike; they agree on a signal in the loop.
        reason = f"train.exit_iteration={config.train.exit_iteration}"
        truncate_after(run_dir, point.iteration)
        say(f"already at iteration {point.iteration} ({point.folder}); {reason} asks for no more")
        return Outcome("stopped", point.iteration, point.folder, reason)
    return None


def validate_inputs(config: PretrainConfig, data_dir: Path, ranks: int) -> tuple[TrainingData, BatchPlan]:
    """Check everything that can be known before torch is imported.

    Args:
        config: The configuration of the run.
        data_dir: The folder of the prepared data.
        ranks: The number of data-parallel ranks.

    Raises:
        UserError: Lists every problem.
    """
    problems = model_problems(config.model) + schedule_problems(config) + value_problems(config)
    plan, data = None, None
    try:
        plan = plan_batches(config.train.global_batch_size, config.train.micro_batch_size, ranks)
    except UserError as error:
        problems += error.problems
    try:
        data = open_data(data_dir)
        data.require(config.train.seq_length, ["train", "valid"] if config.train.eval_interval else ["train"])
        embedding_rows(config.model, data.vocab_size)
    except UserError as error:
        problems += error.problems
    if problems or plan is None or data is None:
        raise UserError(problems)
    if config.megatron:
        warn(f"megatron.{', megatron.'.join(config.megatron)}: read by backend=megatron only.")
    return data, plan


def thread_count(config: PretrainConfig) -> int:
    """Return the threads of a rank: train.threads, or half of this process's cores shared by the machine's ranks.

    All cores would be faster on an idle machine and many times slower on a busy one.
    """
    if config.train.threads is not None:
        return config.train.threads
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // 2 // ranks)


def _train(
    config: PretrainConfig,
    data: TrainingData,
    plan: BatchPlan,
    run_dir: Path,
    point: ResumePoint,
    startup: StartupTimer,
    stop: StopRequest,
    on_save: SaveHook,
) -> Outcome:
    """Import torch, assemble the loop and run it."""
    from nano3.training.hf.components import RunInputs, assemble

    threads = thread_count(config)
    inputs = RunInputs(
        config=config,
        data=data,
        plan=plan,
        run_dir=run_dir,
        point=point,
        threads=threads,
        run_identity=run_identity(config, data),
        mutable_settings=mutable_settings(config),
        on_save=on_save,
        startup=startup,
    )
    with gc_paused():  # imports torch and transformers
        loop = assemble(inputs)
    planned = config.train.train_iters * config.train.global_batch_size * config.train.seq_length
    say(
        f"{loop.parts.parameters:,} parameters; {planned:,} tokens to train on, {data.tokens('train'):,} in the train "
        f"split; {plan.data_parallel_size} rank(s) with {threads} thread(s) on {loop.parts.accelerator.device.type}; "
        f"ready after {loop.clock.since_start_s():.1f} s"
    )
    code = 1
    try:
        outcome = loop.run(stop)
        code = outcome.exit_code(config.train.exit_iteration)
    except BaseException as error:
        code = exit_code_of(error) or 1  # rank_main takes an exit with 0 for a failure
        raise
    finally:
        note_progress(loop.iteration, "end")
        loop.parts.metrics.close(code)
    loop.parts.accelerator.wait_for_everyone()
    because = f" ({outcome.reason})" if outcome.reason else ""
    say(f"{outcome.status} at iteration {outcome.iteration}{because}; checkpoint {outcome.checkpoint}")
    return outcome
