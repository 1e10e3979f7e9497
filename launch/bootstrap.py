"""First code of a rank: `python boot.py -m MODULE ARGS...` puts the snapshot that holds this file before everything
else.

PYTHONPATH would do the same, but a container image may set its own, and `python -m` puts the working folder first.
Only the standard library: the container's Python runs this.
"""

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run MODULE as __main__ with the snapshot first and its spare packages last on the module path."""
    code = str(Path(__file__).resolve().parent)
    spare = str(Path(code) / "spare")
    arguments = sys.argv[1:]
    while arguments and arguments[0] != "-m":  # submitit writes "-u -m module"
        arguments.pop(0)
    sys.path[0] = code
    sys.path.append(spare)
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != code]
    os.environ["PYTHONPATH"] = os.pathsep.join([code, *inherited])
    os.environ["PYTHONSAFEPATH"] = "1"  # no working folder first in child processes either
    os.environ["PYTHONUNBUFFERED"] = "1"
    sys.argv = arguments[1:]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
