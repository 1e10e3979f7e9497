"""Compare the newest starts of two runs: configuration, data, code and packages.

nano3 diff tiny tiny-lr2
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from nano3.tools._arguments import RUNS, find_run
from nano3.training.run.config_file import config_fix, load_config_file
from nano3.training.run.record import latest_start_dir, read_start_file
from nano3.utils.console import say, table
from nano3.utils.errors import UserError
from nano3.utils.records import damaged
from nano3.utils.tree import leaves

HELP = "compare two runs"
ONLY_SHOWS = True
ABSENT = "-"
Values = dict[str, Any]


class StartRecord(NamedTuple):
    """What is recorded about one start of a run, each part by key.

    Attributes:
        configuration: Values by dotted key. Paths in the run's own folder begin with RUN.
        data: Reference, path and fingerprint of the data.
        code: Commit, and the text of the uncommitted changes.
        packages: Version of Python and of each package.
    """

    configuration: Values
    data: Values
    code: Values
    packages: Values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    for name in ("a", "b"):
        parser.add_argument(name, metavar=f"RUN_{name.upper()}", help=f"run folder, or its name under {RUNS}")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    a, b = find_run(args.a), find_run(args.b)
    if problems := [problem for folder in dict.fromkeys((a, b)) if (problem := missing_start_problem(folder))]:
        raise UserError(problems)
    same = []
    for name, left, right in zip(StartRecord._fields, read_start_record(a), read_start_record(b), strict=True):
        if rows := differing_rows(left, right):
            table(f"{name}: {len(rows)} different", ["key", str(a), str(b)], rows)
        else:
            same.append(name)
    if same:
        say(f"the same: {', '.join(same)}")
    return 0


def missing_start_problem(run_dir: Path) -> str | None:
    """Return the problem of a folder without a recorded start, or None if it has one."""
    if latest_start_dir(run_dir) is None:
        return f"{run_dir}: no start is recorded there (no starts/*/start.json). Give a run, or a point of a sweep."
    return None


def read_start_record(run_dir: Path) -> StartRecord:
    """Return the record of a run's newest start; raise DamagedRecordError if it is damaged."""
    start = latest_start_dir(run_dir)
    assert start is not None
    record = read_start_file(start)
    try:
        config = OmegaConf.to_container(load_config_file(start / "config.yaml"))
    except FileNotFoundError:
        raise damaged(start / "config.yaml", "it is missing", config_fix(start / "config.yaml")) from None
    assert isinstance(config, dict)
    return StartRecord(
        {key: _shorten_own_path(value, str(run_dir.absolute())) for key, value in leaves(config)},
        record["data"],
        {"commit": record["code"]["commit"], "uncommitted": _uncommitted_changes(start)},
        {"python": record["python"], **record["packages"]},
    )


def _uncommitted_changes(start: Path) -> str:
    """Return the recorded diff of a start, "" without one. The text itself is compared, not its size."""
    path = start / "code.diff"
    return path.read_text(errors="replace") if path.exists() else ""


def _shorten_own_path(value: Any, run_dir: str) -> Any:
    """Replace the run's own folder by RUN, so that such paths compare equal."""
    return value.replace(run_dir, "RUN", 1) if isinstance(value, str) and value.startswith(run_dir) else value


def differing_rows(a: Values, b: Values) -> list[tuple[str, str, str]]:
    """Return (key, value in a, value in b) for keys whose values differ, in the order of `a`, then of `b`."""
    keys = [*a, *(key for key in b if key not in a)]
    return [
        (key, format_value(key, a.get(key, ABSENT)), format_value(key, b.get(key, ABSENT)))
        for key in keys
        if a.get(key, ABSENT) != b.get(key, ABSENT)
    ]


def format_value(key: str, value: Any) -> str:
    """Return a value as text for a table. Uncommitted changes are shown by their size."""
    if key == "uncommitted":
        return f"{value.count(chr(10)):,} lines (starts/*/code.diff)" if value else "none"
    return "null" if value is None else str(value)
