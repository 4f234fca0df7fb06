"""How every figure looks: sizes, colours (Okabe & Ito 2008, safe for colour-blind readers)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from simulations.report.formats import format_percent

INK = "#1f2933"
MUTED = "#5f6b76"
FAINT = "#d9dee3"
SLATE = "#8793a0"
BLUE = "#0072b2"
SKY = "#56b4e9"
PALE_BLUE = "#bcdcf0"
ORANGE = "#e69f00"
VERMILION = "#d55e00"
PALE_ORANGE = "#f6d99a"
GREEN = "#009e73"

FULL_WIDTH = 10.4
HALF_WIDTH = 5.1
LABEL_LENGTH = 28
PERCENT_TICKS = FuncFormatter(lambda share, _: format_percent(round(share, 9)))

_STYLE = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the layout is the same everywhere
    "font.size": 9,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.6,
    "legend.borderpad": 0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "mest-fed",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the report's style, whatever the reader's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of width x height inches that pyplot knows nothing of."""
    return Figure(figsize=(width, height), layout="constrained")


def row_axes(axes: Any, labels: list[str]) -> None:
    """Prepare axes of horizontal rows, the first label on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


def stacked_bars(axes: Any, parts: Iterable[tuple[str, Sequence[float], str]]) -> list[float]:
    """Draw bars of parts, one row each; return where they end.

    A part is its label, its width in each row and its colour. One that is nowhere is left out.
    """
    ends: list[float] = []
    for label, widths, colour in parts:
        starts = ends or [0.0] * len(widths)
        if any(widths):
            axes.barh(
                range(len(widths)),
                widths,
                left=starts,
                height=0.52,
                color=colour,
                edgecolor="white",
                linewidth=0.6,
                label=label,
            )
        ends = [start + width for start, width in zip(starts, widths, strict=True)]
    return ends


def legend_above(axes: Any, columns: int, **options: Any) -> None:
    """Put the legend on the left above the axes, where it hides nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        columnspacing=1.4,
        borderaxespad=0.4,
        **options,
    )
