"""A data preparation as it was asked for, checked before any work is done; and what makes a sweep's points differ."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from launch.names import sweep_labels
from nano3.artifacts import wandb_mirror
from nano3.artifacts.names import alias_for, slugify
from nano3.cli.app import task_overrides, value_problems
from nano3.config import DataPrepConfig, PrepOptions, SourceConfig
from nano3.config.blend import parse_datasets, read_blend_file
from nano3.data.build.resume_build import check_output_dir
from nano3.data.planning.planner import PrepRequest, check_options, collect_problems, combine_errors, make_request
from nano3.prep.followup_run import compose_next
from nano3.prep.slurm_entries import Registration
from nano3.training.checks import run_folders
from nano3.utils.errors import Nano3Error, UserError
from nano3.utils.files import expand_user, normalize_path, unwritable_reason

if TYPE_CHECKING:  # submitting takes a tenth of a second to import, which a preparation here can do without
    from launch.array import Array


@dataclass(frozen=True)
class Prep:
    """A checked start: nothing that can be known beforehand is wrong with it."""

    config: DataPrepConfig
    request: PrepRequest
    registration: Registration
    following: DictConfig | None

    def array(self, plan: str) -> "Array":
        """The jobs of this preparation on Slurm, which work on the plan of this path."""
        output = str(Path(self.config.output_dir).absolute())
        args = (plan, output, self.registration.to_text())
        return array_of(self.config, self.request.blend, self.request.sources, args)


def validate(cfg: DictConfig) -> Prep:
    """Everything that can be known before any work: options, tokenizer, files, registration, cluster, the next run.

    Raises one error with all problems. A network is asked only when nothing else is wrong.
    """
    failures: list[Nano3Error] = []

    def attempt[T](call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Nano3Error as error:
            failures.append(error)
        return None

    def told(problems: list[str]) -> None:
        if problems:
            failures.append(UserError(problems))

    told(value_problems(cfg))
    told(blend_named_twice(cfg))
    told(unnamed_blend(cfg))
    config = expand_paths(OmegaConf.to_object(cfg))  # type: ignore[arg-type]
    options = PrepOptions(**{f.name: getattr(config, f.name) for f in fields(PrepOptions)})
    blend, sources = attempt(lambda: read_blend(config)) or ("", list[SourceConfig]())
    registration = registration_of(config, blend)
    told(registration.problems(write=not config.dry_run))
    told(output_problems(Path(config.output_dir)))
    following = attempt(lambda: compose_next(config))
    told(attempt(lambda: submit_problems(config, blend, sources)) or [])
    if failures:
        raise combine_errors([*failures, UserError(check_options(options)), *collect_problems(sources, options)])
    request = make_request(sources, options, blend)
    check_output_dir(request)
    return Prep(config, request, registration, following)


def expand_paths(config: DataPrepConfig) -> DataPrepConfig:
    """The same with ~ for the home folder in the places that are read and written, as everywhere in nano3, and no ".."
    in those that are kept."""
    named: dict[str, str | None] = {key: getattr(config, key) for key in ("output_dir", "job_dir", "blend_path")}
    mounts: dict[str, Any] = {key: str(expand_user(place)) for key, place in named.items() if place}
    kept = {key: str(normalize_path(p)) for key, p in mounts.items() if ".." in Path(p).parts and key != "blend_path"}
    return replace(config, **mounts | kept)


def submit_problems(config: DataPrepConfig, blend: str, sources: list[SourceConfig]) -> list[str]:
    """Why this cannot be submitted, or cannot be spread. Raises `Failure` when Slurm does not answer."""
    cluster = config.cluster
    if cluster.kind == "slurm":
        return array_of(config, blend, sources, ()).problems()
    if cluster.kind == "local" and cluster.tasks > 1:
        return [
            f"cluster.tasks={cluster.tasks} spreads the work over jobs of Slurm, and cluster.kind=local has none. "
            "Leave it out (workers=N says how many processes work here), or choose a profile: cluster=slurm."
        ]
    return []


def array_of(config: DataPrepConfig, blend: str, sources: list[SourceConfig], args: tuple[str, ...]) -> "Array":
    """The job array of a preparation and its finalizer."""
    from launch.array import Array

    return Array(
        f"prep-{blend}",
        Path(config.job_dir, f"prep-{blend}"),
        entry="nano3.prep.slurm_entries:part",
        args=args,
        tasks=config.cluster.tasks,
        finalize="nano3.prep.slurm_entries:finish",
        cluster=config.cluster,
        container=config.container,
        folders=run_folders.of_preparation(config, sources),
    )


def output_problems(output: Path) -> list[str]:
    """Why nothing can be written there; finished data are left alone, so they may be where nothing can."""
    if (output / "manifest.json").exists() or not (why := unwritable_reason(output)):
        return []
    return [f"output_dir={output}: cannot be written: {why}. Choose another output_dir."]


def words_given() -> list[str]:
    """The overrides of this command line; none where a preparation is checked without Hydra."""
    return task_overrides() if HydraConfig.initialized() else []


def blend_named_twice(cfg: DictConfig) -> list[str]:
    """Told when a command line gives blend_path and something of the group data_blend, of which blend_path takes the
    place."""
    twice = [word for word in words_given() if re.match(r"[+~]*data_blend[.=]", word)]
    if not cfg.blend_path or not twice:
        return []
    return [f"{' '.join(twice)}: has no effect beside blend_path={cfg.blend_path}; leave one of the two out."]


def unnamed_blend(cfg: DictConfig) -> list[str]:
    """Told when a command line gives datasets of its own, which would take the alias of a blend that it did not
    choose."""
    words = words_given()
    own = any(re.match(r"[+~]*data_blend\.datasets\b", word) for word in words)
    named = any(re.match(r"[+~]*data_blend(\.name)?=", word) for word in words)
    if not own or named or cfg.alias:
        return []
    return [
        f"data_blend.datasets: these are not the blend {cfg.data_blend.name!r}, whose name they would get. "
        "Give them one: data_blend.name=NAME"
    ]


def read_blend(config: DataPrepConfig) -> tuple[str, list[SourceConfig]]:
    """Name and datasets of the blend: blend_path when given, else the group data_blend."""
    name = blend_name(config.blend_path, config.data_blend.name)
    if config.blend_path:
        return name, read_blend_file(Path(config.blend_path))
    return name, parse_datasets(config.data_blend.datasets, f"data_blend={name}")


def blend_name(blend_path: str | None, chosen: str) -> str:
    """What the blend is called."""
    return Path(blend_path).stem if blend_path else chosen


def registration_of(config: DataPrepConfig, blend: str) -> Registration:
    """How the data will be registered. A blend whose name can be no alias goes without one and is told so."""
    alias, note = config.alias, None
    if alias is None and blend:
        alias, why = alias_for(blend)
        note = f"the data has no alias: {why}. To give it one: alias=NAME" if why else None
    settings = wandb_mirror.WandbSettings(config.wandb.mode, config.wandb.project, config.wandb.entity)
    folder = Path(config.job_dir, f"prep-{slugify(blend) or 'blend'}").absolute()
    return Registration(config.artifact, alias, settings, note, str(folder))


def separate_sweep_points(points: list[DictConfig], overrides: list[list[str]]) -> None:
    """Give points of a sweep that would share a folder or an alias their own, and check all before the first works.

    Such folders are output_dir/LABEL and job_dir/LABEL, such an alias ALIAS-LABEL; the label is made of the keys that
    vary.
    """
    if any(point.then for point in points):
        raise UserError("--then follows one preparation, not a sweep: sweep nano3.pretrain over the prepared data")
    labels = sweep_labels(overrides)
    mounts = [str(Path(point.output_dir).absolute()) for point in points]
    names = [point.alias or blend_name(point.blend_path, point.data_blend.name) for point in points]
    failures: list[Nano3Error] = []
    for point, label, place, name in zip(points, labels, mounts, names, strict=True):
        if point.output_dir and mounts.count(place) > 1:
            point.output_dir = str(Path(point.output_dir, label))
        if names.count(name) > 1:
            point.alias = slugify(f"{name}-{label}")
            point.job_dir = str(Path(point.job_dir, label))
        try:
            validate(point)
        except Nano3Error as error:
            failures.append(error)
    if failures:
        raise combine_errors(failures)
