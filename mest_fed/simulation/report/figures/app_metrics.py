"""The metrics of an app by round, a panel for each name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.metric import MOST_MARKERS
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import shorten

_COLUMNS = 3
_MOST_PANELS = 12
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.SKY, style.VERMILION, style.SLATE)


@dataclass(frozen=True)
class Curve:
    """A metric over rounds.

    Parameters
    ----------
    name : str
        Of the metric.
    source : str
        Where it was measured.
    points : tuple of (int, float)
        Rounds and values.
    """

    name: str
    source: str
    points: tuple[tuple[int, float], ...]


def metrics_over_rounds(curves: Sequence[Curve]) -> Chart | None:
    """Draw each metric, with a line for each source; None where there is no metric."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    shown = names[:_MOST_PANELS]
    if not shown:
        return None
    rows = -(-len(shown) // _COLUMNS)
    figure = style.new_figure(style.FULL_WIDTH, 0.5 + 2.5 * rows)
    panels = figure.subplots(rows, min(_COLUMNS, len(shown)), squeeze=False).ravel()
    sources = list(dict.fromkeys(curve.source for curve in curves))
    colours = {source: _COLOURS[i % len(_COLOURS)] for i, source in enumerate(sources)}
    for axes, name in zip(panels, shown, strict=False):
        for curve in curves:
            if curve.name == name:
                x, y = zip(*curve.points, strict=True)
                marker = "o" if len(x) <= MOST_MARKERS else ""
                colour = colours[curve.source]
                axes.plot(x, y, color=colour, marker=marker, markersize=3, label=curve.source)
        axes.set_title(shorten(name, style.LABEL_LENGTH))
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in panels[len(shown) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for axes in panels[: len(shown)]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
    return finish_chart(
        figure,
        key="metrics",
        title="Metrics over rounds",
        caption=_caption(names),
        basis=("measured",),
    )


def _caption(names: Sequence[str]) -> str:
    text = "What the app's strategy returned, or the clients' means weighted by their examples."
    if len(names) > _MOST_PANELS:
        text += f" {len(names) - _MOST_PANELS} more metrics are in summary.json."
    return text
