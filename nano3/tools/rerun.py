"""Start a run again from its record, as a run of its own.

nano3 rerun tiny                                   # as tiny-again
nano3 rerun tiny run.name=tiny-lr2 optimizer.lr=2e-4
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from nano3.artifacts.names import slugify
from nano3.cli.config_file_errors import member_values
from nano3.tools._folders import RUNS, refuse_other_data, run_folder
from nano3.tools.diff import facts, not_a_run
from nano3.training.run import parent_checkpoint
from nano3.training.run.record import ROOT, code_version, latest_start_dir
from nano3.utils.command_line import CommandLine
from nano3.utils.console import say, warn
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import write_text

HELP = "start a run again from its record, under another name"
# Sections that a member of the group of that name gives as a whole. A member of `train` sets keys of several sections;
# what it leaves out stays as recorded.
GROUPS = ("model", "data_blend", "cluster")
# Where the run was; the new one has places of its own.
OWN = (("run", "name"), ("run", "output_dir"), ("checkpoint", "save"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    parser.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help="what is different, as for nano3.pretrain (run.name=RUN-again)"
    )


def run(args: argparse.Namespace) -> int:
    folder = run_folder(args.run)
    if problem := not_a_run(folder):
        raise UserError(problem)
    if wrong := [word for word in args.changes if "=" not in word]:
        raise UserError([f"{word}: expected KEY=VALUE, as nano3.pretrain takes it" for word in wrong])
    start = latest_start_dir(folder)
    assert start is not None
    _, data, code, _ = facts(folder)
    config = read(start / "config.yaml")
    refuse_other_data(folder, Path(config["run"]["data"]))
    config["run"]["data"] = named(data.get("reference"), config["run"]["data"])
    if parent := parent_checkpoint.read_parent(folder):
        config["checkpoint"]["load"] = found_parent(folder, parent, args.changes)
    tell_other_code(folder, start, code)
    name = f"run.name='{slugify(folder.absolute().name) or 'run'}-again'"
    changes = args.changes if "run.name" in CommandLine.parse(args.changes).values else [name, *args.changes]
    say(f"starts as {folder} was started ({start.name}), with {' '.join(changes)}")
    with tempfile.TemporaryDirectory(prefix="nano3-rerun-") as made:
        record = without(kept(config, folder, changes), chosen_keys(changes))
        text = "# @package _global_\n" + yaml.safe_dump(record, sort_keys=False)
        write_text(Path(made) / "experiment" / "rerun.yaml", text)
        words = ["--config-dir", made, "+experiment=rerun", *changes]
        return subprocess.run([sys.executable, "-m", "nano3.pretrain", *words], check=False).returncode


def found_parent(folder: Path, parent: parent_checkpoint.ParentCheckpoint, changes: Sequence[str]) -> str:
    """The checkpoint that the old run began with, which the new one is to begin with too. Raises `UserError` when it is
    gone and no other one is given."""
    if not parent.checkpoint.is_dir() and not "checkpoint.load" in CommandLine.parse(changes).values:
        raise UserError(
            f"{folder} began with {parent.checkpoint}, which is not there any more. Give another one: "
            "checkpoint.load=FOLDER, or checkpoint.load=null to begin with new weights."
        )
    return str(parent.checkpoint)


def chosen_keys(changes: Sequence[str]) -> list[str]:
    """The dotted keys that a member of `train` sets which the changes name."""
    members = [o.value for o in CommandLine.parse(changes).overrides if o.key == "train" and not o.prefix]
    return [key for member in members for key in member_values(f"train/{member}")]


def without(config: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The tree without these dotted keys."""
    left = deepcopy(config)
    for key in keys:
        *sections, last = key.split(".")
        place: Any = left
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return left


def read(path: Path) -> dict[str, Any]:
    """The configuration of a start. Raises `Failure` when it is damaged."""
    try:
        config = yaml.safe_load(path.read_text())
        config["run"]["data"], config["checkpoint"]["save"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise Failure(f"{path}: the record of this start is damaged: {error!r}.") from None
    return dict(config)


def named(reference: str | None, folder: str) -> str:
    """The data as the new run is to name it: the version of the artifact, so that lineage goes on, or the folder."""
    return reference if reference and ":" in reference and "/" not in reference else folder


def kept(config: dict[str, Any], folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """What the new run takes from the record: everything but places of the old run, and groups that are chosen anew."""
    chosen = CommandLine.parse(changes).values.keys()
    left = {section: value for section, value in config.items() if section not in chosen & set(GROUPS)}
    left = {section: dict(value) if isinstance(value, dict) else value for section, value in left.items()}
    if left["checkpoint"].get("load") == left["checkpoint"]["save"]:
        del left["checkpoint"]["load"]  # to resume itself, as every run does
    board = left.get("logger", {}).get("tensorboard_dir")
    if board and Path(board).is_relative_to(folder.absolute()):
        del left["logger"]["tensorboard_dir"]
    for section, key in OWN:
        del left[section][key]
    left.pop("dry_run", None)
    return left


def tell_other_code(folder: Path, start: Path, then: dict[str, Any]) -> None:
    """Warn when the code is not what it was, with the commands that bring it back."""
    commit, diff = code_version()
    old_diff = then["uncommitted"]
    if (then["commit"], old_diff) == (commit, diff.decode(errors="replace")):
        return
    bring = f"git -C {ROOT} checkout {then['commit']}" if then["commit"] else "install the version that it names"
    apply = f" && git -C {ROOT} apply {(start / 'code.diff').absolute()}" if old_diff else ""
    warn(
        f"the code is not what {folder} was started with, so the result may differ (nano3 diff tells more): it was at "
        f"{then['commit'] or 'no commit'}{' with changes' * bool(old_diff)}, and is at "
        f"{commit or 'no commit'}{' with changes' * bool(diff)}. To have the same: {bring}{apply}"
    )
