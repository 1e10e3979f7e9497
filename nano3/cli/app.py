"""Run an application with Hydra: compose its configuration, run one point or a sweep, and explain errors.

nano3.pretrain and nano3.data_prep share this module. A user's error ends with exit code 2 and a message about every
wrong key at once (nano3.cli.override_errors), without a traceback.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from launch.check import cluster_problems
from launch.hydra_launcher import Point, PointEnd, RunPoints, fixed_keys, learns_from_results, remove_sweep_record
from launch.names import sweep_labels
from launch.rank import resolve_entry
from nano3.artifacts.resolver import register_resolver
from nano3.cli import help
from nano3.cli.config_groups import SCHEMAS, conf_dir
from nano3.cli.override_errors import (
    EXPECTED_ERRORS,
    composition_problems,
    explain_error,
    nested_text_problems,
    override_problems,
    problems_before_composing,
)
from nano3.cli.process import (
    check_working_folder,
    exit_on_broken_pipe,
    exit_with_code,
    exit_with_error,
    initialize,
    print_and_exit,
)
from nano3.config.ladder import LadderConfig, ladder_value
from nano3.utils.command_line import CommandLine, OverrideWord
from nano3.utils.console import (
    need_output,
    say,
    write,
)
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, Failure, Nano3Error, UserError, combine_errors
from nano3.utils.files import expand_user, temporary_folder
from nano3.utils.redaction import secret_problems

# Keys where an empty value (`output_dir=`) would mean the current folder.
NONEMPTY_KEYS = ("output_dir", "job_dir", "artifact", "run.output_dir", "run.name", "run.data")
Task = Callable[[DictConfig], int]
OTHER_LAUNCHER_ON_SLURM = (
    "hydra/launcher runs each point in its own job, and this cluster profile would submit it again. Leave out "
    "hydra/launcher (nano3's launcher submits the sweep as one array), or leave out cluster=..."
)


def run_app(name: str, task: Task, sweep: str) -> NoReturn:
    """Compose the configuration `name` from the command line, call `task` with it, and exit with its exit code.

    Other exit codes: 2 for a user's error, 1 for a foreseen failure, 130 for Ctrl-C. Any other error keeps its
    traceback.

    Args:
        name: Application, "pretrain" or "data_prep".
        task: Does the work of one composed configuration and returns the exit code.
        sweep: Module that runs the points of a sweep: `run_points` for nano3's launcher, `run_point` for others.
    """
    initialize()
    sys.argv[1:] = CommandLine.parse(sys.argv[1:]).flags_first()
    line = CommandLine.parse(sys.argv[1:])
    full_errors = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with translate_disk_errors("standard output"):
            if help.is_requested(line):
                print_and_exit(help.text(name))
            if line.has_flag("--version"):
                print_and_exit(help.version())
            check_working_folder()
            register_config()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them and exiting with 1
            if found := problems_before_composing(name, line):
                raise UserError(found)
            sys.argv += other_launcher_overrides(name, line)
            exit_with_code(_HydraRun(name, line, task, sweep, full_errors).run())
    except EXPECTED_ERRORS as error:
        if full_errors:
            raise
        exit_with_error(explain_error(error, name, line))
    except BrokenPipeError:
        exit_on_broken_pipe()
    except (ValueError, OSError) as error:
        if full_errors or not (found := composition_problems(error, name, line)):
            raise
        exit_with_error(UserError(found))
    except KeyboardInterrupt:
        if full_errors:
            raise
        write("\nstopped; run the same command again to resume\n", stderr=True)
        sys.exit(INTERRUPTED_EXIT_CODE)


def register_config() -> None:
    """Register the schemas and the resolvers that conf/ uses."""
    for app, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{app}_schema", node=schema)
    sample = Path(__file__).resolve().parents[1] / "sample"
    OmegaConf.register_new_resolver("sample", lambda file: str(sample / file), replace=True)
    OmegaConf.register_new_resolver("scratch", sweep_scratch_dir, replace=True)
    OmegaConf.register_new_resolver("ladder", resolve_ladder, replace=True)
    register_resolver()


def resolve_ladder(name: str, *, _root_: DictConfig) -> Any:
    """Return what `${ladder:NAME}` stands for: a setting that follows from the section `ladder`.

    Args:
        name: The setting.
        _root_: The composed configuration.
    """
    ladder = cast(LadderConfig, OmegaConf.to_object(_root_.ladder))
    return ladder_value(name, ladder, lambda key: int(_root_.train[key]))


def other_launcher_overrides(name: str, line: CommandLine) -> list[str]:
    """Return the override for a launcher other than nano3's: a preparation's sweep folder must outlive the command.

    Args:
        name: Application, "pretrain" or "data_prep".
        line: The command line.
    """
    own = line.values.get("hydra/launcher", "nano3") == "nano3"
    return [] if own or name == "pretrain" else ["hydra.sweep.dir=${job_dir}/sweep"]


_scratch = contextlib.ExitStack()


@cache
def sweep_scratch_dir() -> str:
    """Return a temporary folder for Hydra's record of a sweep, multirun.yaml. `_HydraRun.run` removes it."""
    return str(_scratch.enter_context(temporary_folder("nano3-sweep-")))


