"""The accuracy curve: its points, its line and its axis."""

from collections.abc import Sequence
from typing import Any

from simulations.report.figures import style
from simulations.report.formats import format_percent
from simulations.report.schema import RoundRow

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
