"""`launch.torchrun_rank FOLDER module:function ARGS...`: one rank under torchrun, with what torchrun does not keep.

torchrun ends all ranks when one exits with anything but 0, and itself exits with 1 whatever the rank's code was. So
every rank leaves its code in FOLDER/RANK.exit, and 75 is told to torchrun as success: a rank that has saved must not
end the others while they save. Ranks other than 0 write to FOLDER/rank_RANK.log.

torchrun holds the run folder (launch.lock) for its ranks, so a rank must not outlive it.
"""

import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path

from launch.job import AGAIN
from launch.rank import run_rank

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> int:
    """The command line."""
    folder, entry, *args = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    place, rank = Path(folder), os.environ["RANK"]
    (place / f"{rank}.pid").write_text(str(os.getpid()))
    if rank == "0":
        os.dup2(1, 2)  # launch sends torchrun's own stderr, which rank 0 inherits, to a file
    else:
        log = os.open(place / f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
    try:
        code = run_rank(entry, tuple(args))
    except Exception:
        traceback.print_exc()
        code = 1
    (place / f"{rank}.exit").write_text(str(code))
    return 0 if code == AGAIN else code


if __name__ == "__main__":
    sys.exit(main())
