"""A study's figures: the metric against each cost, over rounds, and differences with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.ticker import MaxNLocator

from mest_fed.simulation.report.compare import Column
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.comparison import COLOURS, DASHES
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
from mest_fed.simulation.study.analysis import Analysis, Group, Pairing
from mest_fed.simulation.study.statistics import CONFIDENCE, Spread
from mest_fed.simulation.study.tables import name_of, verdict

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Costs that the metric is drawn against: key, name, label of the axis, its scale.
_COSTS: tuple[tuple[str, str, str, Callable[[float], Scale]], ...] = (
    ("peak_bytes", "memory", "largest peak of a device, {unit} (measured)", byte_scale),
    ("traffic_bytes", "traffic", "sent by all devices, {unit} (measured)", byte_scale),
    ("virtual_seconds", "virtual time", "virtual time, {unit} (modelled)", time_scale),
    ("energy_joules", "energy", "energy of the fleet, {unit} (modelled)", joule_scale),
)
_MOST_CURVES = 14
#: Of an axis, as a multiple of the largest value.
_ROOM = 1.08
#: An axis of shares goes no further: half a marker beyond what there can be.
_LEAST_SHARE, _MOST_SHARE = -0.005, 1.005


@dataclass(frozen=True)
class Look:
    """How the groups of a value of the first axis are drawn.

    Parameters
    ----------
    label : str
        The value.
    colour : str
        Its own among the first seven.
    hollow : bool
        Whether its markers are; those of the second seven are.
    """

    label: str
    colour: str
    hollow: bool


@dataclass(frozen=True)
class Legend:
    """Which axis has the colours, and what the shapes of markers stand for.

    Parameters
    ----------
    analysis : Analysis
        Of the study.
    """

    analysis: Analysis

    @cached_property
    def axis(self) -> str:
        """The axis that has the colours: that of the study's reference, or else the first."""
        study = self.analysis.study
        others = [axis.name for axis in study.others]
        return next(iter(study.about.reference), others[0] if others else "")

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Value -> how it is drawn."""
        labels = dict.fromkeys(self.label(group) for group in self.analysis.groups)
        return {
            label: Look(label, COLOURS[i % len(COLOURS)], bool(i // len(COLOURS) % 2))
            for i, label in enumerate(labels)
        }

    @cached_property
    def markers(self) -> dict[str, str]:
        """What else a group is -> its marker."""
        rest = dict.fromkeys(self.rest(group) for group in self.analysis.groups)
        return {each: _MARKERS[i % len(_MARKERS)] for i, each in enumerate(rest)}

    def label(self, group: Group) -> str:
        """Return the value of the axis that has the colours."""
        return group.labels.get(self.axis, "all")

    def rest(self, group: Group) -> str:
        """Return the values of the other axes."""
        return " · ".join(value for axis, value in group.labels.items() if axis != self.axis)

    def draw(self, axes: Any) -> None:
        """Put it above some axes, for a figure that stands alone."""
        for look in self.looks.values():
            face = "none" if look.hollow else look.colour
            axes.plot(
                [], [], "o", color=look.colour, markerfacecolor=face, label=shorten(look.label, 20)
            )
        if len(self.markers) > 1:
            for rest, marker in self.markers.items():
                axes.plot([], [], marker, color=style.MUTED, label=shorten(rest, 20))
        style.legend_above(axes, 3)


def draw_study(
    analysis: Analysis, round_rows: Sequence[Mapping[str, Any]], *, alone: bool = False
) -> list[Chart]:
    """Draw all figures; ``alone``: each has a legend of its own."""
    legend = Legend(analysis)
    with house_style():
        charts = [_against(analysis, legend, cost, alone) for cost in _COSTS]
        charts.append(_over_rounds(analysis, legend, round_rows, alone))
        charts += [_differences(analysis, legend, pairing) for pairing in analysis.pairings]
    return [chart for chart in charts if chart is not None]


def _against(
    analysis: Analysis,
    legend: Legend,
    cost: tuple[str, str, str, Callable[[float], Scale]],
    alone: bool,
) -> Chart | None:
    """Draw the metric against a cost: a point a group, with the spread of both."""
    key, name, label, scale_of = cost
    found = [
        (group, x, y)
        for group in analysis.groups
        if (x := group.spread(key)) is not None and (y := group.spread("final")) is not None
    ]
    if not found:
        return None
    scale = scale_of(max(x.mean for _, x, _ in found))
    figure = style.new_figure(style.HALF_WIDTH, 3.4)
    axes = figure.subplots()
    if len(legend.markers) > 1:
        _join(axes, legend, found, scale)
    for group, x, y in found:
        look = legend.looks[legend.label(group)]
        axes.errorbar(
            x.mean / scale.factor,
            y.mean,
            xerr=_error(x, scale.factor),
            yerr=_error(y, 1),
            fmt=legend.markers[legend.rest(group)],
            color=look.colour,
            markerfacecolor="none" if look.hollow else look.colour,
            markersize=7,
            elinewidth=1.1,
            capsize=2.5,
        )
    axes.set_xlabel(label.format(unit=scale.unit))
    axes.margins(y=0.12)
    _value_axis(axes, analysis)
    # From 0 on, so that what hardly differs looks so.
    axes.set_xlim(0, _ROOM * max(x.mean + (x.deviation or 0) for _, x, _ in found) / scale.factor)
    if alone:
        legend.draw(axes)
    better = "higher" if analysis.metric.higher_is_better else "lower"
    seeds = " Bars: the standard deviation over seeds." if analysis.seeds > 1 else ""
    caption = f"Final {analysis.metric.name} of each, {better} and further left is better.{seeds}"
    modelled = "modelled" in label
    basis = (f"{analysis.metric.name} measured", f"{name} {'modelled' if modelled else 'measured'}")
    return finish_chart(
        figure,
        key=f"against-{key.partition('_')[0]}",
        title=f"{analysis.metric.name.capitalize()} against {name}",
        caption=caption,
        basis=basis if modelled else ("measured",),
    )


def _error(spread: Spread, factor: float) -> float | None:
    return spread.deviation / factor if spread.deviation else None


def _join(
    axes: Any, legend: Legend, found: Sequence[tuple[Group, Spread, Spread]], scale: Scale
) -> None:
    """Join the points of one colour, so that each has a line through its budgets or densities."""
    for label, look in legend.looks.items():
        points = sorted((x.mean, y.mean) for group, x, y in found if legend.label(group) == label)
        axes.plot(
            [x / scale.factor for x, _ in points],
            [y for _, y in points],
            color=look.colour,
            linewidth=0.9,
            alpha=0.55,
            zorder=1,
        )


def _value_axis(axes: Any, analysis: Analysis) -> None:
    if analysis.metric.share:
        axes.yaxis.set_major_formatter(style.PERCENT_TICKS)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, _LEAST_SHARE), min(high, _MOST_SHARE))
    axes.set_ylabel(f"final {analysis.metric.name}")


def _over_rounds(
    analysis: Analysis, legend: Legend, rows: Sequence[Mapping[str, Any]], alone: bool
) -> Chart | None:
    """Draw the mean over seeds of the metric by rounds."""
    if len(analysis.groups) > _MOST_CURVES:
        return None
    of_cell: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.get("value") is not None:
            of_cell.setdefault(row["cell"], {})[row["round"]] = row["value"]
    figure = style.new_figure(style.HALF_WIDTH, 3.4)
    axes = figure.subplots()
    drawn = False
    for group in analysis.groups:
        runs = [of_cell[row["cell"]] for row in group.done if row["cell"] in of_cell]
        rounds = sorted(set.intersection(*map(set, runs))) if runs else []
        if not rounds:
            continue
        look, place = legend.looks[legend.label(group)], list(legend.markers)
        axes.plot(
            rounds,
            [sum(run[number] for run in runs) / len(runs) for number in rounds],
            color=look.colour,
            linestyle=DASHES[place.index(legend.rest(group)) % len(DASHES)],
            alpha=0.6 if look.hollow else 1,
        )
        drawn = True
    if not drawn:
        return None
    _value_axis(axes, analysis)
    axes.set_ylabel(analysis.metric.name)
    axes.set_xlabel("round")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if alone:
        legend.draw(axes)
    return finish_chart(
        figure,
        key="over-rounds",
        title=f"{analysis.metric.name.capitalize()} over rounds",
        caption="The mean over seeds of each, as far as all of its runs have come.",
        basis=("measured",),
    )


def _differences(analysis: Analysis, legend: Legend, pairing: Pairing) -> Chart | None:
    """Draw the differences of the first judged column, with their intervals around 0."""
    column = analysis.judged[0]
    found = [
        (paired, difference)
        for paired in pairing.pairs
        if (difference := paired.differences[column.key]) is not None
    ]
    if not found:
        return None
    figure = style.new_figure(style.HALF_WIDTH, 1.1 + 0.3 * len(found))
    axes = figure.subplots()
    scale = _scale(column, analysis, [abs(d.mean) + (d.half or 0) for _, d in found])
    for place, (paired, difference) in enumerate(found):
        look = legend.looks[legend.label(paired.group)]
        sure = verdict(difference, column) not in ("within", "unknown")
        axes.errorbar(
            difference.mean / scale.factor,
            place,
            xerr=None if difference.half is None else difference.half / scale.factor,
            fmt="o",
            color=look.colour,
            markerfacecolor=look.colour if sure else "#ffffff",
            markersize=6,
            elinewidth=1.4,
            capsize=3,
        )
    axes.axvline(0, color=style.MUTED, linewidth=0.9)
    style.row_axes(axes, [shorten(name_of(paired.group), 26) for paired, _ in found])
    axes.set_xlabel(f"{column.heading} minus that of {pairing.name}, {scale.unit}".rstrip(", "))
    name = "-".join(pairing.reference)
    return finish_chart(
        figure,
        key=f"differences-{name}",
        title=f"Against {pairing.name}",
        caption=(
            f"Paired differences in {column.heading}, with {CONFIDENCE:.0%} intervals; filled "
            "where the interval excludes 0."
        ),
        basis=(column.basis,),
    )


def _scale(column: Column, analysis: Analysis, sizes: Sequence[float]) -> Scale:
    if column.key == "final":
        return Scale(0.01, "percentage points") if analysis.metric.share else Scale(1, "")
    kinds = {"bytes": byte_scale, "seconds": time_scale, "joules": joule_scale}
    of = kinds.get(column.key.rpartition("_")[2])
    return Scale(1, "") if of is None else of(max(sizes))
