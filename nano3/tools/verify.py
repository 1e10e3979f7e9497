"""Check prepared data against its manifest: checksums, index structure, token range, end-of-document tokens, counts.

Exit code 1 when anything is wrong; every problem names its file.
"""

import argparse
import os
import sys

from nano3.console import say
from nano3.tools._arguments import at_least
from nano3.tools._folders import data_folder

HELP = "check prepared data against its manifest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a folder made by nano3.data_prep, or its artifact (NAME:ALIAS)")
    parser.add_argument(
        "--threads", type=at_least(1), default=os.cpu_count() or 1, help="shards checked at a time (default: cores)"
    )


def run(args: argparse.Namespace) -> int:
    from nano3.data.verify import verify

    folder = data_folder(args.data)
    looked = wrong = 0
    for _, problems in verify(folder, args.threads):
        looked += 1
        wrong += bool(problems)
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
    if wrong:
        print(f"error: {folder}: {wrong} of {looked} checks failed. Prepare it again with force=true.", file=sys.stderr)
        return 1
    say(f"{folder}: {looked} checks passed")
    return 0
