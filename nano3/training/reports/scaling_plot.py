"""Plot a scaling law: the losses of the points and the law over training compute, with its prediction."""

from collections.abc import Sequence

import numpy as np

from nano3.training.reports.plot import BLUE, DATASET_COLORS, GREY, ORANGE, style_axes, svg_text
from nano3.training.reports.scaling_law import Law, Point

COLORS = (BLUE, *DATASET_COLORS)
SAMPLES = 120


def law_svg(law: Law, points: Sequence[Point], target: Point | None) -> str:
    """Return the figure as an <svg> element. Needs matplotlib.

    Args:
        law: The fitted law.
        points: The measured points.
        target: The run to predict, if the law can.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=144, layout="constrained")
    axes = figure.subplots()
    last = max([point.compute for point in points] + ([target.compute] if target else []))
    sizes = sorted({point.parameters for point in points})
    for number, size in enumerate(sizes):
        color = COLORS[number % len(COLORS)]
        own = sorted((p for p in points if p.parameters == size), key=lambda p: p.tokens)
        label = f"{size / 1e6:,.3g} M active"
        axes.plot([p.compute for p in own], [p.loss for p in own], "o", color=color, label=label)
        if law.terms == ("N", "D"):
            tokens = np.geomspace(own[0].tokens / 2, own[-1].tokens * 4, SAMPLES)
            curve = [Point("", size, float(d), 0) for d in tokens]
            axes.plot([p.compute for p in curve], [law.predict(p)[0] for p in curve], color=color, linewidth=1)
    if law.terms == ("C",):
        curve = [Point("", float(c) / 6, 1, 0) for c in np.geomspace(min(p.compute for p in points) / 2, last, SAMPLES)]
        band = np.array([law.predict(p) for p in curve])
        axes.plot([p.compute for p in curve], band[:, 0], color=GREY)
        axes.fill_between([p.compute for p in curve], band[:, 1], band[:, 2], color=GREY, alpha=0.2)
    if target:
        loss, low, high = law.predict(target)
        bars = np.array([[max(loss - low, 0.0)], [max(high - loss, 0.0)]])
        axes.errorbar([target.compute], [loss], yerr=bars, fmt="D", color=ORANGE, capsize=4, label="prediction")
    axes.set(xscale="log", xlabel="training compute 6 N D (FLOPs)", ylabel="validation loss (nats per token)")
    axes.set_title("Measured losses, the law, and its prediction", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes)
    return svg_text(figure, "scaling")
