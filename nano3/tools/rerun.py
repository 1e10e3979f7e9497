"""Start a run again from its record, as a new run.

nano3 rerun tiny                                   # named tiny-again
nano3 rerun tiny run.name=tiny-lr2 optimizer.lr=2e-4
"""

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from nano3.artifacts.names import slugify
from nano3.cli.config_file_errors import member_values
from nano3.config import PretrainConfig
from nano3.tools._arguments import RUNS, check_same_data, find_run
from nano3.tools.diff import missing_start_problem, read_start_record
from nano3.training.order.plan import read_plan
from nano3.training.run import parent_checkpoint
from nano3.training.run.config_file import config_fix, read_config_text
from nano3.training.run.literal_config import check_literal, literal
from nano3.training.run.record import code_version, latest_start_dir
from nano3.training.run.skips import read_skips
from nano3.utils.command_line import CommandLine
from nano3.utils.console import say, warn
from nano3.utils.errors import UserError, list_some
from nano3.utils.files import temporary_folder, write_text
from nano3.utils.provenance import ROOT
from nano3.utils.records import damaged

HELP = "start a run again from its record, under another name"
# Sections that a member of the group with the same name replaces as a whole. A member of `train` sets keys of several
# sections instead; all other keys keep their recorded values.
GROUPS = ("model", "data_blend", "cluster")
# Name and folders of the old run. The new run gets its own.
RUN_SPECIFIC = (("run", "name"), ("run", "output_dir"), ("checkpoint", "save"))
# Keys that decide which samples an iteration reads. With another value, the iterations left out mean nothing.
ORDER_KEYS = ("run.data", "data_blend", "train.seed", "train.seq_length", "train.global_batch_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    parser.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help="changes, as for nano3.pretrain (default: run.name=RUN-again)"
    )


def run(args: argparse.Namespace) -> int:
    """Run nano3.pretrain with the recorded configuration and return its exit code."""
    folder = find_run(args.run)
    if problem := missing_start_problem(folder):
        raise UserError(problem)
    if wrong := [word for word in args.changes if "=" not in word]:
        raise UserError([f"{word}: expected KEY=VALUE, as for nano3.pretrain" for word in wrong])
    check_ladder_changes(args.changes)
    start = latest_start_dir(folder)
    assert start is not None
    record = read_start_record(folder)
    config = load_recorded_config(start / "config.yaml")
    check_same_data(folder, Path(config["run"]["data"]))
    config["run"]["data"] = literal(data_reference(record.data.get("reference"), config["run"]["data"]))
    if parent := parent_checkpoint.read_parent(folder):
        config["checkpoint"]["load"] = literal(checkpoint_to_load(folder, parent, args.changes))
    leave_out_the_same(config, folder, args.changes)
    warn_changed_mixture(folder)
    warn_other_code(folder, start, record.code)
    name = f"run.name='{slugify(folder.absolute().name) or 'run'}-again'"
    changes = args.changes if "run.name" in CommandLine.parse(args.changes).values else [name, *args.changes]
    say(f"starting like {folder} ({start.name}), with {' '.join(changes)}")
    experiment = drop_keys(inherited_config(config, folder, changes), train_member_keys(changes))
    with temporary_folder("nano3-rerun-") as config_dir:
        text = "# @package _global_\n" + yaml.safe_dump(experiment, sort_keys=False)
        write_text(config_dir / "experiment" / "rerun.yaml", text)
        words = ["--config-dir", str(config_dir), "+experiment=rerun", *changes]
        return run_child([sys.executable, "-m", "nano3.pretrain", *words])


def run_child(command: Sequence[str]) -> int:
    """Run a command and return its exit code. Signals that ask to stop are left to it: it may have to save first."""
    process = subprocess.Popen(command)

    def forward(signum: int, frame: FrameType | None) -> None:
        if signum in (signal.SIGTERM, signal.SIGUSR2):  # a terminal sends the others to both processes
            process.send_signal(signum)

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, forward)
    code = process.wait()
    return code if code >= 0 else 128 - code


