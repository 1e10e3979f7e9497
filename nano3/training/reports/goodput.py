"""Where the hours of a run went, from the seconds in its metrics.jsonl: as a bar, and start by start."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from nano3.training.run.run_clock import PARTS, PREFIX
from nano3.training.run.startup_timer import PREFIX as STARTUP
from nano3.utils.console import duration_text


class Part(NamedTuple):
    """How a part of the time is shown: its name, its letter in a bar of text, its color."""

    name: str
    letter: str
    color: str


SHOWN = {
    "step": Part("training steps", "█", "#0072B2"),
    "data": Part("waiting for data", "d", "#56B4E9"),
    "valid": Part("validation", "v", "#009E73"),
    "save": Part("saving", "s", "#CC79A7"),
    "start": Part("starting", "i", "#E69F00"),
    "lost": Part("lost work", "L", "#D55E00"),
    "hang": Part("hangs", "h", "#B22222"),
    "interrupted": Part("interruptions", "x", "#999999"),
    "down": Part("between starts", ".", "#DDDDDD"),
}
WIDTH = 50  # characters of a bar of text


class Stage(NamedTuple):
    """A stage of a start: its name, the names of its parts in metrics.jsonl, its budget in seconds, and what helps.

    The budgets are those of a restart, with compiled kernels and modules kept (benchmarks/results/gpu/README.md).
    """

    name: str
    recorded: tuple[str, ...]
    budget_s: float
    help: str


STAGES = (
    Stage(
        "checks",
        ("checks",),
        5,
        "data files are checked, and a resume reads its checkpoint to verify it: a faster disk",
    ),
    Stage("imports", ("imports", "imports_and_recipe"), 30, "packages on a local disk or in the image, and compiled"),
    Stage(
        "data and model",
        ("data", "model_and_checkpoint", "model_data_and_checkpoint"),
        15,
        "the first start builds the order of samples (`nano3 index` does it before); later ones read it and the "
        "checkpoint: a faster disk",
    ),
    Stage("first step", ("first_step",), 20, "the first start compiles kernels: share $NANO3_CACHE between nodes"),
)


@dataclass
class Start:
    """One start of a run.

    Attributes:
        number: 1 is the first.
        iteration: The iteration that it resumed from.
        gap_s: Seconds since the start before it ended, or since its last record if it wrote no end.
        before: How the start before it ended.
        lost_iterations: Iterations to repeat, of those that were recorded.
        lost_s: Their seconds.
        startup_s: Seconds until its first step was finished.
        exit_code: How it ended; None if it runs or was killed.
        stages: Seconds of each stage until its first step was finished, by name in `STAGES`.
    """

    number: int
    iteration: int
    gap_s: float
    before: str
    lost_iterations: int
    lost_s: float
    startup_s: float = 0.0
    exit_code: int | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class TimeUse:
    """The seconds of each part in `SHOWN`, over all starts of a run, and the starts."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SHOWN, 0.0))
    starts: list[Start] = field(default_factory=list)

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the training steps."""
        return self.seconds["step"] / self.total if self.total else 0.0

    def shares(self) -> list[tuple[Part, float]]:
        """Return the parts that took any time, with their shares."""
        return [(SHOWN[key], seconds / self.total) for key, seconds in self.seconds.items() if seconds > 0]


def time_use(lines: Sequence[dict[str, Any]]) -> TimeUse | None:
    """Return where the time went, or None if the lines have no seconds: those of nano3 0.1.0."""
    found = TimeUse()
    for line in lines:
        if "start" in line:
            found.starts.append(_start(line))
            for part in ("lost", "hang", "interrupted", "down"):
                found.seconds[part] += line.get(f"{part}_s", 0.0)
        for part in PARTS:
            found.seconds[part] += line.get(PREFIX + part, 0.0)
        if found.starts:
            found.starts[-1].stages.update(_stages(line))
            found.starts[-1].startup_s += line.get(PREFIX + "start", 0.0)
            found.starts[-1].exit_code = line.get("exit_code", found.starts[-1].exit_code)
    return found if found.total else None


def _stages(line: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each stage, if this is the line of a start's first step."""
    found = {}
    for stage in STAGES:
        seconds = [line[STARTUP + name] for name in stage.recorded if STARTUP + name in line]
        if seconds:
            found[stage.name] = sum(seconds)
    return found


