"""Where a run starts, for both backends: which checkpoint it resumes from, and whether that is the same run.

Preflight and the ranks use the same functions: `preview_resume_point` reports early what the ranks would refuse, and
`agree_on_resume_point` decides on rank 0, since another job may have saved meanwhile. checkpoint.json and the data's
manifest are enough for both; torch is not imported.
"""

import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nano3.config.pretrain import PretrainConfig, megatron_section
from nano3.training.dataset import TrainingData, open_data
from nano3.training.order.budgets import make_plan, megatron_order_problems, uses_plan
from nano3.training.order.plan import FILE as ORDER_FILE
from nano3.training.order.plan import MEGATRON, NANO3, OrderPlan, read_plan
from nano3.training.order.plan_text import change_sentence
from nano3.training.run import parent_checkpoint
from nano3.training.run.checkpoint_owner import claim_dir, owner_problem
from nano3.training.run.checkpoints import (
    MARKER,
    CheckpointInfo,
    checkpoint_dir,
    latest_checkpoint,
    read_checkpoint_info,
)
from nano3.training.run.rank_sync import agree_on_rank0
from nano3.training.run.record import read_latest_start
from nano3.training.run.skips import SkipRecord, begin_skips, late_skip_warning, moved_skips_warning, read_skips
from nano3.training.run.sound_checkpoints import check_damage, newest_sound, set_aside_damaged, verify_checkpoint
from nano3.utils.console import warn
from nano3.utils.errors import UserError
from nano3.utils.provenance import installed_versions
from nano3.utils.records import DamagedRecordError

# Keys of the run's identity that earlier versions did not write.
BOUNDARIES, EOD_MASK, ORDER = "train.document_boundaries", "train.loss_mask.eod", "train.sample_order"
# May differ from the run whose schedule is continued (checkpoint.keep_iteration).
_FREE_IN_A_CONTINUED_SCHEDULE = ("data", "train.seed", BOUNDARIES, EOD_MASK, ORDER)
# May differ in a new phase: weights alone can be split over any number of ranks, and are trained with other settings.
_FREE_IN_A_NEW_PHASE = (
    "backend",
    "data",
    "recipe",
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.expert_model_parallel_size",
    "model.init_method_std",
    "model.moe_router_bias_update_rate",
)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts: from scratch if `folder` is None, else from that checkpoint.

    Attributes:
        iteration: Iterations of this run's schedule that are done.
        folder: The checkpoint folder of one iteration.
        own: Whether this run saved the checkpoint itself.
        new_phase: Whether weights come from the checkpoint while iterations, schedule and data order start at 0.
        may_prune: Whether old checkpoints may be removed according to checkpoint.keep_last.
        info: checkpoint.json; None if the checkpoint has none.
        skips: The iterations that the run leaves out or has left out.
        order: The plan of the samples; None for Megatron's order.
    """

    iteration: int = 0
    folder: Path | None = None
    own: bool = True
    new_phase: bool = False
    may_prune: bool = True
    info: CheckpointInfo | None = field(default=None, compare=False)
    skips: SkipRecord = field(default_factory=SkipRecord)
    order: OrderPlan | None = None

    def sentence(self, restored: str, pretrained: str | None = None) -> str:
        """Return the first line of the log.

        Args:
            restored: What a new phase takes from the checkpoint, such as "weights".
            pretrained: The folder of other weights that a fresh start begins with.
        """
        if self.folder is None:
            return f"fresh start from the weights of {pretrained}" if pretrained else "fresh start"
        if self.new_phase:
            return f"new phase: iteration 0 with the {restored} of {self.folder}"
        return f"resuming from iteration {self.iteration} of {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self) | {"folder": self.folder and str(self.folder)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ResumePoint":
        """Return the point that `to_json` was called on."""
        folder, info = values["folder"], values["info"]
        typed = {"folder": folder and Path(folder), "info": info and CheckpointInfo(**info)}
        order = values["order"] and OrderPlan.from_json(values["order"])
        return cls(**values | typed | {"skips": SkipRecord.from_json(values["skips"]), "order": order})

    @property
    def guard_window(self) -> list[list[float]]:
        """The guard's window at the checkpoint; empty at iteration 0."""
        return self.info.guard_window if self.info and not self.new_phase else []


