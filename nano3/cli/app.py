"""Run an application with Hydra: compose its configuration, run one point or a sweep, and explain errors.

nano3.pretrain and nano3.data_prep share this module. A user's error ends with exit code 2 and a message about every
wrong key at once (nano3.cli.override_errors), without a traceback.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from launch.check import cluster_problems
from nano3.artifacts.resolver import register_resolver
from nano3.cli import help
from nano3.cli.config_groups import SCHEMAS, conf_dir
from nano3.cli.override_errors import (
    EXPECTED_ERRORS,
    composition_problems,
    explain_error,
    problems_before_composing,
)
from nano3.utils.command_line import CommandLine
from nano3.utils.console import (
    discard,
    flush_output,
    lost_output,
    need_output,
    prepare_output,
    print_problems,
    say,
    warn,
    write,
)
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, Nano3Error, UserError
from nano3.utils.files import temporary_folder
from nano3.utils.redaction import secret_problems

# Keys where an empty value (`output_dir=`) would mean the current folder.
NONEMPTY_KEYS = ("output_dir", "job_dir", "artifact", "run.output_dir", "run.name", "run.data")
Task = Callable[[DictConfig], int]
# Receives all points of a sweep and their overrides; checks them and gives them separate output folders.
PrepareSweep = Callable[[list[DictConfig], list[list[str]]], None]


def run_app(name: str, task: Task, prepare_sweep: PrepareSweep | None = None) -> NoReturn:
    """Compose the configuration `name` from the command line, call `task` with it, and exit with its exit code.

    Other exit codes: 2 for a user's error, 1 for a foreseen failure, 130 for Ctrl-C. Any other error keeps its
    traceback. A sweep calls `prepare_sweep` once and then `task` for each point; its exit code is the first nonzero
    one. `task` is not called when the configuration selects a launcher that runs the points itself, as nano3.pretrain
    does.

    Args:
        name: Application, "pretrain" or "data_prep".
        task: Does the work of one composed configuration and returns the exit code.
        prepare_sweep: Checks and adjusts the points of a sweep before the first one runs.
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
            register_config()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them and exiting with 1
            if found := problems_before_composing(name, line):
                raise UserError(found)
            exit_with_code(_HydraRun(name, line, task, prepare_sweep, full_errors).run())
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


def initialize() -> None:
    """Prepare the process of an entry point: its output, and the handling of Ctrl-C."""
    prepare_output()
    enable_keyboard_interrupt()


def enable_keyboard_interrupt() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again; nano3/__init__.py disables it while modules are imported."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def register_config() -> None:
    """Register the schemas and the resolvers that conf/ uses."""
    for app, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{app}_schema", node=schema)
    sample = Path(__file__).resolve().parents[1] / "sample"
    OmegaConf.register_new_resolver("sample", lambda file: str(sample / file), replace=True)
    OmegaConf.register_new_resolver("scratch", sweep_scratch_dir, replace=True)
    register_resolver()


_scratch = contextlib.ExitStack()


@cache
def sweep_scratch_dir() -> str:
    """Return a temporary folder for Hydra's record of a sweep, multirun.yaml. `_HydraRun.run` removes it."""
    return str(_scratch.enter_context(temporary_folder("nano3-sweep-")))


