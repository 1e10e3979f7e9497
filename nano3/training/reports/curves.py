"""Plot metrics of several runs over iterations, as SVG text for an HTML page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nano3.training.reports.plot import COLORS, mark_left_out, plain_label, smooth, style_axes, svg_text
from nano3.training.run.skips import SkipRecord

Lines = list[dict[str, Any]]  # the lines of metrics.jsonl


@dataclass(frozen=True)
class Curve:
    """A figure of one metric: its key in metrics.jsonl, its title with the unit, and whether to smooth it."""

    key: str
    title: str
    noisy: bool = False
    log: bool = False


CURVES = (
    Curve("valid_loss", "validation loss (nats per token)"),
    Curve("valid_bits_per_byte", "validation loss (bits per byte)"),
    Curve("loss", "training loss (nats per token), smoothed", noisy=True),
    Curve("mtp_1_loss", "loss of the second next token (multi-token prediction), smoothed", noisy=True),
    Curve("mtp_2_loss", "loss of the third next token (multi-token prediction), smoothed", noisy=True),
    Curve("tokens_per_s", "tokens per second, smoothed", noisy=True),
    Curve("tokens_per_s_per_gpu", "tokens per second and GPU, smoothed", noisy=True),
    Curve("mfu", "model FLOPs utilization"),
    Curve("lr", "learning rate"),
    Curve("grad_norm", "gradient norm before clipping, smoothed", noisy=True, log=True),
    Curve("memory_gb", "peak memory of a GPU (GB)"),
    Curve("expert_imbalance", "load of the busiest expert ÷ mean, smoothed", noisy=True),
    Curve("expert_min_load", "load of the least busy expert ÷ mean, smoothed", noisy=True),
    Curve("expert_entropy", "entropy of the experts' load (1 is even), smoothed", noisy=True),
)


def draw_curve(curve: Curve, runs: Mapping[str, Lines], skips: Mapping[str, SkipRecord] | None = None) -> str | None:
    """Return an <svg> element with one line per run, or None if no run has this metric. Needs matplotlib.

    Args:
        curve: The metric to plot.
        runs: Run name -> lines of its metrics.jsonl.
        skips: Run name -> the iterations that it left out.
    """
    found = {
        name: [(line["iteration"], line[curve.key]) for line in lines if line.get(curve.key) is not None]
        for name, lines in runs.items()
    }
    if not any(found.values()):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(found.items()):
        if points:
            x, y = zip(*points, strict=True)
            values = smooth(y) if curve.noisy else y
            marker = "o" if len(points) < 30 else ""
            color = COLORS[number % len(COLORS)]
            axes.plot(x, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=plain_label(name))
            mark_left_out(axes, (skips or {}).get(name, SkipRecord()), color=color)
    if curve.log and all(value > 0 for points in found.values() for _, value in points):
        axes.set_yscale("log")
    axes.set(xlabel="iteration")
    axes.set_title(curve.title, loc="left", fontsize=11, fontweight="bold")
    style_axes(axes)
    if len(found) > 1:
        axes.legend(frameon=False, fontsize=8)
    return svg_text(figure, curve.key)
