"""Figures of several runs: the metric over rounds, traffic, time and energy, a curve a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from matplotlib.ticker import MaxNLocator

from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.metric import MOST_MARKERS
from mest_fed.simulation.report.figures.style import (
    Chart,
    Scale,
    byte_scale,
    finish_chart,
    house_style,
    joule_scale,
    time_scale,
)
from mest_fed.simulation.report.formats import format_percent, shorten
from mest_fed.simulation.report.runs import Clock, FleetRun

#: Of curves and points of several runs, and the dashes of those beyond the first colours.
COLOURS = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, "#cc79a7", style.SKY, style.INK)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))

#: What a row adds to the x axis, or where it is on it.
Place = Callable[[Any], float]


@dataclass(frozen=True)
class Family:
    """A metric, and its curve in each run that has it: what is drawn on one axis.

    Parameters
    ----------
    name : str
        Of the metric.
    key : str
        Unique in the page: ids of its figures begin with it.
    curves : mapping of str to sequence of (row, float)
        Run -> the rounds in which the metric is known, and its values.
    higher_is_better : bool or None
        Its direction; None where that is not known.
    share : bool
        Whether it lies in [0, 1].
    note : str
        A sentence about where it was measured; empty where there is nothing to say.
    """

    name: str
    key: str
    curves: Mapping[str, Sequence[tuple[Any, float]]]
    higher_is_better: bool | None = None
    share: bool = False
    note: str = ""

    def value(self, number: float) -> str:
        """Write a value."""
        return format_percent(number) if self.share else f"{number:.4g}"

    @property
    def title(self) -> str:
        """The metric and its direction, as far as it is known."""
        title = self.name[:1].upper() + self.name[1:]
        if self.higher_is_better is None:
            return title
        return f"{title}, {'higher' if self.higher_is_better else 'lower'} is better"

    def best(self, run: str) -> float | None:
        """Return the best value of a run; None where it or the direction is not known."""
        values = [value for _, value in self.curves.get(run, ())]
        if self.higher_is_better is None or not values:
            return None
        return max(values) if self.higher_is_better else min(values)

    @property
    def goal(self) -> float | None:
        """The value that several runs reached: the worst of their best ones, or None."""
        best = [value for run in self.curves if (value := self.best(run)) is not None]
        if len(best) < max(2, len(self.curves)):
            return None
        return min(best) if self.higher_is_better else max(best)


def colours(runs: Mapping[str, FleetRun]) -> dict[str, str]:
    """Return each run's colour."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(runs)}


def draw_comparison(runs: Mapping[str, FleetRun], family: Family) -> list[Chart]:
    """Draw a metric of all runs that have it by rounds, traffic, time and energy."""
    known = {n: each for n, each in family.curves.items() if runs[n].summary.energy_joules}
    with house_style():
        charts = [
            _draw(runs, family, "rounds", "round", lambda row: row.round),
            _draw(
                runs,
                family,
                "traffic",
                "traffic so far, {unit} (measured)",
                lambda row: row.bytes_up + row.bytes_down,
                scale_of=byte_scale,
                cumulate=True,
            ),
            _draw(
                runs,
                family,
                "time",
                Clock.of(*runs.values()).label("{unit}"),
                lambda row: row.virtual_seconds,
                scale_of=time_scale,
            ),
        ]
        if any(known.values()):
            charts.append(
                _draw(
                    runs,
                    replace(family, curves=known),
                    "energy",
                    "energy of the fleet so far, {unit} (modelled)",
                    lambda row: row.energy_joules or 0.0,
                    scale_of=joule_scale,
                    cumulate=True,
                )
            )
        return charts


def _draw(
    runs: Mapping[str, FleetRun],
    family: Family,
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
    curves = {name: curve for name, curve in family.curves.items() if curve}
    xs = {name: _places(runs[name], curve, place, cumulate) for name, curve in curves.items()}
    largest = max(x[-1] for x in xs.values())
    scale = Scale(1, "") if scale_of is None else scale_of(largest)
    for i, name in enumerate(runs):
        if name not in curves:
            continue
        y = [value for _, value in curves[name]]
        axes.plot(
            [x / scale.factor for x in xs[name]],
            y,
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i // len(COLOURS) % len(DASHES)],
            marker="o" if len(y) <= MOST_MARKERS else "",
            markersize=3,
            label=shorten(name, style.LABEL_LENGTH),
        )
    if family.share:
        axes.yaxis.set_major_formatter(style.PERCENT_TICKS)
    axes.set_ylabel(family.name)
    axes.set_xlabel(label.format(unit=scale.unit))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=scale_of is None))
    style.legend_above(axes, 3)
    caption = f"{family.title}. {family.note}".strip()
    modelled = "modelled" in label
    basis = (f"{family.name} measured", f"{key} modelled") if modelled else ("measured",)
    return finish_chart(
        figure,
        key=f"{family.key}-{key}",
        title=f"Over {key}",
        caption=caption,
        basis=basis,
    )


def _places(
    run: FleetRun, curve: Sequence[tuple[Any, float]], place: Place, cumulate: bool
) -> list[float]:
    values = [float(place(row)) for row in run.rounds]
    if cumulate:
        values = list(accumulate(values))
    at = {row.round: value for row, value in zip(run.rounds, values, strict=True)}
    return [at[row.round] for row, _ in curve]
