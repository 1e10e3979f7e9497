"""Check prepared data against its manifest: checksums, index structure, token range, end-of-document tokens, counts.

nano3 verify data

The exit code is 1 if any check fails. Every problem names its file.
"""

import argparse
import os

from nano3.tools._arguments import at_least, find_data
from nano3.utils.console import print_problems, say
from nano3.utils.errors import Failure

HELP = "check prepared data against its manifest"
# The same preparation rewrites these without force=true, which would redo everything.
REPAIRABLE = {"tokenizer", "blend.json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("data", help="folder made by nano3.data_prep, or its artifact (NAME:ALIAS)")
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=os.cpu_count() or 1,
        help="number of shards checked at a time (default: number of cores)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    from nano3.data.dataset.verify import verify

    folder = find_data(args.data)
    checks = 0
    failed: set[str] = set()
    for name, problems in verify(folder, args.threads):
        checks += 1
        if problems:
            failed.add(name)
        print_problems(problems)
    if failed:
        option = "" if failed <= REPAIRABLE else " with force=true"
        print_problems([f"{folder}: {len(failed)} of {checks} checks failed. Prepare it again{option}."])
        return Failure.exit_code
    say(f"{folder}: {checks} checks passed")
    return 0
