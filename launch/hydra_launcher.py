"""Hydra launcher for `--multirun`: compose every point once and run them all, here or on Slurm.

An application selects it with `override hydra/launcher: nano3` and says how its points run in one of two ways: its task
function has a method `run_points` (see `RunPoints`), or its configuration names a factory that takes
(cfg, run_dir, label):

    hydra:
      sweep: {dir: "${run.output_dir}"}
      launcher: {job_factory: my_app.make_job}

The run folder of a point is its hydra.sweep.dir joined with a label made of the keys that vary. Any sweeper works: one
that learns from results, such as Optuna's, gets the value of each point, and the error of each point that failed.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from launch.sweep_composer import SweepComposer
from nano3.utils.errors import RESTART_EXIT_CODE, Failure, Nano3Error, UserError, list_some
from nano3.utils.files import expand_user

_MOST_LABELS = 3  # that a message lists
_GRID_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass
class LauncherConfig:
    """Configuration of hydra/launcher=nano3."""

    _target_: str = "hydra_plugins.nano3_launcher.Nano3Launcher"
    # Dotted path of a function (cfg: DictConfig, run_dir: Path, label: str) -> launch.Job, for a task function without
    # the method run_points.
    job_factory: str | None = None


@dataclass(frozen=True)
class Point:
    """One composed point of a sweep."""

    # The application's configuration, without the section hydra; it shares its values with `full_config`.
    config: DictConfig
    # Its overrides, "key=value".
    overrides: list[str]
    # Made of the keys that vary; names the folder of the point.
    label: str
    run_dir: Path
    # The whole configuration.
    full_config: DictConfig
    # The keys that vary in the sweep.
    varying_keys: frozenset[str] = frozenset()

    def activate(self) -> None:
        """Let HydraConfig return the configuration of this point, as in a task function."""
        # Without the copy of the section hydra that `HydraConfig.set_config` makes.
        HydraConfig.instance().cfg = self.full_config  # type: ignore[assignment]


@dataclass(frozen=True)
class PointEnd:
    """How a point ended."""

    # None if it was not started.
    code: int | None
    # What a sweeper optimizes, if the point finished and its sweeper learns from results.
    value: float | None = None
    # Why there is no value.
    reason: str = ""


# Runs points and returns how each ended. The second argument says whether the sweeper learns from results: a point that
# cannot start is then a failed point, not the end of the sweep.
RunPoints = Callable[[Sequence[Point], bool], Sequence[PointEnd]]


def learns_from_results(config: DictConfig) -> bool:
    """Return whether the sweeper of a configuration is another one than Hydra's own, which tries all combinations."""
    return str(OmegaConf.select(config, "hydra.sweeper._target_")) != _GRID_SWEEPER


def problems_of_points(errors: Mapping[str, Nano3Error], count: int) -> list[str]:
    """Return every problem once, with the labels of the points that have it.

    Args:
        errors: The error of each point that has one, by label.
        count: Number of all points. A problem of every point has no label.
    """
    labels: dict[str, list[str]] = {}
    for label, error in errors.items():
        for problem in error.problems:
            labels.setdefault(problem, []).append(label)
    found = []
    for problem, where in labels.items():
        found.append(problem if len(where) == count else f"point {list_some(where, _MOST_LABELS)}: {problem}")
    return found


