"""Check prepared data against its manifest: checksums, index structure, token range, end-of-document tokens, counts.

Exit code 1 when anything is wrong; every problem names its file.
"""

import argparse
import os
import sys
from pathlib import Path

from nano3.console import say

HELP = "check prepared data against its manifest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="a folder made by nano3.data_prep")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="shards checked at a time (default: cores)"
    )


def run(args: argparse.Namespace) -> int:
    from nano3.data.verify import verify

    looked = wrong = 0
    for _, problems in verify(args.data, max(1, args.threads)):
        looked += 1
        wrong += bool(problems)
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
    if wrong:
        print(
            f"error: {args.data}: {wrong} of {looked} checks failed. Prepare it again with force=true.", file=sys.stderr
        )
        return 1
    say(f"{args.data}: {looked} checks passed")
    return 0
