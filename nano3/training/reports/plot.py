"""Plot a run: training and validation loss over tokens, with the learning rate below."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.training.run.metrics import FILE, read_metrics
from nano3.training.run.skips import SkipRecord, read_skips
from nano3.utils.console import printable
from nano3.utils.errors import UserError
from nano3.utils.files import atomic_open

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colors of Okabe and Ito, distinguishable for color-blind readers.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
DATASET_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
COLORS = (BLUE, ORANGE, *DATASET_COLORS)


def plot_losses(run_dir: Path, path: Path | None = None) -> Path:
    """Plot a run's metrics.jsonl as a PNG and return its path.

    Args:
        run_dir: The run folder.
        path: Where to write; by default loss.png in the run folder.

    Raises:
        UserError: The run has no training lines yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_metrics(run_dir)
    train = [line for line in lines if "loss" in line]
    valid = [line for line in lines if "valid_loss" in line]
    if not train:
        raise UserError(f"{Path(run_dir) / FILE} has no training lines yet: nothing to plot.")
    figure = Figure(figsize=(9, 6), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    tokens_each = train[-1]["consumed_tokens"] / train[-1]["iteration"]
    scale, unit = _unit(train[-1]["consumed_tokens"])
    _draw_losses(losses, train, valid, tokens_each / scale)
    mark_left_out(losses, read_skips(run_dir), tokens_each / scale, label="left out")
    losses.legend(frameon=False, loc="upper right")
    rates.plot([_x(line, tokens_each / scale) for line in train], [line["lr"] for line in train], color=GREY)
    rates.set(ylabel="learning rate", xlabel=f"training tokens ({unit})", ylim=(0, None))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    figure.suptitle(plain_label(Path(run_dir).name), x=0.02, ha="left", fontweight="bold")
    for axes in (losses, rates):
        style_axes(axes)
    target = Path(path) if path else Path(run_dir) / "loss.png"
    with atomic_open(target) as f:
        figure.savefig(f, format="png")
    return target


def svg_text(figure: "Figure", salt: str) -> str:
    """Return a figure as an <svg> element whose text can be searched.

    Args:
        figure: The figure.
        salt: Makes the ids of its elements reproducible, and different from those of other figures on a page.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def plain_label(name: str) -> str:
    """Return a name as a label for matplotlib, which reads $…$ as a formula and hides labels that begin with "_"."""
    text = printable(name)
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def mark_left_out(
    axes: "Axes", skips: SkipRecord, per_iteration: float = 1.0, color: str = GREY, label: str | None = None
) -> None:
    """Shade the iterations that a run left out.

    Args:
        axes: The axes of a curve over iterations or tokens.
        skips: What the run left out.
        per_iteration: Units of the x axis per iteration.
        color: Color of the shade.
        label: Name in the legend, or None.
    """
    for number, one in enumerate(skips.ranges):
        left, right = (one.first - 1) * per_iteration, one.last * per_iteration
        axes.axvspan(left, right, color=color, alpha=0.3, linewidth=1, label=None if number else label)


def style_axes(axes: "Axes") -> None:
    """Draw a pale grid and no frame."""
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_losses(axes: "Axes", train: list[dict[str, Any]], valid: list[dict[str, Any]], per_iteration: float) -> None:
    x = [_x(line, per_iteration) for line in train]
    loss = [line["loss"] for line in train]
    axes.plot(x, loss, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(x, smooth(loss), color=BLUE, linewidth=2, label="training (smoothed)")
    if valid:
        at = [_x(line, per_iteration) for line in valid]
        names = [key for key in valid[-1] if key.startswith("valid_loss/")]
        for name, color in zip(names, DATASET_COLORS, strict=False):
            label = plain_label(name.removeprefix("valid_loss/"))
            axes.plot(at, [line[name] for line in valid], color=color, linewidth=1, linestyle="--", label=label)
        axes.plot(at, [line["valid_loss"] for line in valid], color=ORANGE, marker="o", linewidth=2, label="validation")
        axes.annotate(f"{valid[-1]['valid_loss']:.2f}", (at[-1], valid[-1]["valid_loss"]), (6, 0),
                      textcoords="offset points", color=ORANGE, va="center")  # fmt: skip
    axes.set_ylabel("loss (nats per token)")


def _x(line: dict[str, Any], per_iteration: float) -> float:
    return float(line["iteration"]) * per_iteration


def _unit(tokens: float) -> tuple[float, str]:
    for scale, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "thousands")):
        if tokens >= scale:
            return scale, name
    return 1.0, "tokens"


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average over about a twentieth of the points, corrected for the start."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(mean / weight)
    return smoothed