@dataclass(frozen=True)
class ResumePreview:
    """The resume point as preflight sees it. `problems` forbid the start, `warnings` do not."""

    point: ResumePoint = field(default_factory=ResumePoint)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class CheckpointSearch:
    """How a backend finds checkpoints. By default, those with a checkpoint.json count."""

    def newest_own(self, save: Path) -> Path | None:
        """Return the newest checkpoint in this run's checkpoint folder that is not evidently damaged."""
        return newest_sound(save, read_files=False)

    def newest_in(self, load: Path) -> Path | None:
        """Return the checkpoint that checkpoint.load names: `load` itself, or the newest one in it."""
        return load if (load / MARKER).is_file() else latest_checkpoint(load)

    def iteration(self, folder: Path) -> int:
        """Return the iteration of a checkpoint."""
        return read_checkpoint_info(folder).iteration


def find_resume_point(
    config: PretrainConfig, run_dir: Path, search: CheckpointSearch, identity: dict[str, Any] | None
) -> ResumePoint:
    """Return where a run starts: at its own newest checkpoint, else at that of checkpoint.load, else from scratch.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        search: The backend's way to find checkpoints.
        identity: The run's identity; None if the data is not prepared yet. It is then not compared.

    Raises:
        UserError: The run may not start there.
        Failure: A checkpoint is damaged.
    """
    save = checkpoint_dir(config, run_dir)
    if problem := owner_problem(save, run_dir):
        raise UserError(problem)
    check_damage(save, config.checkpoint.on_damage, read_files=False)
    point = _locate(config, save, search)
    if point.folder and (point.folder / MARKER).is_file():
        point = replace(point, info=read_checkpoint_info(point.folder))
    if identity is not None and point.folder and point.info:
        if point.new_phase:
            check_new_phase(point.info, point.folder, identity)
        else:
            check_run_identity(point.info, point.folder, identity, point.own, run_dir)
    if point.folder and not point.own and not point.new_phase and point.iteration >= config.train.train_iters:
        raise UserError(
            f"checkpoint.keep_iteration=true: {point.folder} has {point.iteration} iterations already, "
            f"train.train_iters is {config.train.train_iters}. Set a larger train.train_iters, or leave out "
            "checkpoint.keep_iteration to begin a new phase."
        )
    return point


def _locate(config: PretrainConfig, save: Path, search: CheckpointSearch) -> ResumePoint:
    """Return the resume point as far as folder names decide it."""
    if own := search.newest_own(save):
        return ResumePoint(search.iteration(own), own)
    if config.checkpoint.load is None or Path(config.checkpoint.load).absolute() == save:
        return ResumePoint()
    load = Path(config.checkpoint.load).absolute()
    source = search.newest_in(load)
    if source is None:
        raise UserError(
            f"checkpoint.load={load} holds no complete checkpoint. Name a run's checkpoint folder or one of its iter_* "
            "folders, or leave the key out to start from scratch."
        )
    if not config.checkpoint.keep_iteration:
        return ResumePoint(0, source, own=False, new_phase=True)
    return ResumePoint(search.iteration(source), source, own=False)