@dataclass
class _HydraRun:
    """One command. A sweep calls Hydra twice, so that all points are composed and checked before the first one runs."""

    name: str
    line: CommandLine
    task: Task
    prepare_sweep: PrepareSweep | None
    full_errors: bool
    points: list[DictConfig] = field(default_factory=list)
    overrides: list[list[str]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    error: Exception | None = None

    def run(self) -> int:
        """Run the command and return the first nonzero exit code, or 0."""
        try:
            self._call_hydra(self._run_or_collect)
            if self.error:
                raise self.error
            if self.points:
                if self.prepare_sweep:
                    self.prepare_sweep(self.points, self.overrides)
                self._call_hydra(self._run_point)
                say(f"{self.codes.count(0)} of {len(self.codes)} points finished")
        finally:
            _scratch.close()
            sweep_scratch_dir.cache_clear()
        return next((code for code in self.codes if code), 0)

    def _call_hydra(self, function: Callable[[DictConfig], None]) -> None:
        hydra.main(version_base="1.3", config_path=conf_dir(), config_name=self.name)(function)()

    def _run_task(self, cfg: DictConfig) -> None:
        need_output(bool(OmegaConf.select(cfg, "dry_run")))
        # Here, so that one point's disk error does not end the whole sweep.
        with translate_disk_errors("standard output"):
            self.codes.append(self.task(cfg))

    def _run_or_collect(self, cfg: DictConfig) -> None:
        """Run the task of a single run, or collect one point of a sweep."""
        if HydraConfig.get().mode != RunMode.RUN:
            self.points.append(cfg)
            self.overrides.append(task_overrides())
            return
        try:
            self._run_task(cfg)
        except EXPECTED_ERRORS as error:
            if self.full_errors:
                raise
            self.error = error  # raised after Hydra returns, because Hydra would print all overrides first

    def _run_point(self, cfg: DictConfig) -> None:
        """Run the task of the next point of a sweep."""
        number = len(self.codes)
        say(f"# ---- point {number + 1} of {len(self.points)}: {' '.join(self.overrides[number])}")
        try:
            self._run_task(self.points[number])
        except EXPECTED_ERRORS as error:
            if self.full_errors:
                raise
            explained = explain_error(error, self.name, self.line)
            print_problems(explained.problems)
            self.codes.append(explained.exit_code)


def print_and_exit(text: str) -> NoReturn:
    """Print a text and exit with code 0."""
    need_output()
    write(f"{text}\n")
    sys.exit(0)


def exit_with_code(code: int) -> NoReturn:
    """Exit with the code of finished work, even if its output was lost."""
    flush_output()
    error = lost_output()
    if error and not isinstance(error, BrokenPipeError):
        warn(f"part of the output could not be written: {error.strerror}")
    sys.exit(code)


def exit_on_broken_pipe() -> NoReturn:
    """Exit with code 1 because the reader of the output, such as `head`, has closed it."""
    discard(sys.stdout)
    sys.exit(1)


def exit_with_error(error: Nano3Error) -> NoReturn:
    """Print every problem to stderr and exit with the error's exit code."""
    print_problems(error.problems)
    try:
        sys.stdout.flush()
    except OSError:  # for example a full disk; Python would fail again at exit
        discard(sys.stdout)
    sys.exit(error.exit_code)


def task_overrides() -> list[str]:
    """Return the overrides of the current run as typed, without Hydra's own."""
    return list(HydraConfig.get().overrides.task)


def to_typed_config(cfg: DictConfig) -> Any:
    """Return the composed configuration as its dataclass, with interpolations resolved.

    Raises:
        UserError: With the problems that `value_problems` finds.
    """
    if problems := value_problems(cfg):
        raise UserError(problems)
    return OmegaConf.to_object(cfg)


def value_problems(cfg: DictConfig) -> list[str]:
    """Return one message for each invalid value that both applications reject.

    These are empty values of `NONEMPTY_KEYS`, secrets, and wrong values in the section `cluster`.

    Raises:
        UserError: If values are missing (`???`); the other checks need them.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"no value for {key}. Set it on the command line: {key}=..." for key in missing)
    problems = [
        f"{key}= is empty. Give it a value, or remove {key}= to use the default"
        for key in NONEMPTY_KEYS
        if OmegaConf.select(cfg, key, default="-") == ""
    ]
    cluster: Any = OmegaConf.to_object(cfg.cluster)
    lines = {f"cluster.{key}": getattr(cluster, key) for key in ("setup", "sbatch_args", "srun_args")}
    return problems + secret_problems(cluster.env, lines) + cluster_problems(cluster)
