"""Fit a scaling law to finished runs of several sizes, and predict the loss of the full model.

nano3 scaling output/nano3/runs/scaling
nano3 scaling scaling --predict +experiment=nano3 --output scaling.html

Takes run folders, or a folder of runs such as a sweep's. L = E + A / N^a + B / D^b, with N the active parameters
without embedding and output matrix, D the training tokens and L the validation loss, needs six runs in which sizes
and tokens vary. With one ratio of tokens to parameters, four runs give L = E + K / C^k over compute C = 6 N D.
docs/which-size.md says what the prediction is worth.
"""

import argparse
import math
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.config import PretrainConfig
from nano3.tools._arguments import RUNS
from nano3.tools._html_page import html_page, html_table, needs_matplotlib, write_page
from nano3.tools.plan import compose_run
from nano3.tools.report import find_started_runs, unique_names
from nano3.training.preflight import MAX_USEFUL_EPOCHS
from nano3.utils.command_line import CommandLine
from nano3.utils.console import say, short_number, table, warn
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import expand_user

if TYPE_CHECKING:  # they import numpy, which `nano3 --help` can do without
    from nano3.training.reports.scaling_law import Law, Point
    from nano3.training.reports.scaling_points import MeasuredRun

HELP = "fit a scaling law to runs of several sizes, and predict the full model"
FULL_MODEL = ["+experiment=nano3"]
MEASURED_COLUMNS = ["run", "active parameters", "tokens", "tokens / parameter", "compute", "epochs", "loss"]
POINT_COLUMNS = [*MEASURED_COLUMNS, "law", "off"]
LAW_COLUMNS = ["constant", "value", "interval of 90 %"]
# Beyond these ratios of compute to that of the largest run, a prediction is called far, and a guess.
FAR, TOO_FAR = 100, 10_000
# The law over compute speaks of runs with the points' ratio of tokens to parameters, within this factor.
SAME_RATIO = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help=f"run folder or its name under {RUNS}, or a folder of runs (a sweep)"
    )
    parser.add_argument(
        "--predict", nargs="+", metavar="WORD", default=FULL_MODEL,
        help="words of nano3.pretrain for the run to predict (default: +experiment=nano3)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FILE", type=expand_user, default="scaling.html", help="page (default: scaling.html)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    from nano3.training.reports.scaling_law import fit, least_points, usable_terms
    from nano3.training.reports.scaling_points import comparison_problems

    folders = list(dict.fromkeys(folder for name in args.runs for folder in find_started_runs(name)))
    target = read_target(args.predict)
    runs, left_out = measured_runs(unique_names(folders))
    for sentence in left_out:
        warn(f"left out: {sentence}")
    if problems := comparison_problems(runs):
        raise UserError(problems)
    points = [one.point for one in runs]
    terms = usable_terms(points)
    if len(points) < least_points(terms):
        show_points(runs, None)
        raise Failure(too_few(points, terms))
    law = fit(points, terms)
    show_points(runs, law)
    table(f"law {formula(law)}", LAW_COLUMNS, law_rows(law), right=LAW_COLUMNS[1:])
    sentences = conclusions(law, runs, target)
    for sentence in sentences:
        say(sentence)
    page = make_page(law, runs, target, sentences, "nano3 scaling " + shlex.join(args.runs))
    write_page(Path(args.output), page)
    say(f"scaling law of {len(points)} runs: {args.output}")
    return 0


def read_target(words: Sequence[str]) -> "Point":
    """Return the run to predict; its loss is not known.

    Raises:
        UserError: With everything that is wrong with the words.
    """
    from nano3.training.reports.scaling_law import Point
    from nano3.training.reports.scaling_points import counted_parameters, training_tokens

    line = CommandLine.parse(list(words))
    if line.other:
        raise UserError([f"--predict {word}: expected KEY=VALUE, as for nano3.pretrain" for word in line.other])
    config: PretrainConfig = compose_run(line)
    return Point(" ".join(words), counted_parameters(config)[0], training_tokens(config), math.nan)


def measured_runs(folders: dict[str, Path]) -> "tuple[list[MeasuredRun], list[str]]":
    """Return the finished runs, smallest first, and a sentence for each one that is left out.

    Args:
        folders: Run folders by name.
    """
    from nano3.training.reports.scaling_points import MeasuredRun, measure_run

    found = [measure_run(name, folder) for name, folder in folders.items()]
    runs = [one for one in found if isinstance(one, MeasuredRun)]
    runs.sort(key=lambda one: (one.point.parameters, one.point.tokens))
    return runs, [one for one in found if isinstance(one, str)]


def too_few(points: "Sequence[Point]", terms: Sequence[str]) -> str:
    """Return what is missing for a law.

    Args:
        points: The finished runs.
        terms: The terms that they could determine.
    """
    from nano3.training.reports.scaling_law import least_points

    return (
        f"{len(points)} finished runs are too few for a law with {least_points(terms) - 1} constants: it needs "
        f"{least_points(terms)}. Train more sizes, and each with several numbers of tokens: "
        "ladder.size=... ladder.tokens_per_parameter=10,20,40"
    )


def formula(law: "Law") -> str:
    """Return the law in letters."""
    return "L = E + A / N^a + B / D^b" if law.terms == ("N", "D") else "L = E + K / C^k"


def ratio_text(point: "Point") -> str:
    """Return the tokens for each parameter: 8,694 or 20 or 0.05."""
    ratio = point.tokens / point.parameters
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def point_rows(runs: "Sequence[MeasuredRun]", law: "Law | None") -> list[list[str]]:
    """Return a row for each run: the cells of POINT_COLUMNS, or without a law those of MEASURED_COLUMNS."""
    rows = []
    for one in runs:
        p = one.point
        by_law = law.predict(p)[0] if law else None
        rows.append([
            p.name, short_number(p.parameters), short_number(p.tokens), ratio_text(p),
            f"{p.compute:.2e}", "" if one.epochs is None else f"{one.epochs:.2f}", f"{p.loss:.4f}",
            *([] if by_law is None else [f"{by_law:.4f}", f"{by_law / p.loss - 1:+.2%}"]),
        ])  # fmt: skip
    return rows


def show_points(runs: "Sequence[MeasuredRun]", law: "Law | None") -> None:
    """Print the table of the runs."""
    columns = POINT_COLUMNS if law else MEASURED_COLUMNS
    table("points", columns, point_rows(runs, law), right=columns[1:])


def law_rows(law: "Law") -> list[list[str]]:
    """Return a row for each constant of the law."""
    return [[name, f"{value:.4g}", f"{low:.4g} to {high:.4g}"] for name, value, low, high in law.constants()]


def conclusions(law: "Law", runs: "Sequence[MeasuredRun]", target: "Point") -> list[str]:
    """Return sentences: the prediction, and everything that speaks against it."""
    from nano3.training.reports.scaling_law import least_points

    points = [one.point for one in runs]
    found = [prediction(law, points, target)]
    if check := held_out(law, points):
        found.append(check)
    distance = target.compute / max(point.compute for point in points)
    if distance > FAR:
        word = "a guess, not a prediction" if distance > TOO_FAR else "far beyond the points"
        found.append(
            f"{target.name} has {short_number(distance)} times the compute of the largest run: {word}. The interval "
            "counts the noise of the points, not that the law may bend."
        )
    if len(points) < 2 * (least_points(law.terms) - 1):
        found.append(f"{len(points)} points for {least_points(law.terms) - 1} constants are few: add sizes and tokens.")
    if repeated := [o.point.name for o in runs if (o.epochs or 0) > MAX_USEFUL_EPOCHS]:
        found.append(
            f"{len(repeated)} runs read their data more than {MAX_USEFUL_EPOCHS} times ({repeated[0]}): the law is "
            "about new tokens, and theirs taught less."
        )
    shares = [one.point.parameters / one.total for one in runs]
    if max(shares) > 1.25 * min(shares):
        found.append(
            f"the share of active parameters varies from {min(shares):.1%} to {max(shares):.1%}: N is the active ones, "
            "and the law does not count the others."
        )
    found.append(
        "The loss is that of these runs' validation data and tokenizer, even if the full model trains on other data."
    )
    return found


def prediction(law: "Law", points: "Sequence[Point]", target: "Point") -> str:
    """Return the sentence with the predicted loss, or why there is none."""
    what = f"{target.name} ({short_number(target.parameters)} active parameters, {short_number(target.tokens)} tokens)"
    if not can_predict(law, points, target):
        return (
            f"{what}: no prediction. It has {ratio_text(target)} tokens per parameter, and the runs have "
            f"{ratio_text(points[0])}: a law over compute holds for their ratio alone. Vary "
            "ladder.tokens_per_parameter in the sweep."
        )
    loss, low, high = law.predict(target)
    return f"{what}: predicted loss {loss:.3f}, interval of 90 % from {low:.3f} to {high:.3f}"


def can_predict(law: "Law", points: "Sequence[Point]", target: "Point") -> bool:
    """Return whether the law speaks of runs like the target."""
    ratios = [point.tokens / point.parameters for point in points]
    ratio = target.tokens / target.parameters
    return law.terms == ("N", "D") or min(ratios) / SAME_RATIO <= ratio <= max(ratios) * SAME_RATIO


def held_out(law: "Law", points: "Sequence[Point]") -> str | None:
    """Return how well the law of the other points predicts the run with most compute, if enough points are left."""
    from nano3.training.reports.scaling_law import fit, least_points, usable_terms

    last = max(points, key=lambda point: point.compute)
    rest = [point for point in points if point is not last]
    if len(rest) < least_points(law.terms) or usable_terms(rest) != law.terms:
        return None
    loss, low, high = fit(rest, law.terms, draws=200).predict(last)
    return (
        f"check: without {last.name} the law predicts {loss:.3f} for it ({low:.3f} to {high:.3f}); measured "
        f"{last.loss:.3f} ({loss / last.loss - 1:+.2%})"
    )


def make_page(
    law: "Law", runs: "Sequence[MeasuredRun]", target: "Point", sentences: Sequence[str], command: str
) -> str:
    """Return the page as self-contained HTML.

    Args:
        law: The fitted law.
        runs: The runs.
        target: The run to predict.
        sentences: The conclusions.
        command: Command shown at the top of the page.

    Raises:
        UserError: matplotlib is not installed.
    """
    points = [one.point for one in runs]
    with needs_matplotlib():
        from nano3.training.reports.scaling_plot import law_svg

        drawn = law_svg(law, points, target if can_predict(law, points, target) else None)
    sections = [
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences),
        f"<div class='curves'>{drawn}</div>",
        f"<h2>Law</h2><p>{escape(formula(law))}; N: active parameters without embedding and output matrix; D: training "
        "tokens; C = 6 N D; L: validation loss in nats per token</p>",
        html_table(LAW_COLUMNS, law_rows(law)),
        "<h2>Points</h2>",
        html_table(POINT_COLUMNS, point_rows(runs, law)),
    ]
    return html_page(f"Scaling law of {len(runs)} runs", command, sections)
