"""Accuracy and density over rounds."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, byte_scale, finish_chart, time_scale
from mest_fed.simulation.report.formats import format_percent
from mest_fed.simulation.report.load import RoundRow, Run
from mest_fed.units import format_bytes, format_seconds

MOST_MARKERS = 40

Points = list[tuple[RoundRow, float]]


def accuracy_points(rounds: Sequence[RoundRow]) -> Points:
    """Pair rounds with central accuracy, or with the clients' median if there is none."""
    central = [(row, row.accuracy) for row in rounds if row.accuracy is not None]
    if central:
        return central
    return [(row, row.client_accuracy.median) for row in rounds if row.client_accuracy]


def draw_curve(axes: Any, x: Sequence[float], y: Sequence[float], label: str) -> None:
    """Draw the line, with the last value written at its end."""
    marker = "o" if len(x) <= MOST_MARKERS else ""
    axes.plot(x, y, color=style.BLUE, marker=marker, markersize=3.5, label=label)
    axes.annotate(
        format_percent(y[-1]),
        (x[-1], y[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=style.BLUE,
        fontweight="bold",
        annotation_clip=False,
    )


def accuracy_axis(axes: Any, points: Points, rounds: Sequence[RoundRow], label: str) -> None:
    """Fit the y axis to the points and to the clients' spread in ``rounds``."""
    values = [accuracy for _, accuracy in points]
    for row in rounds:
        if row.client_accuracy:
            values += [row.client_accuracy.min, row.client_accuracy.max]
    margin = max(0.03, 0.05 * (max(values) - min(values)))
    axes.set_ylim(max(0.0, min(values) - margin), min(1.005, max(values) + margin))
    axes.yaxis.set_major_formatter(style.PERCENT_TICKS)
    axes.set_ylabel(label)


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
    return text + "Below, the share of weights that are active in the global model."


_GOAL = 0.95


def accuracy_over_time(run: Run) -> Chart | None:
    """Draw accuracy against the fleet's virtual clock; None without accuracies."""
    points = accuracy_points(run.rounds)
    if not points:
        return None
    seconds = [row.virtual_seconds for row, _ in points]
    scale = time_scale(seconds[-1])
    figure = _small_curve(
        [x / scale.factor for x in seconds], points, f"virtual time, {scale.unit} (modelled)"
    )
    reached = _first_near_best(points)
    return finish_chart(
        figure,
        key="accuracy-time",
        title="Accuracy over virtual time",
        caption="The same curve by the fleet's own clock: a round that waits for slow devices "
        "takes more of it. 95% of the best accuracy was reached after "
        f"{format_seconds(points[reached][0].virtual_seconds)}.",
        basis=("accuracy measured", "time modelled"),
    )


def accuracy_over_traffic(run: Run) -> Chart | None:
    """Draw accuracy against the bytes sent so far, up and down; None without accuracies."""
    points = accuracy_points(run.rounds)
    if not points:
        return None
    sums = accumulate(row.bytes_up + row.bytes_down for row in run.rounds)
    sent = {row.round: total for row, total in zip(run.rounds, sums, strict=True)}
    totals = [sent[row.round] for row, _ in points]
    scale = byte_scale(totals[-1])
    figure = _small_curve(
        [x / scale.factor for x in totals], points, f"traffic so far, {scale.unit} (measured)"
    )
    reached = format_bytes(totals[_first_near_best(points)])
    return finish_chart(
        figure,
        key="accuracy-traffic",
        title="Accuracy over traffic",
        caption=f"Encoded payloads of all clients, up and down. "
        f"95% of the best accuracy had cost {reached}; one dense model in fp32 is "
        f"{format_bytes(run.summary.dense_bytes)}.",
        basis=("measured",),
    )


def _first_near_best(points: Points) -> int:
    best = max(accuracy for _, accuracy in points)
    return next(i for i, (_, accuracy) in enumerate(points) if accuracy >= _GOAL * best)


def _small_curve(x: Sequence[float], points: Points, label: str) -> Figure:
    figure = style.new_figure(style.HALF_WIDTH, 3.1)
    axes = figure.subplots()
    draw_curve(axes, x, [accuracy for _, accuracy in points], "")
    central = points[0][0].accuracy is not None
    accuracy_axis(axes, points, (), "accuracy" if central else "accuracy, clients' median")
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    return figure
