"""Run tasks of lm-evaluation-harness on an export, and record the results at its iteration.

lm-eval runs in a process of its own, in the folder of the tasks, so that a task can name its data file next to it. Its
log and its result files are in RUN/evals/iter_N.
"""

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nano3.training.run.checkpoints import folder_name
from nano3.training.run.evals import PREFIX, STDERR, add_eval, read_evals
from nano3.training.run.exports import INFO, ExportInfo, complete_exports, export_command, read_export_info
from nano3.utils.console import say, table
from nano3.utils.errors import Failure, UserError, list_some, nearest
from nano3.utils.files import read_json

# The task of a YAML file; a group lists its tasks on the lines below.
_TASK = re.compile(r"^task: *([^\s#]+)", re.MULTILINE)
_LOG_LINES = 6
# Linux allows 128 KiB in one word of a command line, and the names of the tasks are one.
_MAX_NAMES = 100_000
# What lm-eval 0.4 says about names that it does not know.
_UNKNOWN = re.compile(r"^\w+: Tasks not found: (.+)", re.MULTILINE)


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate, as plain values: the arguments of a job.

    Attributes:
        export: The folder of the export.
        folder: The folder for log and result files.
        tasks: Names of tasks.
        task_folder: The folder with their YAML files; None for tasks of lm-eval itself.
        run_dir: The run folder; None if the export does not belong to one.
        info: What the export was made of, if it is known.
        options: More arguments of lm-eval.
    """

    export: str
    folder: str
    tasks: tuple[str, ...]
    task_folder: str | None
    run_dir: str | None
    info: ExportInfo | None
    options: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "EvalRequest":
        """Return the request that `to_text` has written."""
        values = json.loads(text)
        info = ExportInfo(**values.pop("info")) if values["info"] else values.pop("info")
        tasks, options = tuple(values.pop("tasks")), tuple(values.pop("options"))
        return cls(**values, info=info, tasks=tasks, options=options)


def find_exports(folder: Path, iteration: int | None, every: bool) -> list[Path]:
    """Return the exports to evaluate, oldest first.

    Args:
        folder: A run folder or an export.
        iteration: The iteration of an export; None for the newest.
        every: Return all.

    Raises:
        UserError: There is no such export.
    """
    if (folder / "config.json").is_file():
        return [folder]
    found = complete_exports(folder)
    if (folder / "hf" / INFO).is_file():  # written by `nano3 export RUN`
        found.append(folder / "hf")
    by_iteration = {read_export_info(export).iteration: export for export in reversed(found)}
    if every and found:
        return [by_iteration[key] for key in sorted(by_iteration)]
    newest = max(by_iteration, default=-1)
    wanted = newest if iteration is None else iteration
    if wanted in by_iteration:
        return [by_iteration[wanted]]
    what = "no exports" if iteration is None else f"no export of iteration {iteration}"
    raise UserError(
        f"{folder} has {what}. Write one with: {export_command(folder, iteration)} (during training: "
        "checkpoint.export_every)"
    )


def make_request(export: Path, tasks: Sequence[str], task_folder: Path | None, options: Sequence[str]) -> EvalRequest:
    """Return the request to evaluate one export.

    Args:
        export: The folder of the export.
        tasks: Names of tasks.
        task_folder: The folder with their YAML files.
        options: More arguments of lm-eval.
    """
    export = export.absolute()
    info = read_export_info(export) if (export / INFO).is_file() else None
    run_dir = _run_of(export, info)
    folder = run_dir / "evals" / folder_name(info.iteration) if run_dir and info else export / "evals"
    return EvalRequest(
        export=str(export),
        folder=str(folder),
        tasks=tuple(tasks),
        task_folder=str(task_folder.absolute()) if task_folder else None,
        run_dir=str(run_dir) if run_dir else None,
        info=info,
        options=tuple(options),
    )


def _run_of(export: Path, info: ExportInfo | None) -> Path | None:
    """Return the run of an export: the one that it lies in, which may have been moved, or the recorded one."""
    inside = export.parent if export.name == "hf" else export.parent.parent
    recorded = [Path(info.run_dir)] if info else []
    return next((run for run in (inside, *recorded) if info and (run / "config.yaml").is_file()), None)


def results_missing(request: EvalRequest) -> bool:
    """Return whether the run has no results of some task at this iteration."""
    if request.run_dir is None or request.info is None:
        return True
    lines = [line for line in read_evals(Path(request.run_dir)) if line["iteration"] == request.info.iteration]
    return any(not any(key.startswith(f"{PREFIX}{task}/") for line in lines for key in line) for task in request.tasks)


def choose_tasks(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the names of the tasks, and the folder with their YAML files, if one is given.

    Args:
        words: One folder, names separated by commas, or both for some tasks of a folder.

    Raises:
        UserError: There are several folders, no tasks, or too many.
    """
    folders = [Path(word) for word in words if Path(word).is_dir()]
    names = [name for word in words if not Path(word).is_dir() for name in word.split(",") if name]
    if len(folders) > 1:
        raise UserError(f"--tasks: give one folder, not {len(folders)}: it may have subfolders.")
    if missing := [name for name in names if "/" in name]:
        raise UserError([f"--tasks {name}: there is no such folder." for name in missing])
    there = find_tasks(folders[0]) if folders else []
    chosen = names or there
    if len(json.dumps(chosen)) > _MAX_NAMES:
        raise UserError(
            f"--tasks {' '.join(words)[:80]}: {len(chosen):,} tasks are too many for one evaluation: their names have "
            f"more than {_MAX_NAMES:,} characters. Name some of them, or a group that lists them in a YAML file of the "
            "folder: --tasks FOLDER --tasks GROUP"
        )
    return chosen, folders[0] if folders else None


