"""Pretrain on prepared data, here or on a cluster.

    python -m nano3.pretrain +experiment=quickstart                       # CPU, the bundled corpus
    torchrun --nproc-per-node=8 -m nano3.pretrain +experiment=tiny        # the GPUs of this machine
    python -m nano3.pretrain +experiment=tiny cluster=slurm               # submit, and follow the log
    python -m nano3.pretrain +experiment=tiny cluster=slurm dry_run=true  # show the job, submit nothing
    python -m nano3.pretrain -m +experiment=tiny cluster=slurm train.global_batch_size=32,64

The same command, started again, resumes from the newest checkpoint of run.output_dir.
"""

import contextlib
import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

import launch
from launch import environment
from launch.check import unused_key_problems
from launch.lock import hold_run_lock
from launch.submissions import check_not_active
from nano3.artifacts.resolver import resolve_reference, wandb_settings_from
from nano3.cli.app import run_app, task_overrides, to_typed_config
from nano3.cli.config_file_errors import experiment_override_warning, lost_schedule_warning
from nano3.config import PretrainConfig
from nano3.config.guard import may_roll_back
from nano3.training import backend
from nano3.training.checks import run_folders
from nano3.training.checks.lr_schedule import with_default_decay
from nano3.training.preflight import Preflight, preflight
from nano3.training.reports.objective import objective_problems
from nano3.training.run.record import (
    DataReference,
    abandoned_checkpoint_problems,
    finish_text,
    late_settings_warning,
    missing_final_checkpoint,
    run_changed,
    run_config_text,
    save_run_config,
    valid_finish_record,
)
from nano3.training.run.stop import last_iteration
from nano3.utils.console import is_rank_zero, say, table, warn, write
from nano3.utils.errors import ROLLBACK_EXIT_CODE, UserError
from nano3.utils.files import expand_user, normalize_path

# Takes the rows (what, value) of a preflight table.
ShowRows = Callable[[list[tuple[str, str]]], None]


def main() -> None:
    """Run `python -m nano3.pretrain`."""
    run_app("pretrain", pretrain, sweep="nano3.pretrain_sweep")


def pretrain(cfg: DictConfig) -> int:
    """Check and launch one run, and return the exit code."""
    run_dir = absolute_path(cfg.run.output_dir)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if "RANK" not in os.environ:
            raise UserError("WORLD_SIZE is set and RANK is not: start with torchrun, or unset WORLD_SIZE")
        return train_torchrun_rank(cfg, run_dir)
    return launch.run([make_job(cfg, run_dir, label="")], dry_run=cfg.dry_run, sweep=False)


def train_torchrun_rank(cfg: DictConfig, run_dir: Path, label: str = "") -> int:
    """Train in one rank that torchrun or another launcher started, and return the exit code.

    Every rank composes the same configuration; only rank 0 writes it to the run folder.

    Args:
        cfg: The composed configuration.
        run_dir: The run folder.
        label: The label of a sweep point.
    """
    from nano3.training import rank_main  # only ranks need it

    if problems := torchrun_problems(cfg):
        raise UserError(problems)
    data = find_data(cfg, run_dir, label)
    config, preview = validate(cfg, data, run_dir, label)
    if config.dry_run:
        if is_rank_zero():
            write(preview)
        return 0
    with contextlib.ExitStack() as held:
        if is_rank_zero():
            held.enter_context(hold_run_lock(run_dir))
            check_not_active([run_dir])
            save_run_config(run_dir, config, data, task_overrides(), label)
        code = rank_main.train(config, run_dir)
        if code == ROLLBACK_EXIT_CODE:
            say("rolled back: start the same command again to continue (torchrun --max-restarts=N does)")
        return code


def torchrun_problems(cfg: DictConfig) -> list[str]:
    """Return why the ranks that torchrun started cannot train with this configuration."""
    started, wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), cfg.cluster.nproc_per_node
    if cfg.cluster.kind == "slurm":
        return [
            "torchrun starts the ranks on this machine, and this cluster profile submits to Slurm. Leave out torchrun "
            "to submit, or leave out cluster=... to train here."
        ]
    if wanted not in (1, started):
        return [f"cluster.nproc_per_node={wanted} has no effect: torchrun has started {started} ranks. Leave it out."]
    return []


