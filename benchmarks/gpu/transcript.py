"""Print the logs of `tests/gpu` as one text, without the output of Megatron-Bridge:

    python benchmarks/gpu/transcript.py LOGS [PYTEST.txt ...]

First the result of each test, then every command that the tests ran, by start time, with the lines of nano3.
"""

import re
import sys
from pathlib import Path

STARTS = (
    *("$ ", "fresh start", "resuming", "removing", "removed", "new phase", "adapted", "first step done", "iterations "),
    *("validation", "warning", "error", "stopped", "finished", "already finished", "Run ", "training loss", "speed"),
    *("RESULT", "spans:", "guard: ", "sample  ", "[exiting program", "[exit code", "launch: "),
)
ITERATION = re.compile(r"iteration +\d")
PYTEST = re.compile(r"(\[gw\d+\] \[ *\d+%\] )?(PASSED|FAILED|ERROR) |=+ .*(passed|failed)")
PREFIXES = ("/tmp/nano3-gpu/", f"{Path(__file__).resolve().parents[2]}/")
WIDTH = 400


def shortened(line: str) -> str:
    """Return a line without the folders of the machine, cut to `WIDTH`."""
    for prefix in PREFIXES:
        line = line.replace(prefix, "")
    return line[:WIDTH]


def main() -> None:
    logs, *reports = (Path(argument) for argument in sys.argv[1:])
    for path in reports:
        text = path.read_text()
        side_by_side = "[gw" in text  # pytest-xdist prints each test twice
        print(f"######## {path.name}")
        for line in text.splitlines():
            if PYTEST.match(line) and not (side_by_side and line.startswith("PASSED")):
                print(shortened(line).rstrip())
        print()
    numbered = [path for path in logs.iterdir() if path.name[0].isdigit()]  # the rest are notes of tests
    for path in sorted(numbered, key=lambda p: [float(number) for number in p.stem.split("_")]):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith(STARTS) or ITERATION.match(line):
                print(shortened(line))
        print()


if __name__ == "__main__":
    main()
