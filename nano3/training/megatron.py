"""backend=megatron: pretraining through Megatron-Bridge's own `pretrain`, on one GPU or thousands.

The order matters: what can be refused without CUDA is refused first (`prepare`), then the first log line says where
the run starts, then Megatron-Bridge takes over. Rank and world size come from RANK, WORLD_SIZE and LOCAL_RANK as
torchrun, Slurm through nano3's launcher, or nobody (then it is a run of one) set them.
"""

import contextlib
import gc
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nano3.config import PretrainConfig
from nano3.config.model import ModelConfig
from nano3.console import is_rank_zero, say
from nano3.errors import Failure, UserError
from nano3.training import overrides, recipe, schema
from nano3.training.checkpoints import MARKER, complete, iteration_of, latest, read_info
from nano3.training.data import TrainingData, open_data
from nano3.training.outcome import Outcome, SaveHook, no_hook

# How the model is cut. Optimizer state saved for one cut cannot be read for another; ranks may join or leave the
# data-parallel group, and context parallelism and sequence parallelism cut no parameters.
FREE_MODEL_KEYS = ("context_parallel_size", "sequence_parallel", "mamba_chunk_size")


@dataclass(frozen=True)
class Start:
    """Where a run goes on: `folder` None is a fresh start; `own` tells whether the checkpoint is this run's."""

    iteration: int
    folder: Path | None
    own: bool


def train(config: PretrainConfig, data_dir: Path, run_dir: Path, *, on_save: SaveHook = no_hook) -> Outcome:
    """Train until `train.train_iters`, or until a signal or limit stops it with a checkpoint.

    Raises `UserError` for everything wrong with configuration or data, `Failure` when the loss is no longer a number.
    """
    run_dir = Path(run_dir).absolute()
    data = open_data(data_dir)
    data.require(config.train.seq_length, ["train"] + (["valid"] if config.train.eval_interval else []))
    save = recipe.checkpoint_folder(config, run_dir)
    start = find_start(save, config.checkpoint.load)
    end = config.train.exit_iteration or config.train.train_iters
    if start.own and start.folder and start.iteration >= min(end, config.train.train_iters):
        say(f"finished: iteration {start.iteration} of {config.train.train_iters} is in {start.folder}; nothing to do")
        return Outcome("finished", start.iteration, start.folder)
    weights = (config.megatron.get("checkpoint") or {}).get("pretrained_checkpoint")
    fresh = f"fresh start from the weights of {weights}" if weights else "fresh start"
    say(f"resuming from iteration {start.iteration} of {start.folder}" if start.folder else fresh)
    check_same_run(config, data, start)
    set_environment()
    container = prepare(config, data, run_dir)
    if is_rank_zero():
        remove_unfinished(save)
    container.checkpoint.load = str(start.folder) if start.folder else None
    if other_world_size(start):
        # Megatron-Bridge stores random states per rank with expert parallelism, and would look for those of ranks
        # that were not there. Nothing of a run depends on them after initialisation: there is no dropout, and data go
        # by consumed samples.
        container.checkpoint.load_rng = False
    return _run(config, container, run_dir, save, data, start, on_save)


def find_start(save: Path, load: str | None) -> Start:
    """The newest complete checkpoint of this run; without one, that of `load`; without either a fresh start.

    `load` may be a run's checkpoint folder, the folder of one iteration, or a Megatron-Bridge checkpoint that nano3
    did not write. Raises `UserError` when `load` is another folder than `save` and holds no checkpoint.
    """
    if own := latest(save):
        return Start(iteration_of(own), own, own=True)
    if load is None or Path(load).absolute() == save:
        return Start(0, None, own=True)
    folder = Path(load).absolute()
    if (folder / "run_config.yaml").is_file():
        return Start(iteration_of(folder), folder, own=False)
    if found := latest(folder):
        return Start(iteration_of(found), found, own=False)
    foreign = [p for p in folder.glob("iter_*") if (p / "run_config.yaml").is_file() and (p / ".metadata").is_file()]
    if not foreign:
        raise UserError(
            f"checkpoint.load={load}: there is no complete checkpoint in it. Leave the key out to start afresh."
        )
    newest = max(foreign, key=iteration_of)
    return Start(iteration_of(newest), newest, own=False)


def remove_unfinished(save: Path) -> None:
    """Remove iteration folders newer than the newest marked one: a killed save left them, and they would count as
    kept ones."""
    marked = complete(save)
    if not marked:
        return
    for folder in save.glob("iter_*"):
        if not (folder / MARKER).is_file() and iteration_of(folder) > iteration_of(marked[-1]):
            say(f"removing {folder}, which an interrupted save left unfinished")
            shutil.rmtree(folder)


def check_same_run(config: PretrainConfig, data: TrainingData, start: Start) -> None:
    """Refuse to go on from a checkpoint of another model or other data; tell what else changed."""
    from nano3.training.resume import check_resume

    if start.folder and (start.folder / MARKER).is_file():
        check_resume(read_info(start.folder), start.folder, fixed_keys(config, data), told_keys(config), start.own)


def other_world_size(start: Start) -> bool:
    """Whether the checkpoint was written by another number of ranks; False when that is not known."""
    if not start.folder or not (start.folder / MARKER).is_file():
        return False
    return read_info(start.folder).told.get("world size") not in (None, world_size())


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
        **{f"version of {p}": version(p) for p in ("torch", "megatron-bridge", "megatron-core", "transformer-engine")},
    }