def make_job(
    cfg: DictConfig,
    run_dir: Path,
    label: str,
    data: DataReference | None = None,
    overrides: Sequence[str] | None = None,
    vocab_size: int | None = None,
    show: ShowRows | None = None,
) -> launch.Job:
    """Check a composed configuration and return the job that launch starts.

    Args:
        cfg: The composed configuration.
        run_dir: The run folder.
        label: The label of a sweep point; "" for a single run.
        data: The data, if it is still being prepared.
        overrides: The words to record, if they are not those of this command line.
        vocab_size: Ids of the data's tokenizer, if the data is still being prepared.
        show: Takes the rows of the preflight table instead of printing them.
    """
    words = task_overrides() if overrides is None else list(overrides)
    found = data or find_data(cfg, run_dir, label, words)
    config, preview = validate(cfg, found, run_dir, label, vocab_size, show, words)
    if not label:
        for warning in filter(None, (experiment_override_warning(words), lost_schedule_warning(words))):
            warn(warning)

    def save_config() -> None:
        if config.cluster.container_runtime != "none":  # a mounted folder must exist
            for path in run_folders.folders_written(config):
                Path(path).mkdir(parents=True, exist_ok=True)
        save_run_config(run_dir, config, found, words, label)

    return launch.Job(
        name=config.run.name,
        run_dir=run_dir,
        entry="nano3.training.rank_main:main",
        args=(str(run_dir / "config.yaml"),),
        cluster=config.cluster,
        container=config.run.env.container,
        folders=(*run_folders.folders_read(config), *run_folders.folders_written(config)),
        preview=preview,
        label=label,
        iterations=last_iteration(config),
        restart_after_crash=True,
        may_roll_back=may_roll_back(config.guard, config.backend),
        changed=run_changed(run_dir, config, found) or missing_final_checkpoint(run_dir) is not None,
        save_config=save_config,
    )


def validate(
    cfg: DictConfig,
    data: DataReference,
    run_dir: Path,
    label: str = "",
    vocab_size: int | None = None,
    show: ShowRows | None = None,
    overrides: Sequence[str] = (),
) -> tuple[PretrainConfig, str]:
    """Return the resolved configuration, in a dry run also as text, and print the preflight table.

    Args:
        cfg: The composed configuration.
        data: The data of the run.
        run_dir: The run folder.
        label: The label of a sweep point.
        vocab_size: Ids of the data's tokenizer, if the data is still being prepared.
        show: Takes the rows of the preflight table instead of printing them.
        overrides: The words of the command line.

    Raises:
        UserError: Lists every problem found.
    """
    config = resolve_paths(to_typed_config(cfg), data, run_dir, label)
    if problems := abandoned_checkpoint_problems(run_dir, config):
        raise UserError(problems)
    late = late_settings_warning(run_dir, config)
    rows = run_preflight(config, vocab_size, overrides).rows
    if config.dry_run and (done := valid_finish_record(run_dir)) and not run_changed(run_dir, config, data):
        rows.insert(0, ("already finished", finish_text(run_dir, done)))
    if show:
        show(rows)
    else:
        table("Preflight", ["what", "value"], rows)
    if late:
        warn(late)
    return config, run_config_text(config) if config.dry_run else ""


def find_data(cfg: DictConfig, run_dir: Path, label: str, overrides: Sequence[str] = ()) -> DataReference:
    """Return the data of a run, as `resolve_data` does; an error lists what else is wrong with the run, too."""
    try:
        return resolve_data(cfg)
    except UserError as error:
        error.problems.extend(_problems_without_data(cfg, run_dir, label, overrides))
        raise


def _problems_without_data(cfg: DictConfig, run_dir: Path, label: str, overrides: Sequence[str]) -> list[str]:
    without = copy.deepcopy(cfg)
    without.run.data, without.recipe.per_split_data_args_path = os.devnull, f"{os.devnull}/blend.json"
    try:
        config = resolve_paths(to_typed_config(without), DataReference(os.devnull, os.devnull, ""), run_dir, label)
        run_preflight(config, overrides=overrides)
    except UserError as error:
        return error.problems
    return []