@dataclass
class _HydraRun:
    """One command: a single run, or the points of a sweep.

    Hydra calls `__call__` for a single run. For a sweep, nano3's launcher calls `run_points`; any other launcher calls
    `__call__` for each point, in this process or, after pickling this object, in a job.
    """

    name: str
    line: CommandLine
    # Absent in a job.
    task: Task | None
    # Module with run_points and run_point (launch.hydra_launcher.Point).
    sweep: str
    full_errors: bool = False
    codes: list[int] = field(default_factory=list)
    error: Exception | None = None
    # The failed points of a launcher that calls this object here.
    failures: list[Nano3Error] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_in_job, (self.name, self.line, self.sweep)

    def run(self) -> int:
        """Run the command and return the first nonzero exit code, or 0."""
        try:
            hydra.main(version_base="1.3", config_path=conf_dir(), config_name=self.name)(self)()
            if self.error:
                raise self.error
            # A sweeper that learns from results also goes on after failed points.
            if self.line.values.get("hydra/launcher", "nano3") != "nano3" and "hydra/sweeper" not in self.line.values:
                say("all points finished")
        except ValueError as error:
            if "No trials are completed" not in str(error):  # Optuna
                raise
            raise Failure("No point of this study finished. See the errors above.") from None
        except Nano3Error:
            if self.failures:  # Hydra raises only the first
                raise combine_errors(self.failures) from None
            raise
        finally:
            _scratch.close()
            sweep_scratch_dir.cache_clear()
        return next((code for code in self.codes if code), 0)

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run the task of a single run, or one point for a launcher other than nano3's."""
        need_output(bool(OmegaConf.select(cfg, "dry_run")))
        if HydraConfig.get().mode != RunMode.RUN:
            return self._run_point(cfg)
        assert self.task is not None
        try:
            with translate_disk_errors("standard output"):
                self.codes.append(self.task(cfg))
        except (*EXPECTED_ERRORS, BrokenPipeError) as error:
            if self.full_errors:
                raise
            self.error = error  # raised after Hydra returns, because Hydra would print all overrides first
        return None

    @property
    def run_points(self) -> RunPoints:
        """What nano3's launcher calls with the points of a sweep."""
        run_points: RunPoints = resolve_entry(f"{self.sweep}:run_points")  # type: ignore[assignment]

        def run(points: Sequence[Point], learns: bool) -> Sequence[PointEnd]:
            need_output(bool(OmegaConf.select(points[0].config, "dry_run")))
            return run_points(points, learns)

        return run

    def _run_point(self, cfg: DictConfig) -> float | None:
        """Run one point and return the number to optimize, if its sweeper needs one.

        Raises:
            Nano3Error: The point failed; the message names it.
        """
        point = self._current_point(cfg)
        learns = learns_from_results(point.full_config)
        try:
            if cfg.cluster.kind == "slurm":
                raise UserError(OTHER_LAUNCHER_ON_SLURM)
            export_ranks_of_submitit()
            end: PointEnd = resolve_entry(f"{self.sweep}:run_point")(point, learns)  # type: ignore[assignment]
            if end.code or (learns and end.value is None and not cfg.dry_run):
                raise Failure(end.reason or f"exit code {end.code}")
        except EXPECTED_ERRORS as error:
            explained = explain_error(error, self.name, CommandLine.parse(point.overrides))
            self.failures.append(type(explained)([f"point {point.label}: {text}" for text in explained.problems]))
            raise self.failures[-1] from None
        finally:
            if cfg.dry_run:
                remove_sweep_record(Path(point.full_config.hydra.sweep.dir))
        return end.value

    def _current_point(self, cfg: DictConfig) -> Point:
        words = task_overrides()
        keys = {OverrideWord.parse(word).key for word in words} - fixed_keys(self.line.sweepable_words)
        label = sweep_labels([words], fixed_keys(self.line.sweepable_words))[0]
        full = cast(DictConfig, HydraConfig.instance().cfg)
        run_dir = expand_user(full.hydra.sweep.dir).absolute() / label
        return Point(cfg, words, label, run_dir, full, frozenset(keys))


