"""Capture what a user sees of a sweep on Slurm: the live table at 24 and 50 lines, and `nano3 jobs --watch`.

    make slurm-up && . .slurm/env.sh && python benchmarks/launch/screens.py

tmux shows the commands on terminals of these sizes, and its captures are written to benchmarks/results/screens.md. The
sweep has 60 points that train nothing (screen_sweep.py), six at a time; three of them fail. It takes three minutes.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULT = ROOT / "benchmarks" / "results" / "screens.md"
SOCKET = f"nano3-screens-{os.getpid()}"
POINTS = 60


def tmux(*words: str) -> str:
    return subprocess.run(["tmux", "-L", SOCKET, *words], check=True, capture_output=True, text=True).stdout


class Screen:
    """A command on a terminal of a given size."""

    def __init__(self, name: str, command: list[str], work: Path, columns: int, lines: int) -> None:
        self.name, self.command, self.size = name, command, f"{columns} columns, {lines} lines"
        # The shell stays, so that the last screen can be captured.
        words = f'cd {shlex.quote(str(work))} && {shlex.join(command)}; echo "exit code $?"; sleep 600'
        tmux("new-session", "-d", "-s", name, "-x", str(columns), "-y", str(lines), "sh", "-c", words)
        self.lines = lines

    def text(self) -> str:
        return tmux("capture-pane", "-p", "-t", self.name).rstrip("\n")

    def wait_for(self, condition: Callable[[str], object], seconds: float = 600) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition(text := self.text()):
                return text
            time.sleep(0.5)
        sys.exit(f"{self.name}: not so after {seconds} s:\n{self.text()}")


def main() -> None:
    shutil.which("tmux") or sys.exit("tmux is not installed: apt-get install tmux")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{HERE}"
    os.environ["TERM"] = "screen-256color"
    work = Path(tempfile.mkdtemp(prefix="nano3-screens-"))
    runs = work / "output" / "nano3" / "runs"
    python = [sys.executable, "-m", "nano3"]
    captured: list[tuple[str, Screen, str]] = []
    try:
        sweep = [sys.executable, str(HERE / "screen_sweep.py"), "output/nano3/runs/study", str(POINTS)]
        first = Screen("sweep", sweep, work, 130, 24)
        busy = lambda text: re.search(r"[12] failed, [1-6] running, \d+ pending, \d+ finished", text)  # noqa: E731
        first.wait_for(lambda text: "running" in text)
        captured.append(("The sweep's command, soon after its start", first, first.text()))
        captured.append(("The same, later", first, first.wait_for(busy)))
        third = Screen("jobs", [*python, "jobs", "--active", "--watch", "2"], work, 160, 24)
        captured.append(("`nano3 jobs --active --watch`", third, third.wait_for(lambda text: "running" in text)))
        second = Screen("tail", [*python, "tail", "study"], work, 130, 50)
        late = second.wait_for(lambda text: re.search(r" 4\d finished", text))
        captured.append(("A second terminal: attached again with `nano3 tail`", second, late))
        done = lambda text: "exit code" in text and "points finished" in text  # noqa: E731
        captured.append(("At its end", first, first.wait_for(done)))
        search = Screen("logs", [*python, "logs", "study", "--grep", "out of memory"], work, 130, 24)
        text = search.wait_for(lambda text: "exit code" in text)
        captured.append(("`nano3 logs`", search, text))
    finally:
        tmux("kill-server")
        if (runs / "study").exists():
            subprocess.run([*python, "cancel", str(runs / "study")], check=False, capture_output=True)
    sections = [f"# Screens of a sweep of {POINTS} points on Slurm\n\nWritten by `benchmarks/launch/screens.py`."]
    for title, screen, text in captured:
        assert len(text.splitlines()) <= screen.lines
        text = text.replace(str(work), "/home/me").replace(sys.executable, "python")
        command = shlex.join(["python", *screen.command[1:]]).replace(f"{HERE}/", "")
        sections.append(f"## {title}\n\n`{command}`, {screen.size}\n\n```text\n{text}\n```")
    RESULT.write_text("\n\n".join(sections) + "\n")
    print(f"wrote {RESULT}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
