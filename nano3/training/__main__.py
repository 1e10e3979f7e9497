"""`python -m nano3.training RUN/config.yaml`: train in one rank of a run (see nano3/training/rank_main.py)."""

import sys

from nano3.cli.process import exit_with_error
from nano3.training import rank_main
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import Nano3Error

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nano3.training RUN/config.yaml")
    try:
        with translate_disk_errors("standard output"):
            sys.exit(rank_main.main(sys.argv[1]))
    except Nano3Error as error:
        exit_with_error(error)