def load_recorded_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a start; raise DamagedRecordError if it is damaged."""
    fix = config_fix(path)
    try:
        config = yaml.safe_load(text := read_config_text(path, fix))
        if not isinstance(config, dict):
            raise damaged(path, "it holds no mapping of keys to values" if text.strip() else "it is empty", fix)
        config["run"]["data"], config["run"]["name"], config["run"]["output_dir"], config["checkpoint"]["save"]
        Path(config["run"]["data"])
    except FileNotFoundError:
        raise damaged(path, "it is missing", fix) from None
    except KeyError as error:
        raise damaged(path, f"it has no {error}", fix) from None
    except (yaml.YAMLError, TypeError) as error:
        raise damaged(path, str(error).partition("\n")[0], fix) from None
    if unknown := sorted(set(map(str, config)) - {field.name for field in fields(PretrainConfig)}):
        raise damaged(path, f"unknown sections: {list_some(unknown)}", fix)
    check_literal(config, path)
    return dict(config)


def data_reference(reference: str | None, folder: str) -> str:
    """Return run.data of the new run: the recorded artifact version, which preserves lineage, or else the folder."""
    return reference if reference and ":" in reference and "/" not in reference else folder


def checkpoint_to_load(run_dir: Path, parent: parent_checkpoint.ParentCheckpoint, changes: Sequence[str]) -> str:
    """Return the checkpoint that the old run started from.

    Args:
        run_dir: Folder of the old run.
        parent: The recorded checkpoint.
        changes: Overrides of the new run.

    Raises:
        UserError: The checkpoint does not exist, and the overrides give no other one.
    """
    if not parent.checkpoint.is_dir() and "checkpoint.load" not in CommandLine.parse(changes).values:
        raise UserError(
            f"{run_dir} started from {parent.checkpoint}, which no longer exists. Give another checkpoint: "
            "checkpoint.load=FOLDER, or checkpoint.load=null to start with new weights."
        )
    return str(parent.checkpoint)


def check_ladder_changes(changes: Sequence[str]) -> None:
    """Raise UserError if a key of the section `ladder` is changed, but not the groups that derive settings from it."""
    chosen = CommandLine.parse(changes).values.keys()
    keys = [key for key in chosen if key.startswith("ladder.")]
    if keys and not {"model", "train"} <= chosen:
        raise UserError(
            f"{keys[0]} alone changes nothing: a rerun keeps the recorded settings. To derive them again, add "
            "model=ladder train=ladder."
        )


def leave_out_the_same(config: dict[str, Any], run_dir: Path, changes: Sequence[str]) -> None:
    """Set train.skip_iterations to what the old run has left out, by hand or by its guard.

    Args:
        config: Recorded configuration; changed in place.
        run_dir: Folder of the old run.
        changes: Overrides of the new run.
    """
    ranges = read_skips(run_dir).ranges
    if ranges and not CommandLine.parse(changes).values.keys() & set(ORDER_KEYS):
        config["train"]["skip_iterations"] = [[one.first, one.last] for one in ranges]
        say(f"iterations left out as in {run_dir}: {', '.join(map(str, ranges))}")


def warn_changed_mixture(run_dir: Path) -> None:
    """Warn if the old run has changed its mixture on a resume: the new run has only the last one."""
    plan = read_plan(run_dir)
    if plan and any(stage.end < stage.first + stage.iterations for stage in plan.stages):
        warn(
            f"{run_dir} was resumed with another mixture or length, which a rerun cannot repeat: it applies the last "
            "train.mixture from the start."
        )


def inherited_config(config: dict[str, Any], run_dir: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Return the recorded configuration without the old run's folders and without groups chosen by the overrides.

    Args:
        config: Recorded configuration; not modified.
        run_dir: Folder of the old run.
        changes: Overrides of the new run.
    """
    chosen = CommandLine.parse(changes).values.keys()
    result = {section: value for section, value in config.items() if section not in chosen & set(GROUPS)}
    result = {section: dict(value) if isinstance(value, dict) else value for section, value in result.items()}
    if result["checkpoint"].get("load") == result["checkpoint"]["save"]:
        del result["checkpoint"]["load"]  # the default: a run resumes from its own checkpoints
    board = result.get("logger", {}).get("tensorboard_dir")
    if board and Path(board).is_relative_to(run_dir.absolute()):
        del result["logger"]["tensorboard_dir"]
    for section, key in RUN_SPECIFIC:
        del result[section][key]
    result.pop("dry_run", None)
    return result


def train_member_keys(changes: Sequence[str]) -> list[str]:
    """Return the dotted keys set by the members of `train` that the overrides select."""
    members = [o.value for o in CommandLine.parse(changes).overrides if o.key == "train" and not o.prefix]
    return [key for member in members for key in member_values(f"train/{member}")]


def drop_keys(config: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a nested configuration without these dotted keys."""
    result = deepcopy(config)
    for key in keys:
        *sections, last = key.split(".")
        parent: Any = result
        for section in sections:
            parent = parent.get(section) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(last, None)
    return result


def warn_other_code(run_dir: Path, start: Path, recorded: dict[str, Any]) -> None:
    """Warn if the code has changed since a start, with the commands that restore it.

    Args:
        run_dir: Run folder.
        start: Folder of the start.
        recorded: Recorded commit and uncommitted changes.
    """
    commit, diff = code_version()
    old_diff = recorded["uncommitted"]
    if (recorded["commit"], old_diff) == (commit, diff.decode(errors="replace")):
        return
    git = f"git -C {shlex.quote(str(ROOT))}"
    restore = f"{git} checkout {recorded['commit']}" if recorded["commit"] else "install the recorded version"
    apply = f" && {git} apply {shlex.quote(str((start / 'code.diff').absolute()))}" if old_diff else ""
    warn(
        f"the code has changed since {run_dir} was started, so the result may differ (nano3 diff shows details). It "
        f"was at {recorded['commit'] or 'no commit'}{' with changes' * bool(old_diff)}, and is now at "
        f"{commit or 'no commit'}{' with changes' * bool(diff)}. To restore it: {restore}{apply}"
    )