def _restore_in_job(name: str, line: CommandLine, sweep: str) -> _HydraRun:
    """Restore the task function in a job of another launcher, where no entry point has run."""
    initialize()
    register_config()
    return _HydraRun(name, line, None, sweep)


def export_ranks_of_submitit() -> None:
    """In a job of submitit with several tasks, set the variables by which torch finds its ranks."""
    if "submitit" not in sys.modules:
        return
    import submitit

    with contextlib.suppress(RuntimeError):  # not in a job
        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def compose_words(name: str, line: CommandLine) -> DictConfig:
    """Return the configuration that `python -m nano3.NAME` composes for these words.

    Args:
        name: Application, "pretrain" or "data_prep".
        line: The words, without flags.

    Raises:
        UserError: With everything that is wrong with them.
    """
    register_config()
    if problems := override_problems(name, line, check_members=True):
        raise UserError(problems)
    try:
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            return hydra.compose(name, list(line.words))
    except EXPECTED_ERRORS as error:
        raise explain_error(error, name, line) from None


def task_overrides() -> list[str]:
    """Return the overrides of the current run as typed, without Hydra's own."""
    return list(HydraConfig.get().overrides.task)


def to_typed_config(cfg: DictConfig) -> Any:
    """Return the composed configuration as its dataclass, with interpolations resolved.

    Raises:
        UserError: With the problems that `value_problems` finds.
    """
    try:
        typed = OmegaConf.to_object(cfg)
    except MissingMandatoryValue:  # value_problems names the keys
        typed = None
    if problems := value_problems(cfg, typed):
        raise UserError(problems)
    return typed


def to_explained_config(name: str, cfg: DictConfig, line: CommandLine) -> Any:
    """Return `to_typed_config(cfg)`; explain its errors by the words that it was composed from.

    Args:
        name: Application, "pretrain" or "data_prep".
        cfg: Result of `compose_words`.
        line: The words.

    Raises:
        UserError: With everything that is wrong with the words.
    """
    try:
        return to_typed_config(cfg)
    except EXPECTED_ERRORS as error:
        raise explain_error(error, name, line) from None


def value_problems(cfg: DictConfig, typed: Any = None) -> list[str]:
    """Return one message for each invalid value that both applications reject.

    These are empty values of `NONEMPTY_KEYS`, secrets, and wrong values in the section `cluster`.

    Args:
        cfg: The composed configuration.
        typed: Its dataclass, if that is known: then no value is missing.

    Raises:
        UserError: If values are missing (`???`), or no text where they must be; the other checks need them.
    """
    if typed is None and (missing := sorted(OmegaConf.missing_keys(cfg))):
        raise UserError(f"no value for {key}. Set it on the command line: {key}=..." for key in missing)
    if nested := nested_text_problems(cfg):
        raise UserError(nested)
    problems = [
        f"{key}= is empty. Give it a value, or remove {key}= to use the default"
        for key in NONEMPTY_KEYS
        if OmegaConf.select(cfg, key, default="-") == ""
    ]
    cluster: Any = OmegaConf.to_object(cfg.cluster) if typed is None else typed.cluster
    lines = {f"cluster.{key}": getattr(cluster, key) for key in ("setup", "teardown", "sbatch_args", "srun_args")}
    return problems + secret_problems(cluster.env, lines) + cluster_problems(cluster)
