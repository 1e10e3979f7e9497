"""Search the logs of all ranks of a run, or of all points of a sweep, or show their last lines.

nano3 logs my_run --grep "out of memory" -i
nano3 logs output/nano3/runs/my_sweep --grep "^error"
nano3 logs my_run --rank 3 -n 50

The pattern is a regular expression. The logs are RUN/logs/rank_N.log and those of the run's Slurm jobs; a line that is
in both is shown once. Exit code 1 means that no line matches.
"""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from launch import job_records, local_job
from launch.follow import tail_lines
from launch.names import natural_order
from nano3.tools._arguments import RUNS, at_least, find_run, find_runs_below
from nano3.utils.console import printable, write
from nano3.utils.errors import Failure, UserError, list_some

HELP = "search the logs of all ranks of a run or a sweep"
ONLY_SHOWS = True
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class RankLog(NamedTuple):
    """One log of one rank."""

    # The run's path below the folder of the sweep; "" for a single run.
    point: str
    rank: int
    file: Path

    @property
    def heading(self) -> str:
        """The line above what is shown of this log."""
        return printable(f"{self.point}{', ' if self.point else ''}rank {self.rank}: {self.file}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("run", help=f"folder of a run or a sweep, or its name under {RUNS}")
    parser.add_argument("--grep", metavar="PATTERN", help="show every line that matches, with its number")
    parser.add_argument("-i", "--ignore-case", action="store_true", help="with --grep: ignore case")
    parser.add_argument("--rank", type=at_least(0), help="only this rank (default: all)")
    parser.add_argument(
        "-n", "--lines", type=at_least(1), default=20, help="without --grep: last lines of each rank (default: 20)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    folder = find_run(args.run)
    pattern = compile_pattern(args.grep, args.ignore_case) if args.grep is not None else None
    logs = find_logs(folder, args.rank)
    if pattern is None:
        return show_ends(logs, args.lines)
    if not search_logs(logs, pattern):
        write(f"no line of {len(logs)} logs matches {printable(args.grep)}\n", stderr=True)
        return Failure.exit_code
    return 0


def compile_pattern(text: str, ignore_case: bool) -> re.Pattern[str]:
    """Return a regular expression.

    Args:
        text: The expression.
        ignore_case: Whether it matches upper and lower case alike.

    Raises:
        UserError: It is not one.
    """
    try:
        return re.compile(text, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        literal = shlex.quote(re.escape(text))
        raise UserError(
            f"--grep {text!r} is not a regular expression ({error}). To search for this text: --grep {literal}"
        ) from None


def find_logs(folder: Path, rank: int | None = None) -> list[RankLog]:
    """Return the logs of a run, or of all points of a sweep, in the order of points, ranks and starts.

    Args:
        folder: Folder of the run or the sweep.
        rank: Only this rank.

    Raises:
        UserError: There is no run, no log, or no log of this rank.
    """
    runs = sorted(find_runs_below(folder), key=natural_order)
    if not runs:
        raise UserError(f"{folder}: no run was started there. `nano3 jobs` lists all runs.")
    logs = []
    for run_dir in runs:
        point = "" if run_dir == folder else str(run_dir.relative_to(folder))
        logs += sorted((RankLog(point, number, file) for number, file in _files(run_dir)), key=lambda log: log.rank)
    if not logs:
        raise UserError(f"{folder}: there are no logs yet, or the run wrote to the terminal that started it.")
    ranks = sorted({log.rank for log in logs})
    if rank is not None and rank not in ranks:
        raise UserError(f"{folder}: there is no log of rank {rank}. There are logs of: {list_some(map(str, ranks))}.")
    return [log for log in logs if rank in (None, log.rank)]


def _files(run_dir: Path) -> Iterator[tuple[int, Path]]:
    """Yield the rank and the file of each log of a run: its own logs, then those of its jobs, oldest first."""
    found = set()
    for file in run_dir.glob("logs/rank_*.log"):
        if match := re.fullmatch(r"rank_(\d+)\.log", file.name):
            found.add(file.absolute())
            yield int(match[1]), file
    job = local_job.newest_local_job(run_dir)
    if job and job.log and Path(job.log).absolute() not in found and Path(job.log).exists():
        yield 0, Path(job.log)
    for record in job_records.read_records(run_dir):
        for job_id in record.ids:
            for file in sorted(Path(record.log).parent.glob(f"{job_id}_*_log.out")):
                if match := re.fullmatch(rf"{job_id}_(?:\d+_)?(\d+)_log\.out", file.name):
                    yield int(match[1]), file


def search_logs(logs: list[RankLog], pattern: re.Pattern[str]) -> int:
    """Print the lines of some logs that match, under a heading for each log; return how many there are.

    Args:
        logs: The logs, those of one rank one after another.
        pattern: What to search for.
    """
    count = 0
    shown: dict[tuple[str, int], set[str]] = {}
    for log in logs:
        before = shown.setdefault((log.point, log.rank), set())
        new: set[str] = set()
        for number, line in _matching_lines(log.file, pattern):
            if line in before:  # nano3's own lines are in the rank's log and in that of the job
                continue
            if not new:
                write(f"{log.heading}\n")
            new.add(line)
            count += 1
            write(f"  {number}: {line}\n")
        before |= new
    return count


def _matching_lines(file: Path, pattern: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Yield the matching lines of a log with their numbers, without colors."""
    with file.open("rb") as log:
        for number, raw in enumerate(log, 1):
            line = _COLOR.sub("", raw.decode(errors="replace")).rstrip("\r\n")
            if pattern.search(line):
                yield number, line


def show_ends(logs: list[RankLog], lines: int) -> int:
    """Print the last lines of each rank: of the log that was written to last.

    Args:
        logs: The logs.
        lines: How many lines to print of each.
    """
    newest: dict[tuple[str, int], RankLog] = {}
    for log in logs:
        best = newest.get((log.point, log.rank))
        if best is None or log.file.stat().st_mtime > best.file.stat().st_mtime:
            newest[log.point, log.rank] = log
    for log in newest.values():
        write(f"{log.heading}\n")
        write("".join(f"  {line}\n" for line in tail_lines(log.file, lines)))
    return 0
