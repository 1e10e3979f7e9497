"""A data preparation as it was asked for, checked before any work is done; and what makes a sweep's points differ."""

from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig

from launch.names import sweep_labels
from nano3.artifacts import wandb
from nano3.artifacts.names import alias_of, slug
from nano3.cli import typed
from nano3.config import DataPrepConfig, PrepOptions, SourceConfig
from nano3.config.blend import parse_datasets, read_blend_file
from nano3.errors import UserError
from nano3.prep_next import compose_next
from nano3.prep_tasks import Registration


@dataclass(frozen=True)
class Prep:
    """A checked start: nothing that can be known beforehand is wrong with it."""

    config: DataPrepConfig
    blend: str
    sources: list[SourceConfig]
    options: PrepOptions
    registration: Registration
    following: DictConfig | None


def checked(cfg: DictConfig) -> Prep:
    """Everything that can be known before any work: blend, registration, and the run that follows.

    Raises `UserError` with all problems.
    """
    config: DataPrepConfig = typed(cfg)
    problems: list[str] = []
    blend, sources, following = "", list[SourceConfig](), None
    try:
        blend, sources = read_blend(config)
    except UserError as error:
        problems += error.problems
    registration = registration_of(config, blend)
    problems += registration.problems(write=not config.dry_run) if blend else []
    try:
        following = compose_next(config)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    options = PrepOptions(**{f.name: getattr(config, f.name) for f in fields(PrepOptions)})
    return Prep(config, blend, sources, options, registration, following)


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
        alias, why = alias_of(blend)
        note = f"the data has no alias: {why}. To give it one: alias=NAME" if why else None
    settings = wandb.Settings(config.wandb.mode, config.wandb.project, config.wandb.entity)
    folder = Path(config.job_dir, f"prep-{slug(blend) or 'blend'}").absolute()
    return Registration(config.artifact, alias, settings, note, str(folder))


def spread(points: list[DictConfig], overrides: list[list[str]]) -> None:
    """Give points of a sweep that would share a folder or an alias their own, and check all before the first works.

    Such folders are output_dir/LABEL and job_dir/LABEL, such an alias ALIAS-LABEL; the label is made of the keys that
    vary.
    """
    if any(point.then for point in points):
        raise UserError("--then follows one preparation, not a sweep: sweep nano3.pretrain over the prepared data")
    labels = sweep_labels(overrides)
    places = [str(Path(point.output_dir).absolute()) for point in points]
    names = [point.alias or blend_name(point.blend_path, point.data_blend.name) for point in points]
    problems: dict[str, None] = {}
    for point, label, place, name in zip(points, labels, places, names, strict=True):
        if point.output_dir and places.count(place) > 1:
            point.output_dir = str(Path(point.output_dir, label))
        if names.count(name) > 1:
            point.alias = slug(f"{name}-{label}")
            point.job_dir = str(Path(point.job_dir, label))
        try:
            checked(point)
        except UserError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise UserError(problems)