def agree_on_resume_point(
    config: PretrainConfig,
    run_dir: Path,
    find: Callable[[], ResumePoint],
    identity: dict[str, Any],
    settings: dict[str, Any],
    may_prune: Callable[[Path], bool] = lambda save: True,
    data: TrainingData | None = None,
) -> ResumePoint:
    """Return the resume point that rank 0 finds, on every rank, and record it in the run folder.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        find: Returns the resume point; called on rank 0 alone.
        identity: The run's identity.
        settings: The run's mutable settings; a change is logged.
        may_prune: Whether old checkpoints in a folder may be removed; called on rank 0 alone.
        data: The prepared data, for the plan of the samples.

    Raises:
        UserError: The run may not start there; on every rank.
    """
    save = checkpoint_dir(config, run_dir)

    def decide() -> dict[str, Any]:
        if owner_problem(save, run_dir) is None:  # else refused by `find`
            set_aside_damaged(save, run_dir, config.checkpoint.on_damage)
        point = find()
        if point.folder and point.info and not point.own:
            verify_checkpoint(point.folder, point.info)
        if point.folder and point.info and not point.new_phase:
            check_resume(point.info, point.folder, identity, settings, point.own)
        order, change = plan_order(config, run_dir, point, data) if data else (None, "")
        if change:
            warn(change)
        if config.checkpoint.save_interval:
            claim_dir(save, run_dir)
        former, before = _former_plan(run_dir), read_skips(run_dir)
        record_order(run_dir, order)
        if point.own and point.folder:
            parent_checkpoint.warn_unused_load(run_dir, config, point.folder)
        else:
            parent_checkpoint.record_parent(run_dir, point.folder, point.new_phase)
        chosen = config.train.skip_iterations
        skips = begin_skips(run_dir, identity, chosen, point.iteration)
        late = late_skip_warning(chosen, skips, point.iteration)
        moved = moved_skips_warning(before, skips, (former, order), point.iteration)
        for warning in filter(None, (late, moved)):
            warn(warning)
        return replace(point, may_prune=may_prune(save), skips=skips, order=order).to_json()

    return ResumePoint.from_json(agree_on_rank0(decide))


def plan_order(
    config: PretrainConfig, run_dir: Path, point: ResumePoint, data: TrainingData
) -> tuple[OrderPlan | None, str]:
    """Return the plan of a run's samples, continued from the one in its checkpoint, and how it differs from that one.

    Megatron's order has no plan. The second value is empty if nothing changes.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        point: Where the run starts.
        data: The prepared data.

    Raises:
        UserError: The mixture cannot be met, or the data is not the one that was read before.
    """
    if not uses_plan(config):
        if problems := megatron_order_problems(data.budgets, f"the blend of {data.folder}"):
            raise UserError(problems)
        return None, ""
    recorded = None
    if point.folder and not point.new_phase:
        if point.info and point.info.order:
            recorded = OrderPlan.from_json(point.info.order)
        elif point.own:  # a checkpoint that lost its checkpoint.json
            recorded = read_plan(run_dir)
            if recorded is None:
                raise UserError(
                    f"{point.folder} does not say how far the run has read its datasets, and {run_dir / ORDER_FILE} is "
                    "missing. Put one of checkpoint.json and order.json back, or start a run with another run.name and "
                    "checkpoint.load."
                )
    plan = make_plan(config, data, recorded, point.iteration)
    return plan, change_sentence(recorded, plan, point.iteration) if recorded else ""


def _former_plan(run_dir: Path) -> OrderPlan | None:
    """Return the plan of the start before; None without one, or if it is damaged: it is written again."""
    try:
        return read_plan(run_dir)
    except DamagedRecordError:
        return None


def record_order(run_dir: Path, plan: OrderPlan | None) -> None:
    """Write RUN/order.json for `nano3 trace` and `nano3 report`, or remove that of an earlier training."""
    if plan:
        plan.write(run_dir)
    else:
        (run_dir / ORDER_FILE).unlink(missing_ok=True)


def preview_resume_point(
    config: PretrainConfig,
    data: TrainingData | None,
    find: Callable[[PretrainConfig, Path, TrainingData | None], ResumePoint],
) -> ResumePreview:
    """Return the resume point that the ranks will find, before anything is written or submitted.

    Args:
        config: The configuration of the run.
        data: The prepared data. Without it, the ranks check whether a checkpoint is of the same run.
        find: `find_resume_point` of the backend.

    Raises:
        Failure: A checkpoint is damaged.
    """
    run_dir = Path(config.run.output_dir).absolute()
    warnings: tuple[str, ...] = ()
    if warning := _unseen_load_warning(config, checkpoint_dir(config, run_dir)):
        config = replace(config, checkpoint=replace(config.checkpoint, load=None, keep_iteration=False))
        warnings = (warning,)
    try:
        warnings += _damage_warnings(config, run_dir)
        return ResumePreview(find(config, run_dir, data), warnings=warnings)
    except UserError as error:
        return ResumePreview(problems=tuple(error.problems), warnings=warnings)


