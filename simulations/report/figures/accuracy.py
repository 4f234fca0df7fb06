"""Accuracy and density over rounds."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from simulations.report.figures import style
from simulations.report.figures.chart import Chart, finish_chart
from simulations.report.figures.curve import (
    MOST_MARKERS,
    Points,
    accuracy_axis,
    accuracy_points,
    draw_curve,
)
from simulations.report.formats import format_percent
from simulations.report.schema import RoundRow, Run


def accuracy_over_rounds(run: Run) -> Chart | None:
    """Draw central accuracy, the spread over clients, and density; None without accuracies."""
    points = accuracy_points(run.rounds)
    if not points:
        return None
    figure = style.new_figure(style.FULL_WIDTH, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    has_clients = _draw_client_spread(top, run.rounds)
    central = [(row.round, row.accuracy) for row in run.rounds if row.accuracy is not None]
    if central:
        draw_curve(top, [x for x, _ in central], [y for _, y in central], "central test set")
    accuracy_axis(top, points, run.rounds, "accuracy")
    style.legend_above(top, 4)
    _draw_density(bottom, run)
    return finish_chart(
        figure,
        key="accuracy-rounds",
        title="Accuracy over rounds",
        caption=_caption(points, central=bool(central), has_clients=has_clients),
        basis=("measured",),
    )


def _draw_client_spread(axes: Any, rounds: Sequence[RoundRow]) -> bool:
    rows = [(row.round, row.client_accuracy) for row in rounds if row.client_accuracy]
    if not rows:
        return False
    x = [number for number, _ in rows]
    low, high = [c.p10 for _, c in rows], [c.p90 for _, c in rows]
    least, most = [c.min for _, c in rows], [c.max for _, c in rows]
    if len(rows) == 1:
        axes.vlines(x, least, most, color=style.FAINT, linewidth=4, label="clients, min to max")
        axes.vlines(x, low, high, color=style.ORANGE, linewidth=4, label="clients, p10 to p90")
    else:
        band = {"linewidth": 0}
        axes.fill_between(x, least, most, color="#eef0f2", label="clients, min to max", **band)
        axes.fill_between(
            x, low, high, color=style.PALE_ORANGE, label="clients, p10 to p90", **band
        )
    marker = "o" if len(rows) <= MOST_MARKERS else ""
    axes.plot(
        x,
        [c.median for _, c in rows],
        color="#b87900",
        linewidth=1.2,
        linestyle="--",
        marker=marker,
        markersize=2.5,
        label="clients, median",
    )
    return True


def _draw_density(axes: Any, run: Run) -> None:
    x = [row.round for row in run.rounds]
    y = [row.density for row in run.rounds]
    target = run.summary.target_density
    axes.axhline(target, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"target {format_percent(target)}",
        (1, target),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 4.5),
        textcoords="offset points",
        ha="right",
        color=style.MUTED,
        fontsize=8.5,
    )
    marker = "o" if len(x) <= MOST_MARKERS else ""
    axes.plot(x, y, color=style.GREEN, marker=marker, markersize=3, drawstyle="steps-post")
    axes.set_ylim(0, min(1.15, 1.35 * max(*y, target)))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(style.PERCENT_TICKS)
    axes.set_ylabel("density")
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    room = 0.015 * (x[-1] - x[0]) or 0.5
    axes.set_xlim(x[0] - room, x[-1] + room)


def _caption(points: Points, *, central: bool, has_clients: bool) -> str:
    row, best = max(points, key=lambda point: point[1])
    where = "on the central test set" if central else "in the clients' median"
    text = f"Best accuracy {where}: {format_percent(best)} at round {row.round}. "
    if has_clients:
        text += (
            "The orange band holds 80% of the clients, each on its own held-out share; a wide "
            "band is a model that serves some clients much better than others. "
        )
    return text + "Below, the share of weights that are alive in the global model."
