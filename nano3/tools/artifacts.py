"""Show the artifacts in the local store and what each was made from.

nano3 artifacts list
nano3 artifacts show DataBlendsArtifact-pretrain:sample
nano3 artifacts lineage ModelArtifact-pretrain:latest
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from nano3.artifacts import store
from nano3.utils.console import print_problems, say, table, write
from nano3.utils.errors import Nano3Error, UserError, common_kind

HELP = "list artifacts, show one, or print its lineage"
ONLY_SHOWS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("list", help="list every version of every artifact")
    for name, text in (
        ("show", "show everything that is recorded about an artifact"),
        ("lineage", "show all artifacts that it was made from, directly or indirectly"),
    ):
        what.add_parser(name, help=text).add_argument("reference", help="name, name:latest, name:v3 or name:<alias>")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    if args.what == "list":
        return list_artifacts()
    artifact = store.find_artifact(args.reference)
    if args.what == "show":
        write(json.dumps({"reference": artifact.reference, **asdict(artifact)}, indent=2) + "\n")
    else:
        print_lineage(artifact, 0)
    return 0


def list_artifacts() -> int:
    """Print a table of all readable artifacts and the problems of the others; return 0 if there are none."""
    rows = []
    errors: list[Nano3Error] = []
    for name in store.names():
        aliases = store.aliases(name)
        if damaged := store.damaged_aliases(name):
            errors.append(UserError(damaged))
        for version in store.versions(name):
            try:
                artifact = store.load(name, version)
            except Nano3Error as error:
                errors.append(error)
                continue
            own = ", ".join(sorted(alias for alias, number in aliases.items() if number == version))
            missing = "" if Path(artifact.path).exists() else "  (no longer exists)"
            rows.append([name, f"v{version}", own, artifact.created, artifact.path + missing])
    if rows:
        table(f"Artifacts in {store.home()}", ["name", "version", "aliases", "created", "path"], rows)
    elif not errors:
        say(f"no artifacts in {store.home()}")
    print_problems(problem for error in errors for problem in error.problems)
    return common_kind(errors).exit_code if errors else 0


def print_lineage(artifact: store.Artifact, depth: int) -> None:
    """Print an artifact and, indented below it, everything that it was made from."""
    say(f"{'  ' * depth}{artifact.reference}  {artifact.path}  ({artifact.created}, {artifact.creator})")
    for reference in artifact.inputs:
        name, _, version = reference.rpartition(":v")
        try:
            source = store.load(name, int(version))
        except FileNotFoundError:
            say(f"{'  ' * (depth + 1)}{reference}  (not in this store)")
        else:
            print_lineage(source, depth + 1)