def _damage_warnings(config: PretrainConfig, run_dir: Path) -> tuple[str, ...]:
    """Return a warning for each evidently damaged checkpoint that the ranks will set aside."""
    sound, found = check_damage(checkpoint_dir(config, run_dir), config.checkpoint.on_damage, read_files=False)
    return tuple(f"{one.problems[0]} The run falls back to {sound}." for one in found)


def _unseen_load_warning(config: PretrainConfig, save: Path) -> str | None:
    """Return why checkpoint.load cannot be checked here: only the container has it, or another job will fill it."""
    load, cluster = config.checkpoint.load, config.cluster
    if load is None or Path(load).absolute() == save or cluster.kind == "local":
        return None
    in_container = cluster.container_runtime != "none" and not Path(load).exists()
    waits = bool(cluster.dependency) or any(word.startswith("--dependency") for word in cluster.sbatch_args)
    if not in_container and not waits:
        return None
    why = "the job waits for another one" if waits else "it is not there on this machine"
    return f"checkpoint.load={load} is not checked now ({why}); the job fails if it holds no checkpoint."


def run_identity(config: PretrainConfig, data: TrainingData, model: dict[str, Any]) -> dict[str, Any]:
    """Return the values that must be the same on a resume.

    Args:
        config: The configuration of the run.
        data: The prepared data.
        model: The keys of `model` that decide the shape of the checkpoint, with their values.
    """
    return {
        **{f"model.{key}": value for key, value in model.items()},
        "train.seed": config.train.seed,
        "train.seq_length": config.train.seq_length,
        "train.global_batch_size": config.train.global_batch_size,
        BOUNDARIES: config.train.document_boundaries,
        EOD_MASK: masks_eod(config),
        ORDER: config.train.sample_order,
        # Datasets may join and leave in nano3's order: it compares the content of each one (`order.budgets`).
        "data": data.tokenizer_sha256 if uses_plan(config) else data.fingerprint,
    }


def masks_eod(config: PretrainConfig) -> bool:
    """Return whether no loss follows an end-of-document token; `megatron.dataset.eod_mask_loss` is its earlier name."""
    named = megatron_section(config, "dataset").get("eod_mask_loss")
    return config.train.loss_mask.eod if named is None else bool(named)


def saved_identity(info: CheckpointInfo) -> dict[str, Any]:
    """Return the run's identity at a checkpoint, with the values that earlier versions used but did not write."""
    masked = "'eod_mask_loss': True" in str(info.mutable_settings.get("megatron"))
    return {BOUNDARIES: "cross", EOD_MASK: masked, ORDER: MEGATRON, **info.run_identity}


def mutable_settings(config: PretrainConfig, more: dict[str, Any], packages: tuple[str, ...]) -> dict[str, Any]:
    """Return the values that may change on a resume. A change is logged, since losses then differ.

    Args:
        config: The configuration of the run.
        more: Settings of the backend.
        packages: Packages whose versions are recorded.
    """
    return {
        **{f"optimizer.{key}": value for key, value in asdict(config.optimizer).items()},
        **{f"scheduler.{key}": value for key, value in asdict(config.scheduler).items()},
        "train.train_iters": config.train.train_iters,
        "train.micro_batch_size": config.train.micro_batch_size,
        "train.skip_iterations": config.train.skip_iterations or None,
        **({"train.mixture": config.train.mixture or None} if uses_plan(config) else {}),
        **more,
        "world size": world_size(),
        **{f"version of {name}": number for name, number in installed_versions(packages).items()},
    }


