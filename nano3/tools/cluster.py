"""Write a profile of this Slurm cluster, from sinfo, sacctmgr and srun.

nano3 cluster init                        name it like the cluster
nano3 cluster init hopper --partition gpu
nano3 cluster init --print                show it, write nothing

What Slurm does not say is marked NOT FOUND, with what to do.
"""

import argparse
import re
import shlex
from pathlib import Path

from launch.cluster_profile import MARK, profile_text, query_profile
from nano3.cli.config_groups import user_conf_dir
from nano3.utils.console import say, write
from nano3.utils.disk_errors import reason
from nano3.utils.errors import UserError
from nano3.utils.files import expand_user, write_text

HELP = "write a profile of this Slurm cluster"
DEFAULT_FOLDER = "~/nano3-conf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    what = parser.add_subparsers(dest="what", required=True)
    init = what.add_parser("init", help="write $NANO3_CONF/cluster/NAME.yaml")
    init.add_argument("name", nargs="?", help="name of the profile (default: the cluster's name)")
    init.add_argument("--partition", help="partition to use (default: the one with GPUs)")
    init.add_argument("--folder", help=f"folder of your configuration (default: $NANO3_CONF, or {DEFAULT_FOLDER})")
    init.add_argument("--force", action="store_true", help="replace a profile of this name")
    init.add_argument("--print", action="store_true", help="print the profile and write nothing")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    cluster, settings = query_profile(args.partition)
    name = args.name or re.sub(r"[^A-Za-z0-9_-]+", "-", cluster).strip("-") or "cluster"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) or name in ("local", "slurm"):
        raise UserError(f"{name!r} cannot name a profile. Use letters, digits, _ and -; local and slurm are taken.")
    text = profile_text(cluster, settings)
    if args.print:
        write(text)
        return 0
    known = user_conf_dir()
    folder = expand_user(args.folder or known or DEFAULT_FOLDER).absolute()
    path = folder / "cluster" / f"{name}.yaml"
    save_profile(path, text, args.force)
    say(f"wrote {path}")
    for setting in settings:
        if not setting.found:
            say(f"  {setting.key}: {setting.value}  {setting.comment.removeprefix(MARK)}")
    if known != str(folder):
        say(f"so that nano3 finds it: export NANO3_CONF={shlex.quote(str(folder))}")
    say(f"to test it without a job: python -m nano3.data_prep data_blend=sample cluster={name} dry_run=true")
    return 0


def save_profile(path: Path, text: str, replace: bool) -> None:
    """Write a profile.

    Args:
        path: Its file; missing folders are created.
        text: Its text.
        replace: Whether to replace a file of this name.

    Raises:
        UserError: The file exists, or cannot be written.
    """
    if path.exists() and not replace:
        raise UserError(f"{path} exists. Give the profile another name, or replace it with --force.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)} Choose another folder with --folder.") from error
