"""The logs of `tests/gpu` as one text, without what Megatron-Bridge says itself:

    python benchmarks/gpu/transcript.py LOGS [PYTEST.txt ...]

First what pytest said of each test, then every command that the tests ran, in order of its start, with nano3's own
lines.
"""

import re
import sys
from pathlib import Path

STARTS = (
    *("$ ", "fresh start", "resuming", "removing", "removed", "new phase", "adapted", "first step done", "iterations "),
    *("validation", "warning", "error", "stopped", "finished", "already finished", "Run ", "training loss", "speed"),
    *("TOLD", "stretches:", "spans:", "sample  ", "[exiting program", "[exit code"),
)
ITERATION = re.compile(r"iteration +\d")
PYTEST = re.compile(r"(\[gw\d+\] \[ *\d+%\] )?(PASSED|FAILED|ERROR) |=+ .*(passed|failed)")
PLACES = ("/tmp/nano3-gpu/", "/work/main/")
WIDTH = 400


def shortened(line: str) -> str:
    """Folders of the machine left out, and cut."""
    for place in PLACES:
        line = line.replace(place, "")
    return line[:WIDTH]


def main() -> None:
    logs, *told = (Path(argument) for argument in sys.argv[1:])
    for path in told:
        text = path.read_text()
        side_by_side = "[gw" in text  # then pytest tells each test twice
        print(f"######## {path.name}")
        for line in text.splitlines():
            if PYTEST.match(line) and not (side_by_side and line.startswith("PASSED")):
                print(shortened(line).rstrip())
        print()
    for path in sorted(logs.iterdir(), key=lambda p: [float(part) for part in p.stem.split("_")]):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith(STARTS) or ITERATION.match(line):
                print(shortened(line))
        print()


if __name__ == "__main__":
    main()
