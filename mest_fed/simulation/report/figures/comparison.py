"""Figures of several runs: the metric over rounds, traffic, time and energy, a curve a run."""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from matplotlib.ticker import MaxNLocator

from mest_fed.rows import RoundRow
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.metric import MOST_MARKERS, Curve
from mest_fed.simulation.report.figures.style import (
    Chart,
    Scale,
    byte_scale,
    finish_chart,
    house_style,
    joule_scale,
    time_scale,
)
from mest_fed.simulation.report.formats import shorten
from mest_fed.simulation.report.load import Run

_COLOURS = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, "#cc79a7", style.SKY, style.INK)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))

#: What a row adds to the x axis, or where it is on it.
Place = Callable[[RoundRow], float]


def colours(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return each run's colour."""
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(runs)}


def draw_comparison(runs: Mapping[str, Run]) -> list[Chart]:
    """Draw all figures; none where no run was evaluated."""
    curves = {name: Curve.of(run) for name, run in runs.items()}
    found = {name: curve for name, curve in curves.items() if curve is not None}
    if not found:
        return []
    with house_style():
        return [
            _draw(runs, found, "rounds", "round", lambda row: row.round),
            _draw(
                runs,
                found,
                "traffic",
                "traffic so far, {unit} (measured)",
                lambda row: row.bytes_up + row.bytes_down,
                scale_of=byte_scale,
                cumulate=True,
            ),
            _draw(
                runs,
                found,
                "time",
                "virtual time, {unit} (modelled)",
                lambda row: row.virtual_seconds,
                scale_of=time_scale,
            ),
            _draw(
                runs,
                found,
                "energy",
                "energy of the fleet so far, {unit} (modelled)",
                lambda row: row.energy_joules,
                scale_of=joule_scale,
                cumulate=True,
            ),
        ]


def _draw(
    runs: Mapping[str, Run],
    curves: Mapping[str, Curve],
    key: str,
    label: str,
    place: Place,
    *,
    scale_of: Callable[[float], Scale] | None = None,
    cumulate: bool = False,
) -> Chart:
    """Draw the metric of each run against one quantity."""
    figure = style.new_figure(style.HALF_WIDTH, 3.5)
    axes = figure.subplots()
    metric = next(iter(curves.values())).metric
    xs = {name: _places(runs[name], curve, place, cumulate) for name, curve in curves.items()}
    largest = max(x[-1] for x in xs.values())
    scale = Scale(1, "") if scale_of is None else scale_of(largest)
    for i, name in enumerate(runs):
        if name not in curves:
            continue
        y = curves[name].values
        axes.plot(
            [x / scale.factor for x in xs[name]],
            y,
            color=_COLOURS[i % len(_COLOURS)],
            linestyle=_DASHES[i // len(_COLOURS) % len(_DASHES)],
            marker="o" if len(y) <= MOST_MARKERS else "",
            markersize=3,
            label=shorten(name, style.LABEL_LENGTH),
        )
    if metric.share:
        axes.yaxis.set_major_formatter(style.PERCENT_TICKS)
    axes.set_ylabel(metric.name)
    axes.set_xlabel(label.format(unit=scale.unit))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=scale_of is None))
    style.legend_above(axes, 3)
    measured = "modelled" not in label
    medians = [name for name, curve in curves.items() if not curve.central]
    caption = f"{metric.name[:1].upper() + metric.name[1:]} of each run."
    caption += "" if metric.higher_is_better else " Lower is better."
    if medians:
        caption += f" The clients' median, for want of a central test set: {', '.join(medians)}."
    basis = ("measured",) if measured else (f"{metric.name} measured", f"{key} modelled")
    return finish_chart(
        figure, key=f"compare-{key}", title=f"Over {key}", caption=caption, basis=basis
    )


def _places(run: Run, curve: Curve, place: Place, cumulate: bool) -> list[float]:
    values = [float(place(row)) for row in run.rounds]
    if cumulate:
        values = list(accumulate(values))
    at = {row.round: value for row, value in zip(run.rounds, values, strict=True)}
    return [at[row.round] for row, _ in curve.points]