def _start(line: dict[str, Any]) -> Start:
    before = (
        "hung" if "hang_s" in line else "killed" if "interrupted_s" in line else "ended" if "down_s" in line else ""
    )
    return Start(
        number=line["start"],
        iteration=line["iteration"],
        gap_s=sum(line.get(f"{part}_s", 0.0) for part in ("hang", "interrupted", "down")),
        before=before,
        lost_iterations=line.get("lost_iterations", 0),
        lost_s=line.get("lost_s", 0.0),
    )


def text_bar(use: TimeUse) -> str:
    """Return a bar of `WIDTH` letters and what each letter means, in two lines."""
    bar, done = "", 0.0
    for part, share in use.shares():
        done += share
        bar += part.letter * (round(done * WIDTH) - len(bar))
    meaning = "  ".join(f"{part.letter} {part.name} {share:.1%}" for part, share in use.shares())
    return f"[{bar}] goodput {use.goodput:.1%} of {duration_text(use.total)}\n{meaning}"


def html_bar(use: TimeUse) -> str:
    """Return a bar and its legend as HTML."""
    blocks, legend = "", ""
    for part, share in use.shares():
        blocks += (
            f"<span title='{escape(part.name)} {share:.1%}' style='width:{share:.4%};background:{part.color}'></span>"
        )
        legend += f"<li><i style='background:{part.color}'></i>{escape(part.name)} {share:.1%}</li>"
    return f"<div class='bar'>{blocks}</div><ul class='legend'>{legend}</ul>"


START_COLUMNS = ("start", "resumed from", "after", "start before it", "repeated iterations", "lost", "startup", "end")


def start_rows(use: TimeUse, last: int = 10) -> list[list[str]]:
    """Return the cells of the last starts, under `START_COLUMNS`."""
    return [
        [
            str(start.number),
            f"{start.iteration:,}",
            duration_text(start.gap_s) if start.gap_s else "",
            start.before,
            f"{start.lost_iterations:,}" if start.lost_iterations else "",
            duration_text(start.lost_s) if start.lost_s else "",
            duration_text(start.startup_s),
            "" if start.exit_code is None else f"exit code {start.exit_code}",
        ]
        for start in use.starts[-last:]
    ]


STAGE_COLUMNS = ("start", *(stage.name for stage in STAGES), "together")


def stage_rows(use: TimeUse, last: int = 10) -> list[list[str]]:
    """Return the seconds of each stage of the last starts, under `STAGE_COLUMNS`, above the budgets.

    Stages over their budget are marked with "!". Empty if no start has finished a step.
    """
    rows = []
    for start in [start for start in use.starts if start.stages][-last:]:
        cells = [
            f"{seconds:.1f}{'!' if seconds > stage.budget_s else ''}"
            if (seconds := start.stages.get(stage.name))
            else ""
            for stage in STAGES
        ]
        rows.append([str(start.number), *cells, f"{sum(start.stages.values()):.1f}"])
    if rows:
        rows.append(["budget", *(f"{stage.budget_s:g}" for stage in STAGES), f"{sum(s.budget_s for s in STAGES):g}"])
    return rows


def over_budget(use: TimeUse) -> list[str]:
    """Return what helps against each stage of the newest start that took longer than its budget."""
    stages = next((start.stages for start in reversed(use.starts) if start.stages), {})
    return [
        f"{stage.name} took {seconds:.0f} s, budget {stage.budget_s:g} s: {stage.help}"
        for stage in STAGES
        if (seconds := stages.get(stage.name, 0.0)) > stage.budget_s
    ]
