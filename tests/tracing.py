"""What a record of a hang contains where the tests may, and may not, read the memory of another process."""

import shutil
import subprocess
import sys
import time
from functools import cache

from nano3.utils.process_stack import FORBIDDEN


@cache
def may_trace() -> bool:
    """Return whether py-spy can read a child of this process."""
    program = shutil.which("py-spy", path=f"{sys.prefix}/bin")
    assert program
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        time.sleep(1)
        done = subprocess.run([program, "dump", "--nonblocking", "--pid", str(child.pid)], capture_output=True)
        child.kill()
    return done.returncode == 0


def has_stack(record: str, frame: str) -> bool:
    """Return whether a text contains a frame, or how to allow reading it where that is forbidden."""
    return frame in record or (not may_trace() and FORBIDDEN in record)
