"""Validate a data preparation before any work is done."""

import glob
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from launch import environment
from launch.check import unused_key_problems
from nano3.artifacts import store, wandb_mirror
from nano3.artifacts.names import alias_for, slugify
from nano3.cli.app import task_overrides, value_problems
from nano3.config import DataPrepConfig, PrepOptions, SourceConfig
from nano3.config.blend import parse_datasets, read_blend_file
from nano3.data.build.resume_build import check_output_dir
from nano3.data.planning.planner import PrepRequest, check_options, collect_problems, make_request
from nano3.data.sources.listing import local_path
from nano3.data.sources.url_credentials import take_credentials
from nano3.prep.registration import Registration
from nano3.utils.console import say
from nano3.utils.errors import Nano3Error, UserError, combine_errors
from nano3.utils.files import expand_user, normalize_path, unwritable_reason

if TYPE_CHECKING:  # launch.array takes a tenth of a second to import and a local preparation does not need it
    from launch.array import Array


@dataclass(frozen=True)
class Preparation:
    """A validated preparation.

    Attributes:
        config: The typed configuration, with ~ expanded.
        request: Sources, options, and fingerprints of the files.
        registration: How to register the data.
        followup: Configuration of the run after `--then`, or None.
    """

    config: DataPrepConfig
    request: PrepRequest
    registration: Registration
    followup: DictConfig | None

    def array(self, plan: str) -> "Array":
        """Return the Slurm jobs that work on the plan at path `plan`."""
        output = str(Path(self.config.output_dir).absolute())
        args = (plan, output, self.registration.to_text())
        return make_array(self.config, self.request.blend, self.request.sources, args)


