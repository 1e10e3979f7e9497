"""First code of every rank: `python boot.py -m MODULE ARGS...` puts this file's snapshot first on the module path.

PYTHONPATH alone would not do: a container image may set its own, and `python -m` puts the working folder first. This
file imports the standard library only, because the container's Python runs it.
"""

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run MODULE as __main__, with the snapshot first and its fallback packages last on the module path."""
    code = str(Path(__file__).resolve().parent)
    fallback = str(Path(code) / "spare")
    arguments = sys.argv[1:]
    while arguments and arguments[0] != "-m":  # the job script has "-u -m module"
        arguments.pop(0)
    sys.path[0] = code
    sys.path.append(fallback)
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != code]
    os.environ["PYTHONPATH"] = os.pathsep.join([code, *inherited])
    os.environ["PYTHONSAFEPATH"] = "1"  # child processes must not put the working folder first either
    os.environ["PYTHONUNBUFFERED"] = "1"
    sys.argv = arguments[1:]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
