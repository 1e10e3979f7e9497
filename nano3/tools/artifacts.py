"""`nano3 artifacts list|show|lineage`: what the local store holds and what was made from what."""

import argparse
import json
from dataclasses import asdict

from nano3.artifacts import store
from nano3.console import say, table

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
    artifact = store.look_up(args.reference)
    if args.what == "show":
        say(json.dumps({"reference": artifact.reference, **asdict(artifact)}, indent=2))
    else:
        lineage(artifact, 0)
    return 0


def list_all() -> int:
    rows = []
    for name in store.names():
        tags = store.aliases(name)
        for version in store.versions(name):
            a = store.load(name, version)
            rows.append(
                [name, f"v{version}", ", ".join(sorted(t for t, v in tags.items() if v == version)), a.created, a.path]
            )
    if not rows:
        say(f"no artifacts in {store.home()}")
        return 0
    table(f"Artifacts in {store.home()}", ["name", "version", "aliases", "created", "path"], rows)
    return 0


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