def resolve_data(cfg: DictConfig) -> DataReference:
    """Return the folder and the fingerprint of run.data.

    Raises:
        UserError: There is no such data.
    """
    from nano3.data.dataset.manifest import load_manifest  # imports numpy, which --cfg job can do without

    found = resolve_reference(cfg.run.data, wandb_settings_from(cfg))
    return DataReference(found.reference, str(found.folder), load_manifest(found.folder).content)


def resolve_paths(config: PretrainConfig, data: DataReference, run_dir: Path, label: str = "") -> PretrainConfig:
    """Return the configuration with the data folder, all paths, the container runtime and the default decay filled in.

    An alias or a relative path could later refer to something else. A sweep point gets its own folder inside the given
    checkpoint and TensorBoard folders, since points would otherwise share them.

    Args:
        config: The typed configuration.
        data: The data of the run.
        run_dir: The run folder.
        label: The label of a sweep point.
    """
    given, board = config.checkpoint, config.logger.tensorboard_dir
    save = absolute_path(given.save or run_dir / "checkpoints")
    load = absolute_path(given.load) if given.load else save
    own = save / label if given.save else save
    return replace(
        with_default_decay(config),
        cluster=environment.resolve_runtime(config.cluster, config.run.env.container),
        run=replace(config.run, data=data.folder, output_dir=str(run_dir)),
        checkpoint=replace(given, save=str(own), load=str(own if load == save else load)),
        logger=replace(config.logger, tensorboard_dir=str(absolute_path(board) / label) if board else None),
    )


def absolute_path(path: str | Path) -> Path:
    """Return an absolute path, with ~ expanded."""
    return normalize_path(expand_user(path))


def run_preflight(config: PretrainConfig, vocab_size: int | None = None, overrides: Sequence[str] = ()) -> Preflight:
    """Check everything that can be known before a rank starts.

    Args:
        config: The run's configuration, with resolved paths.
        vocab_size: Ids of the data's tokenizer, if the data is still being prepared.
        overrides: The words of the command line.

    Raises:
        UserError: Lists every problem found.
    """
    problems = backend.name_problems(config.backend)
    if problems:
        raise UserError(problems)
    missing = missing_package_problems(config)
    certain = not config.dry_run and not environment.may_be_added(config.cluster)
    problems += missing if certain else []
    if config.cluster.kind == "local" and config.cluster.tasks > 1:
        problems.append(f"cluster.tasks={config.cluster.tasks} is for data preparations on Slurm; leave it out.")
    elif config.cluster.kind == "slurm":
        problems += unused_key_problems(config.cluster, overrides, preparation=False)
    problems += objective_problems(config.objective_take) + run_folders.unwritable_problems(config)
    problems += run_folders.foreign_file_problems(Path(config.run.output_dir))
    result = preflight(config, vocab_size)
    problems += result.problems
    if problems:
        raise UserError(problems)
    text = environment.describe(config.cluster, config.run.env.container, "run.env.container")
    result.rows.insert(0, ("ranks run in", text))
    result.rows.extend(("warning", " ".join(problem.split())) for problem in missing if not certain)
    return result


def missing_package_problems(config: PretrainConfig) -> list[str]:
    """Return one message if the Python of the ranks lacks packages of the backend, as far as this machine can know."""
    cluster, image = config.cluster, config.run.env.container
    if cluster.container_runtime == "none" and cluster.python is None and cluster.kind == "local":
        return backend.missing_problems(config.backend)
    chosen = backend.load(config.backend)
    missing = environment.missing_packages(cluster, [*chosen.PACKAGES, "omegaconf", "rich"])
    if not missing:
        return []
    lines = [f"backend={config.backend} needs {', '.join(missing)}, not installed where the ranks will run:"]
    lines += [f"{environment.describe(cluster, image, 'run.env.container')}."]
    lines += [f"To use the image: cluster.container_runtime={'pyxis' if environment.has_pyxis() else 'apptainer'}."]
    lines += [f"To install into this Python: {chosen.INSTALL}. For another Python: cluster.python=/path/to/python."]
    return ["\n  ".join(lines if image else [*lines[:2], *lines[3:]])]


if __name__ == "__main__":
    main()
