"""`python -m nano3.training RUN/config.yaml`: one rank of a frozen run; see nano3/training/frozen.py."""

import sys

from nano3.cli import leave
from nano3.disk import disk_errors
from nano3.errors import Nano3Error
from nano3.training import frozen

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nano3.training RUN/config.yaml")
    try:
        with disk_errors("standard output"):
            sys.exit(frozen.main(sys.argv[1]))
    except Nano3Error as error:
        leave(error)
