"""What differs between two runs: configuration, data, code, packages; of each its newest start.

nano3 diff tiny tiny-lr2
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from nano3.tools._folders import RUNS, run_folder
from nano3.training.run.record import latest_start_dir
from nano3.utils.console import say, table
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import read_json
from nano3.utils.tree import leaves

HELP = "what differs between two runs"
NOTHING = "-"
Rows = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, metavar=f"RUN_{name.upper()}", help=f"run folder, or its name under {RUNS}")


def run(args: argparse.Namespace) -> int:
    a, b = run_folder(args.a), run_folder(args.b)
    problems = [problem for folder in dict.fromkeys((a, b)) if (problem := not_a_run(folder))]
    if problems:
        raise UserError(problems)
    same = []
    for what, left, right in zip(("configuration", "data", "code", "packages"), facts(a), facts(b), strict=True):
        rows = differences(left, right)
        if rows:
            table(f"{what}: {len(rows)} differ", ["what", str(a), str(b)], rows)
        else:
            same.append(what)
    if same:
        say(f"the same: {', '.join(same)}")
    return 0


def not_a_run(folder: Path) -> str | None:
    """Why a folder cannot be compared."""
    if latest_start_dir(folder) is None:
        return f"{folder}: no start is recorded there (no starts/*/start.json): name a run, or a point of a sweep."
    return None


def facts(folder: Path) -> tuple[Rows, Rows, Rows, Rows]:
    """Configuration, data, code and packages of a run's newest start. Raises `Failure` for a damaged record."""
    start = latest_start_dir(folder)
    assert start is not None
    try:
        config = yaml.safe_load((start / "config.yaml").read_text())
        record = read_json(start / "start.json")
        code = {**record["code"], "uncommitted": changes(start)}
        packages = {"python": record["python"], **record["packages"]}
        own = str(folder.absolute())
        return {k: placed(v, own) for k, v in leaves(config)}, dict(record["data"]), code, packages
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise Failure(
            f"{start}: the record of this start is damaged: {what}. Start the run again to renew it."
        ) from None


def changes(start: Path) -> str:
    """The uncommitted changes of a start, so that equal ones compare equal."""
    path = start / "code.diff"
    return path.read_text(errors="replace") if path.exists() else ""


def placed(value: Any, own: str) -> Any:
    """A place in the run's own folder, written so that it is the same for both."""
    return value.replace(own, "RUN", 1) if isinstance(value, str) and value.startswith(own) else value


def differences(a: Rows, b: Rows) -> list[tuple[str, str, str]]:
    """What is not the same, with both values; keys in the order of `a`, then those of `b` alone."""
    keys = [*a, *(key for key in b if key not in a)]
    return [
        (key, shown(key, a.get(key, NOTHING)), shown(key, b.get(key, NOTHING)))
        for key in keys
        if a.get(key, NOTHING) != b.get(key, NOTHING)
    ]


def shown(key: str, value: Any) -> str:
    """A value for the table; of a diff its size."""
    if key == "uncommitted":
        return f"{value.count(chr(10)):,} lines (starts/*/code.diff)" if value else "none"
    return "null" if value is None else str(value)