def find_tasks(folder: Path) -> list[str]:
    """Return the names of the tasks in a folder of YAML files.

    Raises:
        UserError: There are none.
    """
    found = [match[1].strip("'\"") for path in sorted(folder.rglob("*.yaml")) for match in _tasks_in(path)]
    if not found:
        raise UserError(f"--tasks {folder}: no YAML file in it names a task (a line such as `task: my_task`).")
    return found


def _tasks_in(path: Path) -> list[re.Match[str]]:
    return list(_TASK.finditer(path.read_text(errors="replace")))


def main(text: str) -> int:
    """Evaluate one export.

    Args:
        text: Result of `EvalRequest.to_text`.

    Returns:
        Exit code 0.

    Raises:
        Failure: lm-eval failed, or the export has been replaced or removed since.
    """
    request = EvalRequest.from_text(text)
    values = read_results(run_lm_eval(request))
    rows = [row[:4] for row in result_rows([values])]
    table("Results", ["task", "metric", "value", "standard error"], rows, right=["value", "standard error"])
    if request.run_dir is None or request.info is None:
        say(f"results: {request.folder} (the export belongs to no run)")
        return 0
    if not _is_unchanged(request):
        raise Failure(f"{request.export} has been replaced or removed since. Evaluate it again.")
    run_dir = Path(request.run_dir)
    add_eval(run_dir, {"iteration": request.info.iteration, "time": round(time.time(), 2), **values})
    shown = f"nano3 report {shlex.quote(str(run_dir))}"
    say(f"recorded at iteration {request.info.iteration} of {run_dir}; `{shown}` shows it")
    return 0


def _is_unchanged(request: EvalRequest) -> bool:
    """Return whether the folder still holds the export that was requested."""
    try:
        return read_export_info(Path(request.export)) == request.info
    except FileNotFoundError:
        return False


def run_lm_eval(request: EvalRequest) -> Path:
    """Run lm-eval and return its result file.

    Raises:
        UserError: It does not know a task.
        Failure: It failed; with the last lines of its log.
    """
    folder = Path(request.folder)
    results, log = folder / "results", folder / "lm_eval.log"
    shutil.rmtree(results, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={request.export}"]
    command += ["--tasks", ",".join(request.tasks), "--output_path", str(results), *request.options]
    environment = dict(os.environ)
    if request.task_folder:
        command += ["--include_path", request.task_folder]
        environment.setdefault("HF_HUB_OFFLINE", "1")
    say(f"evaluating {request.export}: {list_some(list(request.tasks))}; log: {log}")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=request.task_folder,
            env=environment,
        )  # fmt: skip
        try:
            code = process.wait()
        finally:
            process.kill()
    found = sorted(results.rglob("results_*.json"))
    if code or not found:
        text = log.read_text(errors="replace")
        if problems := unknown_tasks(text, request.task_folder):
            raise UserError(problems)
        lines = text.strip().splitlines()[-_LOG_LINES:]
        raise Failure("\n".join([f"lm-eval ended with exit code {code}; end of {log}:", *lines]))
    return found[-1]


def unknown_tasks(log: str, task_folder: str | None) -> list[str]:
    """Return a message for each task that lm-eval did not know, with the nearest name.

    Args:
        log: Its log.
        task_folder: The folder with YAML files of tasks.
    """
    if not (found := _UNKNOWN.search(log)):
        return []
    spec = importlib.util.find_spec("lm_eval")
    own = [Path(parent) / "tasks" for parent in (spec.submodule_search_locations or ())] if spec else []
    folders = [folder for folder in (*([Path(task_folder)] if task_folder else []), *own) if folder.is_dir()]
    known = [name for folder in folders for name in find_tasks(folder)]
    where = f"neither {task_folder} nor lm-eval has a" if task_folder else "lm-eval has no"
    problems = []
    for name in found[1].strip().split(", "):
        near = nearest(name, known)
        hint = f"Did you mean {near!r}?" if near else "`lm-eval ls tasks` lists those of lm-eval."
        problems.append(f"--tasks {name}: {where} task or group of this name. {hint}")
    return problems


def read_results(path: Path) -> dict[str, float]:
    """Return the values in a result file of lm-eval as eval/TASK/METRIC, and their standard errors.

    A value of another filter than "none" is named eval/TASK/METRIC,FILTER.

    Raises:
        Failure: There are no values.
    """
    values: dict[str, float] = {}
    results: dict[str, dict[str, Any]] = read_json(path)["results"]
    for task, metrics in results.items():
        for key, value in metrics.items():
            name, comma, kind = key.partition(",")
            if comma and type(value) in (int, float) and math.isfinite(value):
                metric = name.removesuffix(STDERR) + ("" if kind == "none" else f",{kind}")
                values[f"{PREFIX}{task}/{metric}{STDERR * name.endswith(STDERR)}"] = value
    if not values:
        raise Failure(f"{path}: lm-eval measured nothing")
    return values


def result_rows(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Return [task, metric, value, standard error, iteration] for the last value of each metric.

    Args:
        lines: Results, oldest first.
    """
    last = {key: line for line in lines for key in line if key.startswith(PREFIX) and not key.endswith(STDERR)}
    return [
        [
            *key.removeprefix(PREFIX).rsplit("/", 1),
            *(_four_digits(line.get(name)) for name in (key, key + STDERR)),
            str(line.get("iteration", "")),
        ]
        for key, line in last.items()
    ]


def _four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
