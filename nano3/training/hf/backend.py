"""The transformers backend: the same config, data, batch arithmetic and schedule as Megatron's, on a CPU or one GPU.

Hugging Face's NemotronH, Megatron's GPTDataset and OptimizerParamScheduler, an accelerate loop; data parallel under
torchrun.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nano3.config.pretrain import PretrainConfig
from nano3.training.checks.lr_schedule import schedule_problems
from nano3.training.checks.value_checks import value_problems
from nano3.training.dataset import TrainingData, open_data
from nano3.training.hf.batch import BatchPlan, plan_batches
from nano3.training.hf.model import embedding_rows, model_problems
from nano3.training.run import parent_checkpoint
from nano3.training.run.checkpoint_owner import claim_dir, owner_problem
from nano3.training.run.checkpoints import (
    MARKER,
    CheckpointInfo,
    checkpoint_dir,
    latest_checkpoint,
    read_checkpoint_info,
)
from nano3.training.run.metrics import truncate_after
from nano3.training.run.outcome import Outcome, SaveHook, no_hook
from nano3.training.run.rank_sync import agree_on_rank0
from nano3.training.run.resume import (
    Start,
    check_fixed,
    check_new_phase,
    check_resume,
    fixed_keys,
    told_keys,
)
from nano3.training.run.stop import StopRequest
from nano3.utils.console import say, warn
from nano3.utils.errors import UserError
from nano3.utils.gc_pause import gc_paused


def train(config: PretrainConfig, data_dir: Path, run_dir: Path, on_save: SaveHook = no_hook) -> Outcome:
    """Train until train_iters, a limit or a signal; go on from the newest checkpoint when there is one.

    Called in every rank with the same arguments. Raises `UserError` for what the user can mend, else `Failure`.
    """
    run_dir = Path(run_dir).absolute()
    with StopRequest(config.train.exit_iteration, config.train.exit_duration_in_mins) as stop:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        data, plan = check(config, Path(data_dir), world_size)
        threads = thread_count(config)
        fixed, told = fixed_keys(config, data), told_keys(config, world_size, threads)
        start = decide_start(config, run_dir, fixed, told, threads)
        if start.folder is None or start.info is None:
            say("fresh start")
        elif start.new_phase:
            say(f"new phase: iteration 0 with the weights and optimizer of {start.folder}")
        elif start.iteration >= config.train.train_iters:
            truncate_after(run_dir, start.iteration)
            say(f"already finished: {start.folder} has all {config.train.train_iters} iterations; nothing to do")
            return Outcome("finished", start.iteration, start.folder)
        elif config.train.exit_iteration is not None and start.iteration >= config.train.exit_iteration:
            # Of the reasons to stop only the one that all ranks see alike; a signal is agreed on in the loop.
            reason = f"train.exit_iteration={config.train.exit_iteration}"
            truncate_after(run_dir, start.iteration)
            say(f"already at iteration {start.iteration} ({start.folder}); {reason} asks for no more")
            return Outcome("stopped", start.iteration, start.folder, reason)
        else:
            say(f"resuming from iteration {start.iteration} of {start.folder}")
        return _train(config, data, plan, run_dir, start, stop, on_save)


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run starts from, or none; `own`: this run has saved it itself."""

    folder: Path | None = None
    info: CheckpointInfo | None = None
    own: bool = True
    new_phase: bool = False

    @property
    def iteration(self) -> int:
        """Iterations of this run's schedule that are done."""
        return self.info.iteration if self.info and not self.new_phase else 0


def look(config: PretrainConfig, run_dir: Path, fixed: dict[str, Any] | None) -> Found:
    """Where this run starts. Raises `UserError` when it may not start there, as far as `fixed` (None: the data is not
    known yet) tells."""
    save = checkpoint_dir(config, run_dir)
    if problem := owner_problem(save, run_dir):
        raise UserError(problem)
    folder = find_checkpoint(config, run_dir)
    if folder is None:
        return Found()
    info, own = read_checkpoint_info(folder), folder.parent == save
    new_phase = not own and not config.checkpoint.keep_iteration
    if fixed is not None and new_phase:
        check_new_phase(info, folder, fixed)
    elif fixed is not None:
        check_fixed(info, folder, fixed, own)
    if not own and not new_phase and info.iteration >= config.train.train_iters:
        raise UserError(
            f"checkpoint.keep_iteration=true: {folder} has {info.iteration} iterations already, train.train_iters "
            f"is {config.train.train_iters}. Give more, or leave it out to begin a new phase."
        )
    return Found(folder, info, own, new_phase)


