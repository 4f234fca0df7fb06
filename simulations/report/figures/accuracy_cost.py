"""What accuracy costs: over virtual time and over traffic."""

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.figure import Figure

from mest_fed.units import format_bytes, format_seconds
from simulations.report.figures import style
from simulations.report.figures.chart import Chart, finish_chart
from simulations.report.figures.curve import Points, accuracy_axis, accuracy_points, draw_curve
from simulations.report.figures.scales import byte_scale, time_scale
from simulations.report.schema import Run

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
