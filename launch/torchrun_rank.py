"""Run one rank under torchrun: `python -m launch.torchrun_rank FOLDER module:function ARGS...`.

torchrun ends all ranks when one exits with anything but 0, and its own exit code is always 1 then. So each rank leaves
files in FOLDER (RUN_DIR/logs) for launch.local, and reports 75 and 77 as success: a rank that has saved must not end
the others while they save.

    RANK.pid       process id of the rank, for signals
    RANK.exit      exit code of the rank
    rank_RANK.log  output of the rank, of all starts; rank 0 writes to torchrun's own output, and its entry keeps a log

torchrun holds the run lock (launch.lock) for its ranks, so a rank must not outlive it.
"""

import os
import sys
from pathlib import Path

from launch.rank import run_rank
from nano3.utils.child_processes import exit_with_parent
from nano3.utils.console import flush_output, prepare_output
from nano3.utils.errors import RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE


def main() -> int:
    """Parse the command line and run the rank."""
    folder, entry, *args = sys.argv[1:]
    prepare_output()  # before dup2: a stream that becomes a pipe cannot be changed
    exit_with_parent()
    logs, rank = Path(folder), os.environ["RANK"]
    (logs / f"{rank}.pid").write_text(str(os.getpid()))
    if rank == "0":
        os.dup2(1, 2)  # rank 0 inherits torchrun's stderr, which launch sends to a file
    else:
        log = os.open(logs / f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
    try:
        code = run_rank(entry, tuple(args))
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    flush_output()
    try:
        (logs / f"{rank}.exit").write_text(str(code))
    except OSError:  # a full disk: without the file, only the exit code can tell
        return code
    return 0 if code in (RESTART_EXIT_CODE, ROLLBACK_EXIT_CODE) else code


if __name__ == "__main__":
    sys.exit(main())
