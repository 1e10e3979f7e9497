"""A fault for tests, in every Python whose PYTHONPATH has this folder: rank 1 never enters a collective.

It leaves the first `torch.distributed.all_reduce` after the file $NANO3_FAULT exists, as a rank does whose data loader
or file server never answers. It is not stopped, so it notices the hang itself.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def read_from_a_server_that_never_answers() -> None:
    while True:
        time.sleep(1)


def leave_a_collective_out(trigger: Path) -> None:
    """Replace all_reduce as soon as torch.distributed is imported."""
    while not hasattr(sys.modules.get("torch.distributed"), "all_reduce"):
        time.sleep(0.02)
    import torch.distributed

    all_reduce = torch.distributed.all_reduce

    def leave_out(*args: Any, **kwargs: Any) -> Any:
        if trigger.exists():
            read_from_a_server_that_never_answers()
        return all_reduce(*args, **kwargs)

    torch.distributed.all_reduce = leave_out


if "NANO3_FAULT" in os.environ and os.environ.get("RANK") == "1":
    threading.Thread(target=leave_a_collective_out, args=(Path(os.environ["NANO3_FAULT"]),), daemon=True).start()
