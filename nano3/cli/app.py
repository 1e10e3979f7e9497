"""What both entry points share: how Hydra is called, how a sweep's points become calls, and how errors are told.

Every wrong key is told at once with the nearest right one (nano3.cli.override_errors), a user's error ends with
exit code 2, and nothing that a person can mend shows a traceback.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
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
from nano3.cli.config_groups import SCHEMAS, TAKES_A_VALUE, conf_dir
from nano3.cli.override_errors import EXPECTED_ERRORS, everything_wrong, explain_error, wrong_beforehand
from nano3.utils.console import say
from nano3.utils.disk_errors import disk_errors
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, Nano3Error, UserError
from nano3.utils.redaction import secret_problems

# Keys where nothing at all (`output_dir=`) would mean the folder one happens to be in.
NEVER_EMPTY = ("output_dir", "job_dir", "artifact", "run.output_dir", "run.name", "run.data")
Task = Callable[[DictConfig], int]
# Given all points of a sweep and their overrides: check them, and make them differ where they must.
Prepare = Callable[[list[DictConfig], list[list[str]]], None]


def run_app(name: str, task: Task, sweep: Prepare | None = None) -> NoReturn:
    """Compose the configuration `name` from the command line, call `task` with it, and leave with its exit code.

    Exit codes: what `task` returns; 2 for a user's error; 1 for a foreseen failure; 130 for Ctrl-C. Anything else
    keeps its traceback. A sweep calls `task` once for each point, after `sweep`; its code is the first that is not 0.
    (With a launcher that starts points itself, as nano3.pretrain has, `task` is not called.)
    """
    initialize()
    sys.argv[1:] = flags_first(sys.argv[1:])
    shown_in_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with disk_errors("standard output"):
            if help.asked(sys.argv[1:]):
                show(help.text(name))
            if "--version" in sys.argv[1:]:
                show(help.version())
            set_up()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving with 1
            if found := wrong_beforehand(name, sys.argv[1:]):
                raise UserError(found)
            code = _run(name, task, sweep, shown_in_full)
            sys.stdout.flush()
        sys.exit(code)
    except EXPECTED_ERRORS as error:
        if shown_in_full:
            raise
        exit_with_error(explain_error(error, name, sys.argv[1:]))
    except BrokenPipeError:
        exit_on_broken_pipe()
    except (ValueError, OSError) as error:
        if shown_in_full or not (found := everything_wrong(error, name, sys.argv[1:])):
            raise
        exit_with_error(UserError(found))
    except KeyboardInterrupt:
        if shown_in_full:
            raise
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT_CODE)


def initialize() -> None:
    """What every entry point does first: a closed stdout or stderr (`>&-`) becomes one that nobody reads, and Ctrl-C
    is taken over."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115  for as long as the process lives
    take_interrupts()


