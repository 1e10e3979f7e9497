"""Plot the mixture of a run in nano3's own order: epochs of each dataset, planned and consumed, with its stages."""

from nano3.training.order.plan import OrderPlan
from nano3.training.reports.plot import COLORS, GREY, plain_label, style_axes, svg_text

POINTS = 400


def mixture_svg(plan: OrderPlan, reached: int) -> str:
    """Return an <svg> element with the epochs of each dataset over iterations. Needs matplotlib.

    Args:
        plan: The plan of a run.
        reached: Iterations that are done.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=144, layout="constrained")
    axes = figure.subplots()
    first, end = plan.stages[0].first, plan.stages[-1].end
    starts = [stage.first for stage in plan.stages]
    at = sorted({first + (end - first) * number // POINTS for number in range(POINTS + 1)} | {*starts, reached})
    consumed = {iteration: plan.consumed(iteration) for iteration in at}
    for number, name in enumerate(plan.datasets):
        color = COLORS[number % len(COLORS)]
        epochs = [plan.epochs(name, consumed[iteration][name]) for iteration in at]
        axes.plot(at, epochs, color=color, linewidth=1.2, linestyle="--")
        done = at.index(reached) + 1
        axes.plot(at[:done], epochs[:done], color=color, linewidth=2.2, label=plain_label(name))
    for start in starts[1:]:
        axes.axvline(start, color=GREY, linewidth=1)
    axes.plot([], [], color=GREY, linewidth=1.2, linestyle="--", label="planned")
    axes.set(xlabel="iteration", ylabel="epochs", xlim=(first, end), ylim=(0, None))
    axes.set_title("Epochs of each dataset, planned and consumed", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes)
    return svg_text(figure, "mixture")