def world_size() -> int:
    """Return the number of ranks according to the launcher's WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_run_identity(
    info: CheckpointInfo, folder: Path, identity: dict[str, Any], own: bool, run_dir: Path | None = None
) -> None:
    """Raise UserError naming every value of the run's identity that differs from the checkpoint's.

    Args:
        info: The checkpoint's checkpoint.json.
        folder: The checkpoint folder.
        identity: The run's identity.
        own: False if the run continues the schedule of another run. Data and seed may then differ, so that the rest of
            a schedule can be trained on other data.
        run_dir: The run folder, whose record names the folder of its data.
    """
    changed = _differences(saved_identity(info), identity)
    if not own:
        changed = {key: values for key, values in changed.items() if key not in _FREE_IN_A_CONTINUED_SCHEDULE}
    if changed:
        typed = [f"{key}={_show(old)}" for key, (old, _) in changed.items() if key.startswith(("model.", "train."))]
        trained_on = read_latest_start(run_dir).get("data", {}).get("folder") if "data" in changed and run_dir else None
        if trained_on and _holds(trained_on, changed["data"][0]):  # the artifact that run.data names has moved
            typed, trained_on = [*typed, f"run.data={trained_on}"], None
        again = f" ({shlex.join(typed)})" if typed else ""
        raise UserError(
            f"{folder} is a checkpoint of a different run: {_list(changed)}. Restore these values{again}, or start a "
            "new run with another run.name. May change on a resume: train.train_iters, train.micro_batch_size, "
            "train.eval_*, train.exit_*, train.threads, optimizer, scheduler, logger, checkpoint, cluster."
            + (f" The run was trained on what {trained_on} held when it started." if trained_on else "")
        )


def _holds(folder: str, fingerprint: str | None) -> bool:
    """Return whether a folder still holds the data with this fingerprint."""
    try:
        return open_data(Path(folder)).fingerprint == fingerprint
    except UserError:
        return False


def check_resume(
    info: CheckpointInfo, folder: Path, identity: dict[str, Any], settings: dict[str, Any], own: bool
) -> None:
    """Call `check_run_identity` and warn about every other value that changed.

    Args:
        info: The checkpoint's checkpoint.json.
        folder: The checkpoint folder.
        identity: The run's identity.
        settings: The run's mutable settings.
        own: Whether this run saved the checkpoint.
    """
    check_run_identity(info, folder, identity, own)
    for key in _FREE_IN_A_CONTINUED_SCHEDULE:
        if saved_identity(info).get(key) != identity.get(key):
            warn(f"{folder} was trained with another value of {key}; the run continues with the new one.")
    planned = identity.get(ORDER) == NANO3
    for key, (old, new) in _differences(info.mutable_settings, settings).items():
        warn(f"{key} was {_show(old)} when {folder.name} was saved and is {_show(new)} now: {_effect(key, planned)}")


def check_new_phase(info: CheckpointInfo, folder: Path, identity: dict[str, Any]) -> None:
    """Raise UserError unless the checkpoint's weights fit this run's model.

    Args:
        info: The checkpoint's checkpoint.json.
        folder: The checkpoint folder.
        identity: The run's identity; only the shape of the model is compared.
    """
    if info.run_identity.get("backend") != identity.get("backend"):
        raise UserError(
            f"{folder} was written by the other backend. Export it (nano3 export) and start from that folder: "
            "+megatron.checkpoint.pretrained_checkpoint=FOLDER."
        )
    changed = {
        key: values
        for key, values in _differences(_without_stages(info.run_identity), _without_stages(identity)).items()
        if key not in _FREE_IN_A_NEW_PHASE and not key.startswith("train.")
    }
    if changed:
        raise UserError(
            f"{folder} holds another model: {_list(changed)}. A new phase starts from the weights of the same model: "
            "restore these values, or leave checkpoint.load out."
        )


def _effect(key: str, planned: bool) -> str:
    if key == "train.mixture" or (key == "train.train_iters" and planned):
        return "each dataset continues where it was; the stages are computed again from here on."
    if key == "train.train_iters":
        return (
            "the learning-rate schedule follows the new length. The data order is drawn for train_iters x "
            "global_batch_size samples, so samples may come again before all others were read."
        )
    if key == "train.skip_iterations":
        return "the new list applies to the iterations that follow."
    if key.startswith(("optimizer.", "scheduler.")):
        return "the run continues with the new value."
    return "sums are added up in another order or by other code, so losses can differ in their last digits."


def _without_stages(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the identity without the marks of pipeline stages, which weights do not depend on."""
    key = "model.hybrid_layer_pattern"
    return identity | ({key: pattern.replace("|", "")} if (pattern := identity.get(key)) else {})


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {k: (old.get(k), new.get(k)) for k in [*old, *(n for n in new if n not in old)] if old.get(k) != new.get(k)}


def _list(changed: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key}: {_show(old)} in the checkpoint, now {_show(new)}" for key, (old, new) in changed.items())


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text