def set_environment() -> None:
    """Rank variables for a plain process, and caches that make every start after the first one fast."""
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
    home = Path(os.environ.get("NANO3_CACHE", "~/.cache/nano3")).expanduser()
    # Compiling and tuning the Mamba and MoE kernels takes minutes; results are kept for every later start on this
    # machine type.
    os.environ.setdefault("TRITON_CACHE_DIR", str(home / "triton"))
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def prepare(config: PretrainConfig, data: TrainingData, run_dir: Path) -> Any:
    """The checked ConfigContainer: recipe, typed sections, data, adaptations, then `megatron:`. Touches no GPU.

    Raises `UserError` with every problem.
    """
    target = config.recipe._target_
    if problems := recipe.target_problems(target):
        raise UserError(problems)
    recorded = schema.recorded(target)
    free = overrides.free_settings(config.megatron, recorded)
    problems = tokenizer_problems(free, data)
    if schema.is_recorded(target) and schema.versions() == dict(recorded.versions):
        problems += overrides.check([*overrides.typed_settings(config), *free], recorded)
    if problems:
        raise UserError(problems)
    recipe.offline_hub(target, run_dir / "hub")
    container = recipe.call_recipe(target, config.recipe.per_split_data_args_path)
    live = schema.record(container, target)
    typed = [*overrides.typed_settings(config), *recipe.data_settings(config, data, run_dir)]
    free = overrides.free_settings(config.megatron, live)
    if problems := overrides.check([*typed, *free], live):
        raise UserError(problems)
    overrides.apply(container, typed, live)
    adapted = recipe.adaptations(recipe.reader(container), world_size(), recipe.can_import)
    overrides.apply(container, adapted, live)
    overrides.apply(container, free, live)
    chosen = {s.path for s in free}
    for s in adapted:
        if s.path not in chosen:
            say(f"adapted {s.path}={s.value}: {s.origin}")
    return container


def tokenizer_problems(free: list[overrides.Setting], data: TrainingData) -> list[str]:
    """The tokenizer follows the data; another one may be named only if it is the same."""
    import hashlib

    problems = []
    own = hashlib.sha256((data.tokenizer / "tokenizer.json").read_bytes()).hexdigest()
    for s in free:
        if s.path != "tokenizer.tokenizer_model":
            continue
        file = Path(str(s.value)) / "tokenizer.json"
        if not file.is_file():
            problems.append(
                f"{s.origin}={s.value}: not a folder with a tokenizer.json. Leave it out: the data's own is used."
            )
        elif hashlib.sha256(file.read_bytes()).hexdigest() != own:
            problems.append(
                f"{s.origin}={s.value}: this is not the tokenizer that made the data in {data.folder}. Leave it "
                "out, or prepare "
                "the data with it."
            )
    return problems


def _run(
    config: PretrainConfig,
    container: Any,
    run_dir: Path,
    save: Path,
    data: TrainingData,
    start: Start,
    on_save: SaveHook,
) -> Outcome:
    """Hand over to Megatron-Bridge and translate how it ended."""
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    from nano3.training.callbacks import Run, TrainingHooks, nan_message
    from nano3.training.metrics import Metrics
    from nano3.training.source_validation import SourceValidation
    from nano3.training.stop import StopRequest

    rank = int(os.environ["RANK"])
    train = config.train
    metrics = Metrics(run_dir, rank, start.iteration, config, train.train_iters)
    with StopRequest(train.exit_iteration, train.exit_duration_in_mins) as stop, _quiet_exit():
        hooks = TrainingHooks(
            Run(
                metrics=metrics,
                stop=stop,
                on_save=on_save,
                save_folder=save,
                log_interval=config.logger.log_interval,
                global_batch_size=train.global_batch_size,
                seq_length=train.seq_length,
                fixed=fixed_keys(config, data),
                told=told_keys(config),
                per_dataset=SourceValidation(data, train.eval_iters, forward_step) if train.eval_interval else None,
            )
        )
        failed = 1
        try:
            pretrain(config=container, forward_step_func=forward_step, callbacks=[hooks])
            failed = 0
        except SystemExit as error:
            if not hooks.reason or error.code not in (0, None):
                raise Failure(
                    f"Megatron-Bridge left at iteration {hooks.iteration} with exit code {error.code}; see the "
                    "log above."
                ) from error
            failed = 0
        except RuntimeError as error:
            if what := re.search(r"found (NaN|Inf)[^')]*", str(error)):
                raise Failure(nan_message(hooks.iteration + 1, what[0])) from error
            raise
        finally:
            metrics.close(failed)
            _release()
    if hooks.reason:
        return Outcome("stopped", hooks.iteration, hooks.saved, hooks.reason)
    return Outcome("finished", hooks.iteration, hooks.saved)


@contextlib.contextmanager
def _quiet_exit() -> Iterator[None]:
    """Keep tracebacks of foreseen ends out of the log: Megatron-Bridge reports SystemExit(0), by which it leaves its
    loop after an agreed stop, as an error, and nano3 tells in its own words that a run diverged.
    """

    def wanted(record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        stopped = isinstance(error, SystemExit) and error.code in (0, None)
        return not (stopped or isinstance(error, Failure) or re.search("found (NaN|Inf)", str(error)))

    logger = logging.getLogger("megatron.bridge.training.pretrain")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _release() -> None:
    """Destroy what is left of the process group and the garbage that manual collection kept."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    gc.enable()
    gc.collect()
