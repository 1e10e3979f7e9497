"""Write what `nano3 plan` prints, and how accurate it is, into docs/how-many-gpus.md and plan_accuracy.txt:

    plan_page.py

A block that begins with `$ python -m nano3 plan` gets the output of that command; the block that begins with
`$ python benchmarks/gpu/plan_accuracy.py` gets the comparison with all that was measured.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from plan_accuracy import RESULTS, everything, report

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-many-gpus.md"
ACCURACY = RESULTS / "plan_accuracy.txt"
BLOCK = re.compile(r"^```text\n\$ ([^\n]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def output_of(command: str) -> str:
    """Return what a command of the page prints."""
    program, *words = shlex.split(command)
    if words[0].endswith("plan_accuracy.py"):
        return report(everything())
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert program == "python" and not done.stderr, done.stderr
    return done.stdout


def filled(text: str) -> str:
    """Return the page with its blocks filled."""

    def block(match: re.Match[str]) -> str:
        return f"```text\n$ {match[1]}\n{output_of(match[1]).rstrip()}\n```"

    return BLOCK.sub(block, text)


def accuracy() -> str:
    """Return the text of plan_accuracy.txt."""
    return f"$ python benchmarks/gpu/plan_accuracy.py\n{report(everything())}\n"


if __name__ == "__main__":
    ACCURACY.write_text(accuracy())
    PAGE.write_text(filled(PAGE.read_text()))
