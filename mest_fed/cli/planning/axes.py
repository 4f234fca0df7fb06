"""The axes of memory and time in the picture of ``mest-fed plan``."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mest_fed.cli.planning.answer import Answer
from mest_fed.cli.planning.clock import format_multiple
from mest_fed.cli.planning.spots import Spot
from mest_fed.units import format_bytes, format_seconds
from simulations.report.figures import style

BAND = "#f4f6f8"


def memory_axis(axes: Any, spots: Sequence[Spot], answer: Answer) -> None:
    """Give the axes room for all peaks and the budget, on a logarithmic scale."""
    peaks = [spot.peak for spot in spots] + [answer.plan.budget]
    low, high = min(peaks), max(peaks)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.25, high * 1.25)
    steps = (1, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5) if high / low < 100 else (1, 3)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(
        "predicted peak: bytes that training adds to the process (modelled, logarithmic)"
    )


def time_axis(axes: Any, spots: Sequence[Spot], answer: Answer) -> None:
    """Write each time beside its band; bands are in order, not to scale."""
    middles = {}
    for time in sorted({spot.time for spot in spots}):
        heights = [spot.height for spot in spots if spot.time == time]
        low, high = min(heights), max(heights)
        middles[time] = (low + high) / 2
        axes.axhspan(low - 0.6, high + 0.9, color=BAND, lw=0, zorder=0)
    axes.set_ylim(-0.9, max(spot.height for spot in spots) + 1.7)
    axes.set_yticks(list(middles.values()), [_written(time, answer) for time in middles])
    axes.tick_params(axis="y", length=0, labelcolor=style.INK)
    axes.set_ylabel(_time_label(answer))
    axes.grid(False, axis="y")


def _written(time: float, answer: Answer) -> str:
    return format_multiple(time) if answer.profile is None else format_seconds(time)


def _time_label(answer: Answer) -> str:
    batch = answer.plan.shape.batch
    if answer.profile is None:
        return f"time of a step of {batch} images (modelled),\nplain training being 1"
    return f"time of a step of {batch} images (modelled),\n{answer.profile.title}"