def decide_start(
    config: PretrainConfig, run_dir: Path, fixed: dict[str, Any], told: dict[str, Any], threads: int
) -> Start:
    """Where this run starts, as rank 0 sees it. Raises `UserError`, on every rank, when it may not start there."""

    def decide() -> dict[str, Any]:
        found, save = look(config, run_dir, fixed), checkpoint_dir(config, run_dir)
        if found.folder and found.info and not found.new_phase:
            check_resume(found.info, found.folder, fixed, told, own_folder=found.own)
        claim_dir(save, run_dir)
        if found.own and found.folder:
            parent_checkpoint.warn_unused_load(run_dir, config, found.folder)
        else:
            parent_checkpoint.record_parent(run_dir, found.folder, found.new_phase)
        return {
            "folder": found.folder and str(found.folder),
            "info": found.info and asdict(found.info),
            "new_phase": found.new_phase,
        }

    seen = agree_on_rank0(decide)
    folder = Path(seen["folder"]) if seen["folder"] else None
    info = CheckpointInfo(**seen["info"]) if seen["info"] else None
    return Start(folder, info, fixed, told, threads, seen["new_phase"])


def check(config: PretrainConfig, data_dir: Path, world_size: int) -> tuple[TrainingData, BatchPlan]:
    """Everything that can be told before torch is imported; raises one `UserError` with all problems."""
    problems = model_problems(config.model) + schedule_problems(config) + value_problems(config)
    plan, data = None, None
    try:
        plan = plan_batches(config.train.global_batch_size, config.train.micro_batch_size, world_size)
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
    """train.threads, or half of the cores this process may use, shared by the ranks of this machine (at least 1).

    All cores would be faster on an idle machine and many times slower on a busy one.
    """
    if config.train.threads is not None:
        return config.train.threads
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // 2 // ranks)


def find_checkpoint(config: PretrainConfig, run_dir: Path) -> Path | None:
    """This run's newest checkpoint, else what checkpoint.load names: a folder of checkpoints, or one of them."""
    own = latest_checkpoint(checkpoint_dir(config, run_dir))
    if own is not None or config.checkpoint.load is None:
        return own
    load = Path(config.checkpoint.load).absolute()
    if (load / MARKER).is_file():
        return load
    found = latest_checkpoint(load)
    if found is None and load != checkpoint_dir(config, run_dir):
        raise UserError(f"checkpoint.load={load} holds no complete checkpoint (iter_0000100 with {MARKER} in it).")
    return found


def _train(
    config: PretrainConfig,
    data: TrainingData,
    plan: BatchPlan,
    run_dir: Path,
    start: Start,
    stop: StopRequest,
    on_save: SaveHook,
) -> Outcome:
    """The part that needs torch."""
    from nano3.training.hf.components import assemble

    with gc_paused():  # imports torch and transformers
        loop = assemble(config, data, plan, run_dir, start, on_save)
    wanted = config.train.train_iters * config.train.global_batch_size * config.train.seq_length
    say(
        f"{loop.parts.parameters:,} parameters; {wanted:,} tokens to train on, {data.tokens('train'):,} in the train "
        f"split; "
        f"{plan.data_parallel_size} rank(s) with {start.threads} thread(s) on {loop.parts.accelerator.device.type}; "
        f"ready after {loop.clock.since_start_s():.1f} s"
    )
    try:
        outcome = loop.run(stop)
    except BaseException:
        loop.parts.metrics.close(exit_code=1)
        raise
    loop.parts.metrics.close()
    loop.parts.accelerator.wait_for_everyone()
    because = f" ({outcome.reason})" if outcome.reason else ""
    say(f"{outcome.status} at iteration {outcome.iteration}{because}; checkpoint {outcome.checkpoint}")
    return outcome