def take_interrupts() -> None:
    """Have Ctrl-C raise `KeyboardInterrupt` again, now that somebody tells what it means (see nano3/__init__.py)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def flags_first(argv: list[str]) -> list[str]:
    """Overrides after flags: Hydra takes them in one piece only, and `a=1 -m b=1,2` is what people type."""
    moved = [
        word
        for before, word in zip(["", *argv], argv, strict=False)
        if ("=" in word or word.startswith("~")) and not word.startswith("-") and before not in TAKES_A_VALUE
    ]
    left = list(argv)
    for word in moved:
        left.remove(word)
    return left + moved


def set_up() -> None:
    """What composing needs: the schemas and the resolvers that conf/ uses."""
    for app, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{app}_schema", node=schema)
    sample = Path(__file__).resolve().parents[1] / "sample"
    OmegaConf.register_new_resolver("sample", lambda file: str(sample / file), replace=True)
    OmegaConf.register_new_resolver("scratch", scratch, replace=True)
    register_resolver()


@cache
def scratch() -> str:
    """A folder for what Hydra writes of a sweep (multirun.yaml, without the points' overrides); `_run` removes it."""
    return tempfile.mkdtemp(prefix="nano3-sweep-")


def _run(name: str, task: Task, sweep: Prepare | None, shown_in_full: bool) -> int:
    """One call of Hydra; a sweep takes two, so that all points are checked before the first one works."""
    points: list[DictConfig] = []
    overrides: list[list[str]] = []
    codes: list[int] = []
    refused: list[Exception] = []

    def work(cfg: DictConfig) -> None:
        with disk_errors("standard output"):  # else Hydra, or the next point, would be told of an unforeseen end
            codes.append(task(cfg))

    def first(cfg: DictConfig) -> None:
        if HydraConfig.get().mode != RunMode.RUN:
            points.append(cfg)
            overrides.append(task_overrides())
            return
        try:
            work(cfg)
        except EXPECTED_ERRORS as error:
            if shown_in_full:
                raise
            refused.append(error)  # raised here, Hydra would print all overrides above it

    def again(cfg: DictConfig) -> None:
        number = len(codes)
        say(f"# ---- point {number + 1} of {len(points)}: {' '.join(overrides[number])}")
        try:
            work(points[number])
        except EXPECTED_ERRORS as error:
            if shown_in_full:
                raise
            codes.append(print_error(explain_error(error, name, sys.argv[1:])))

    try:
        _hydra(name, first)
        if refused:
            raise refused[0]
        if points:
            if sweep:
                sweep(points, overrides)
            _hydra(name, again)
            say(f"{codes.count(0)} of {len(codes)} points finished")
    finally:
        if scratch.cache_info().currsize:
            shutil.rmtree(scratch(), ignore_errors=True)
            scratch.cache_clear()
    return next((code for code in codes if code), 0)


def _hydra(name: str, call: Callable[[DictConfig], None]) -> None:
    hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(call)()


def show(text: str) -> NoReturn:
    """Print, and leave: all that was asked for."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        exit_on_broken_pipe()
    sys.exit(0)


def exit_on_broken_pipe() -> NoReturn:
    """Leave because whoever read the output has closed it, as `head` does."""
    to_nobody()
    sys.exit(1)


def to_nobody() -> None:
    """Let what is still in stdout's buffer go nowhere; Python would try to write it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_with_error(error: Nano3Error) -> NoReturn:
    """Print every problem on stderr and exit with the error's code."""
    code = print_error(error)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk under it, which Python would meet again while it ends
        to_nobody()
    sys.exit(code)


def print_error(error: Nano3Error) -> int:
    """Print every problem on stderr; gives the exit code. Datasets with one and the same problem share one message."""
    for problem in grouped(error.problems):
        print(f"error: {problem}", file=sys.stderr)
    return error.exit_code


def grouped(problems: Sequence[str]) -> list[str]:
    """Join problems that begin "dataset 'NAME': " and go on alike but for their path; a blend may have dozens."""
    found: dict[str, list[re.Match[str]]] = {}
    for number, problem in enumerate(problems):
        match = re.fullmatch(r"dataset '([^']+)': (.*)", problem, re.DOTALL)
        places = re.search(r"path=(\S+?)[:,]? ", match[2]) if match else None
        alike = match[2].replace(places[1], "…") if match and places else match[2] if match else str(number)
        found.setdefault(alike, []).append(match or re.match(r"(?s)()(.*)", problem))  # type: ignore[arg-type]
    told = []
    for matches in found.values():
        names = [m[1] for m in matches]
        if not names[0]:
            told += [m[0] for m in matches]
        elif len(names) == 1:
            told.append(matches[0][0])
        else:
            told.append(f"{len(names)} datasets ({', '.join(names)}); the first: {matches[0][2]}")
    return told


def task_overrides() -> list[str]:
    """The overrides of this start as they were typed, Hydra's own left out."""
    return list(HydraConfig.get().overrides.task)


def to_typed_config(cfg: DictConfig) -> Any:
    """The composed configuration as its dataclass, interpolations resolved. Raises `UserError` as `value_problems`."""
    if problems := value_problems(cfg):
        raise UserError(problems)
    return OmegaConf.to_object(cfg)


def value_problems(cfg: DictConfig) -> list[str]:
    """One message for each value of a composed configuration that is wrong whatever the application does with it.

    Still missing (`???`), empty where it must not be, a secret, or a `cluster` that cannot be. Raises `UserError` when
    values are missing: without them nothing more can be told.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"no value for {key}; set it on the command line: {key}=..." for key in missing)
    problems = [
        f"{key}= is empty; give it a value, or leave {key}= out to have the usual one"
        for key in NEVER_EMPTY
        if OmegaConf.select(cfg, key, default="-") == ""
    ]
    cluster: Any = OmegaConf.to_object(cfg.cluster)
    lines = {f"cluster.{key}": getattr(cluster, key) for key in ("setup", "sbatch_args", "srun_args")}
    return problems + secret_problems(cluster.env, lines) + cluster_problems(cluster)