def validate(cfg: DictConfig) -> Preparation:
    """Check options, tokenizer, files, registration, cluster, and the follow-up run before any work is done.

    The network is used only if nothing else is wrong.

    Args:
        cfg: Composed configuration of `nano3.data_prep`.

    Returns:
        The validated preparation.

    Raises:
        Nano3Error: With all problems, as `combine_errors` makes it.
    """
    failures: list[Nano3Error] = []

    def attempt[T](call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Nano3Error as error:
            failures.append(error)
        return None

    def add(problems: list[str]) -> None:
        if problems:
            failures.append(UserError(problems))

    add(value_problems(cfg))
    add(duplicate_blend_problems(cfg))
    add(unnamed_blend_problems(cfg))
    config = expand_paths(cast(DataPrepConfig, OmegaConf.to_object(cfg)))
    options = PrepOptions(**{f.name: getattr(config, f.name) for f in fields(PrepOptions)})
    blend, sources = attempt(lambda: read_blend(config)) or ("", list[SourceConfig]())
    registration = make_registration(config, blend)
    add(registration.problems(write=not config.dry_run))
    add(output_problems(Path(config.output_dir)))
    followup = attempt(lambda: compose_followup_if_any(config))
    if followup is not None:
        from nano3.prep.followup_run import budget_problems, check_vocabulary  # imports nano3.training

        add(budget_problems(followup, blend, sources))
    add(attempt(lambda: submit_problems(config, blend, sources)) or [])
    if failures:
        raise combine_errors([*failures, UserError(check_options(options)), *collect_problems(sources, options)])
    request = make_request(sources, options, blend)
    check_output_dir(request)
    if followup is not None:
        check_vocabulary(followup, Path(config.output_dir).absolute(), request.tokenizer.vocab_size)
    if config.container:
        say(f"runs in {environment.describe(config.cluster, config.container, 'container')}")
    return Preparation(config, request, registration, followup)


def compose_followup_if_any(config: DataPrepConfig) -> DictConfig | None:
    """Return the checked configuration of the follow-up run, or None without `--then`."""
    if not config.then:
        return None
    from nano3.prep.followup_run import compose_followup  # imports nano3.training

    return compose_followup(config)


def expand_paths(config: DataPrepConfig) -> DataPrepConfig:
    """Return a copy with ~ expanded in paths, ".." resolved in output_dir and job_dir, and the container runtime."""
    paths: dict[str, str | None] = {key: getattr(config, key) for key in ("output_dir", "job_dir", "blend_path")}
    expanded = {key: str(expand_user(path)) for key, path in paths.items() if path}
    for key in ("output_dir", "job_dir"):
        if key in expanded and ".." in Path(expanded[key]).parts:
            expanded[key] = str(normalize_path(expanded[key]))
    return replace(
        config,
        cluster=environment.resolve_runtime(config.cluster, config.container),
        output_dir=expanded.get("output_dir", config.output_dir),
        job_dir=expanded.get("job_dir", config.job_dir),
        blend_path=expanded.get("blend_path", config.blend_path),
    )


# Cluster


def submit_problems(config: DataPrepConfig, blend: str, sources: list[SourceConfig]) -> list[str]:
    """Return why the preparation cannot run on `config.cluster`.

    Args:
        config: The preparation.
        blend: Name of the blend.
        sources: Datasets of the blend.

    Raises:
        Failure: If Slurm does not answer.
    """
    cluster = config.cluster
    if cluster.kind == "slurm":
        unused = unused_key_problems(cluster, given_overrides(), preparation=True)
        return [*unused, *make_array(config, blend, sources, ()).problems()]
    if cluster.kind == "local" and cluster.tasks > 1:
        return [
            f"cluster.tasks={cluster.tasks} spreads the work over jobs of Slurm, and cluster.kind=local has none. "
            "Leave it out (workers=N says how many processes work here), or choose a profile: cluster=slurm."
        ]
    return []


def make_array(config: DataPrepConfig, blend: str, sources: list[SourceConfig], args: tuple[str, ...]) -> "Array":
    """Return the job array of a preparation and its finalizer.

    Args:
        config: The preparation.
        blend: Name of the blend.
        sources: Datasets of the blend.
        args: First arguments of the functions in `nano3.prep.slurm_entries`.
    """
    from launch.array import Array

    return Array(
        f"prep-{blend}",
        Path(config.job_dir, f"prep-{blend}"),
        entry="nano3.prep.slurm_entries:run_array_task",
        args=args,
        tasks=config.cluster.tasks,
        finalize="nano3.prep.slurm_entries:run_finalizer",
        cluster=config.cluster,
        container=config.container,
        folders=container_folders(config, sources),
    )


def container_folders(options: PrepOptions, sources: Iterable[SourceConfig]) -> tuple[str, ...]:
    """Return the absolute local folders that a preparation reads or writes, for a container to mount.

    Args:
        options: Options of the preparation.
        sources: Datasets; those with a URL need no folder.
    """
    inputs = [path for source in sources if (path := local_path(source.path)) is not None]
    if expand_user(options.tokenizer_model).exists():
        inputs.append(options.tokenizer_model)
    caches = [path for name in ("HF_HOME", "HF_HUB_CACHE") if (path := os.environ.get(name))]
    if options.hf_files == "download" and not caches:
        caches = ["~/.cache/huggingface"]
    outputs = [expand_user(path) for path in [options.output_dir, *caches]]
    folders = [*map(containing_folder, inputs), *outputs, store.home()]
    return tuple(dict.fromkeys(str(folder.absolute()) for folder in folders))


def containing_folder(pattern: str) -> Path:
    """Return the folder of a file, or the folder above everything that a glob pattern can match."""
    path = expand_user(pattern)
    while glob.has_magic(str(path)):
        path = path.parent
    return path if path.is_dir() else path.parent


# Output folder, blend, and registration


def output_problems(output: Path) -> list[str]:
    """Return why the output folder cannot be written. Finished data is only read, so it may be read-only."""
    if (output / "manifest.json").exists() or not (why := unwritable_reason(output)):
        return []
    return [f"output_dir={output}: cannot be written: {why}. Choose another output_dir."]


def given_overrides() -> list[str]:
    """Return the overrides of this command line; none if Hydra did not compose the configuration."""
    return task_overrides() if HydraConfig.initialized() else []


def duplicate_blend_problems(cfg: DictConfig) -> list[str]:
    """Return a problem if the command line sets both blend_path and a key of the group data_blend."""
    duplicates = [word for word in given_overrides() if re.match(r"[+~]*data_blend[.=]", word)]
    if not cfg.blend_path or not duplicates:
        return []
    return [f"{' '.join(duplicates)}: has no effect beside blend_path={cfg.blend_path}; leave one of the two out."]


def unnamed_blend_problems(cfg: DictConfig) -> list[str]:
    """Return a problem if the command line sets datasets without a name, so the default blend's alias would move."""
    words = given_overrides()
    own = any(re.match(r"[+~]*data_blend\.datasets\b", word) for word in words)
    named = any(re.match(r"[+~]*data_blend(\.name)?=", word) for word in words)
    if not own or named or cfg.alias:
        return []
    return [
        f"data_blend.datasets: these datasets would be registered as {cfg.data_blend.name!r}. Set data_blend.name=NAME."
    ]


def read_blend(config: DataPrepConfig) -> tuple[str, list[SourceConfig]]:
    """Return the name and the datasets of the blend: from blend_path if set, else from the group data_blend."""
    name = blend_name(config.blend_path, config.data_blend.name)
    if config.blend_path:
        sources = read_blend_file(Path(config.blend_path))
    else:
        blend = config.data_blend
        sources = parse_datasets(blend.datasets, f"data_blend={name}", blend.max_epochs)
    return name, [replace(source, path=take_credentials(source.path)) for source in sources]


def blend_name(blend_path: str | None, group_name: str) -> str:
    """Return the name of the blend.

    Args:
        blend_path: Blend file, or None.
        group_name: `data_blend.name`.
    """
    return Path(blend_path).stem if blend_path else group_name


def make_registration(config: DataPrepConfig, blend: str) -> Registration:
    """Return how to register the data. If the blend's name cannot be an alias, use none and say why.

    Args:
        config: The preparation.
        blend: Name of the blend.
    """
    alias, warning = config.alias, None
    if alias is None and blend:
        alias, why = alias_for(blend)
        warning = f"the data has no alias: {why}. To give it one: alias=NAME" if why else None
    settings = wandb_mirror.WandbSettings(config.wandb.mode, config.wandb.project, config.wandb.entity)
    folder = Path(config.job_dir, f"prep-{slugify(blend) or 'blend'}").absolute()
    return Registration(config.artifact, alias, settings, warning, str(folder))
