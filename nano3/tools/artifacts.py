"""What the local store holds and what was made from what.

nano3 artifacts list
nano3 artifacts show DataBlendsArtifact-pretrain:sample
nano3 artifacts lineage ModelArtifact-pretrain:latest
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from nano3.artifacts import store
from nano3.utils.console import print_problems, say, table
from nano3.utils.errors import Failure

HELP = "list artifacts, show one, or follow its lineage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("list", help="every version of every artifact")
    for name, text in (
        ("show", "all that is known of one"),
        ("lineage", "what it was made from, back to the beginning"),
    ):
        what.add_parser(name, help=text).add_argument("reference", help="name, name:latest, name:v3 or name:<alias>")


def run(args: argparse.Namespace) -> int:
    if args.what == "list":
        return list_all()
    artifact = store.find_artifact(args.reference)
    if args.what == "show":
        say(json.dumps({"reference": artifact.reference, **asdict(artifact)}, indent=2))
    else:
        lineage(artifact, 0)
    return 0


def list_all() -> int:
    """The table of all that can be read; exit code 1, and what to do, when some cannot."""
    rows, damaged = [], []
    for name in store.names():
        tags = store.aliases(name)
        damaged += store.damaged_aliases(name)
        for version in store.versions(name):
            try:
                a = store.load(name, version)
            except Failure as error:
                damaged += error.problems
                continue
            known = ", ".join(sorted(t for t, v in tags.items() if v == version))
            gone = "" if Path(a.path).exists() else "  (not there any more)"
            rows.append([name, f"v{version}", known, a.created, a.path + gone])
    if rows:
        table(f"Artifacts in {store.home()}", ["name", "version", "aliases", "created", "path"], rows)
    elif not damaged:
        say(f"no artifacts in {store.home()}")
    print_problems(damaged)
    return Failure.exit_code if damaged else 0


def lineage(artifact: store.Artifact, depth: int) -> None:
    say(f"{'  ' * depth}{artifact.reference}  {artifact.path}  ({artifact.created}, {artifact.creator})")
    for reference in artifact.inputs:
        name, _, version = reference.rpartition(":v")
        try:
            made_from = store.load(name, int(version))
        except FileNotFoundError:
            say(f"{'  ' * (depth + 1)}{reference}  (not in this store)")
        else:
            lineage(made_from, depth + 1)
