"""Check prepared data against its manifest: checksums, index structure, token range, end-of-document tokens, counts.

nano3 verify data

Exit code 1 when anything is wrong; every problem names its file.
"""

import argparse
import os

from nano3.tools._arguments import at_least
from nano3.tools._folders import data_folder
from nano3.utils.console import print_problems, say

HELP = "check prepared data against its manifest"
# What the same preparation puts right without doing the rest anew.
WRITTEN_AGAIN = {"tokenizer", "blend.json"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a folder made by nano3.data_prep, or its artifact (NAME:ALIAS)")
    parser.add_argument(
        "--threads", type=at_least(1), default=os.cpu_count() or 1, help="shards checked at a time (default: cores)"
    )


def run(args: argparse.Namespace) -> int:
    from nano3.data.dataset.verify import verify

    folder = data_folder(args.data)
    looked = 0
    wrong: set[str] = set()
    for what, problems in verify(folder, args.threads):
        looked += 1
        if problems:
            wrong.add(what)
        print_problems(problems)
    if wrong:
        how = "" if wrong <= WRITTEN_AGAIN else " with force=true"
        print_problems([f"{folder}: {len(wrong)} of {looked} checks failed. Prepare it again{how}."])
        return 1
    say(f"{folder}: {looked} checks passed")
    return 0