def fixed_keys(words: Iterable[str]) -> set[str]:
    """Return the keys that overrides set to one value, as opposed to those that are swept."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    return {override.key_or_group for override in parsed if not override.is_sweep_override()}


class JobLauncher(Launcher):
    """Hydra calls `setup`, then `launch` with the overrides of some points; Hydra's own sweeper passes all at once."""

    def __init__(self, job_factory: str | None = None) -> None:
        self._job_factory = job_factory

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composing and running need."""
        self._context = hydra_context
        self._config = config
        self._run_points: RunPoints | None = getattr(task_function, "run_points", None)
        self._composer = SweepComposer(hydra_context.config_loader)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the points; for Hydra's own sweeper exit with the first code that is not 0.

        Raises:
            Nano3Error: The sweep could not be started.
        """
        from launch.names import sweep_labels

        setup_globals()
        learns = learns_from_results(self._config)
        if not learns:
            remove_sweep_record(Path(self._config.hydra.sweep.dir))
        words = [list(overrides) for overrides in job_overrides]
        batches = learns or OmegaConf.select(self._config, "hydra.sweeper.max_batch_size") is not None
        fixed = fixed_keys(self._config.hydra.overrides.task) if batches or len(words) == 1 else None
        labels = sweep_labels(words, fixed, unique=not learns)
        # A sweeper may suggest a point twice: it runs once.
        numbers = {label: number for number, label in reversed(list(enumerate(labels)))}
        points = [
            self._compose(words[n], initial_job_idx + n, label)
            for label, n in sorted(numbers.items(), key=itemgetter(1))
        ]
        ends = dict(zip((p.label for p in points), self._run(points, learns), strict=True))
        _exit_if_over(list(ends.values()), learns, points[0])
        by_label = {point.label: point for point in points}
        return [_result(by_label[label], words[n], ends[label], learns) for n, label in enumerate(labels)]

    def _run(self, points: list[Point], learns: bool) -> Sequence[PointEnd]:
        if self._run_points is not None:
            return self._run_points(points, learns)
        if self._job_factory is None:
            raise UserError(
                "hydra.launcher.job_factory is not set: name a function (cfg, run_dir, label) -> launch.Job."
            )
        return _run_jobs(self._job_factory, points)

    def _compose(self, overrides: list[str], number: int, label: str) -> Point:
        config = self._composer.compose(self._config, overrides)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
            run_dir = expand_user(config.hydra.sweep.dir).absolute() / label
            config.hydra.runtime.output_dir = str(run_dir)
        OmegaConf.set_readonly(config.hydra, True)
        return Point(_without_hydra(config), overrides, label, run_dir, config)


def _without_hydra(config: DictConfig) -> DictConfig:
    """Return the configuration without the section hydra; the values are the same objects, not copies."""
    own = DictConfig({})
    own.__dict__["_metadata"] = copy.deepcopy(config._metadata)
    own.__dict__["_content"] = {key: node for key, node in config.__dict__["_content"].items() if key != "hydra"}
    return own


def _run_jobs(factory: str, points: list[Point]) -> list[PointEnd]:
    """Make the job of each point with the factory and run them all."""
    from hydra.utils import get_method

    import launch

    make_job = get_method(factory)
    jobs = []
    for point in points:
        point.activate()
        jobs.append(make_job(point.config, point.run_dir, point.label))
    dry_run = bool(OmegaConf.select(points[0].config, "dry_run", default=False))
    end = launch.run_sweep(jobs, dry_run=dry_run)
    if end.interrupted:
        sys.exit(end.code)
    return [PointEnd(code) for code in end.codes]


def _exit_if_over(ends: list[PointEnd], learns: bool, first: Point) -> None:
    """End the command if the sweep cannot or should not go on."""
    codes = [end.code for end in ends]
    if learns and OmegaConf.select(first.config, "dry_run", default=False):
        sys.exit(max((code or 0 for code in codes), default=0))  # there are no results to choose further points by
    if learns:  # these sweepers write their result into the folder and expect that it exists
        Path(first.full_config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
    failed = next((code for code in codes if code not in (None, 0, RESTART_EXIT_CODE)), 0)
    if not learns and (code := failed or (RESTART_EXIT_CODE if RESTART_EXIT_CODE in codes else 0)):
        sys.exit(code)


def _result(point: Point, overrides: list[str], end: PointEnd, learns: bool) -> JobReturn:
    """Return what Hydra passes to its sweeper."""
    if not learns or end.value is not None:
        result = JobReturn(overrides=overrides, cfg=point.config, status=JobStatus.COMPLETED)
        result.return_value = end.value
        return result
    error = Failure(end.reason or f"point {point.label}: exit code {end.code}, and no value")
    return _FailedPoint(overrides=overrides, cfg=point.config, status=JobStatus.FAILED, _return_value=error)


class _FailedPoint(JobReturn):
    """Raises the error of a point where its value is wanted, without Hydra's line of all overrides before it."""

    @property  # type: ignore[misc]  # it is never set
    def return_value(self) -> NoReturn:
        """Raise the error."""
        raise self._return_value


def remove_sweep_record(sweep_dir: Path) -> None:
    """Remove the multirun.yaml that Hydra's own sweeper has just written, and the empty folders around it.

    Every point saves its own configuration, and a dry run must leave nothing behind.
    """
    (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
    here = Path.cwd()
    for folder in [sweep_dir.absolute(), *sweep_dir.absolute().parents]:
        if folder == here or not folder.is_relative_to(here) or not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()
