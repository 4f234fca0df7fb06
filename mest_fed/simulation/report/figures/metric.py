"""The primary metric over rounds, time and traffic, and density over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mest_fed.run_rows.rounds import RoundRow, Spread
from mest_fed.schema import Metric
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, byte_scale, finish_chart, time_scale
from mest_fed.simulation.report.formats import format_metric, format_percent
from mest_fed.simulation.report.runs import Run
from mest_fed.units import format_bytes, format_seconds

MOST_MARKERS = 40

#: Share of the way to the best value after which the captions look.
_GOAL = 0.95
#: A metric whose values differ by more than this factor is drawn on a logarithmic axis.
DECADES = 30

Points = list[tuple[RoundRow, float]]
Spreads = list[tuple[int, Spread]]


@dataclass(frozen=True)
class Curve:
    """A metric by rounds.

    Parameters
    ----------
    metric : Metric
        Which one.
    points : list of (RoundRow, float)
        Rounds with the value on the central test set, or the clients' median if there is none.
    central : bool
        Which of the two.
    """

    metric: Metric
    points: Points
    central: bool

    @classmethod
    def of(cls, run: Run) -> "Curve | None":
        """Return the curve of a run's primary metric; None if it was never evaluated."""
        metric = run.summary.primary_metric
        central = [(row, row.value(metric)) for row in run.rounds]
        points = [(row, value) for row, value in central if value is not None]
        if points:
            return cls(metric, points, central=True)
        spreads = [(row, row.spread(metric)) for row in run.rounds]
        medians = [(row, spread.median) for row, spread in spreads if spread is not None]
        return cls(metric, medians, central=False) if medians else None

    @property
    def values(self) -> list[float]:
        """The values alone."""
        return [value for _, value in self.points]

    @property
    def best(self) -> int:
        """Place of the best value: the first of equals."""
        values = self.values
        return values.index(max(values) if self.metric.higher_is_better else min(values))

    @property
    def near_best(self) -> int:
        """Place of the first value that has come 95% of the way: see :attr:`near_best_in_words`."""
        values, start = self.values, self._start
        best = values[self.best]
        goal = start + _GOAL * (best - start)
        higher = self.metric.higher_is_better
        return next(
            i for i, value in enumerate(values) if (value >= goal if higher else value <= goal)
        )

    @property
    def near_best_in_words(self) -> str:
        """What :attr:`near_best` is the place of."""
        if self._start == 0:
            return f"95% of the best {self.metric.name}"
        return f"95% of the way from the first to the best {self.metric.name}"

    @property
    def _start(self) -> float:
        # A share that should be high starts from nothing; other metrics have no such zero.
        return 0.0 if self.metric.share and self.metric.higher_is_better else self.values[0]


def draw_curve(
    axes: Any, x: Sequence[float], y: Sequence[float], label: str, metric: Metric
) -> None:
    """Draw the line, with the last value written at its end."""
    marker = "o" if len(x) <= MOST_MARKERS else ""
    axes.plot(x, y, color=style.BLUE, marker=marker, markersize=3.5, label=label)
    axes.annotate(
        format_metric(metric, y[-1]),
        (x[-1], y[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=style.BLUE,
        fontweight="bold",
        annotation_clip=False,
    )


def metric_axis(axes: Any, curve: Curve, rounds: Sequence[RoundRow], label: str) -> None:
    """Fit the y axis to the curve and to the clients' spread in ``rounds``."""
    values = curve.values
    for row in rounds:
        if spread := row.spread(curve.metric):
            values += [spread.min, spread.max]
    low, high = min(values), max(values)
    axes.set_ylabel(label)
    if curve.metric.share:
        margin = max(0.03, 0.05 * (high - low))
        axes.set_ylim(max(0.0, low - margin), min(1.005, high + margin))
        axes.yaxis.set_major_formatter(style.PERCENT_TICKS)
    elif low > 0 and high / low > DECADES:
        style.log_scale(axes)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def metric_over_rounds(run: Run) -> Chart | None:
    """Draw the metric on the central test set, its spread over clients, and density."""
    curve = Curve.of(run)
    if curve is None:
        return None
    metric = curve.metric
    figure = style.new_figure(style.HALF_WIDTH, 4.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    has_clients = _draw_client_spread(top, run.rounds, metric)
    if curve.central:
        x = [float(row.round) for row, _ in curve.points]
        draw_curve(top, x, curve.values, "central test set", metric)
    metric_axis(top, curve, run.rounds, metric.name)
    style.legend_above(top, 2)
    _draw_density(bottom, run)
    return finish_chart(
        figure,
        key="metric-rounds",
        title=f"{_title(metric)} over rounds",
        caption=_caption(curve, run.summary.diverged_round, has_clients=has_clients),
        basis=("measured",),
    )


def _draw_client_spread(axes: Any, rounds: Sequence[RoundRow], metric: Metric) -> bool:
    spreads = [(row.round, row.spread(metric)) for row in rounds]
    rows = [(number, spread) for number, spread in spreads if spread is not None]
    if not rows:
        return False
    for index, run in enumerate(_consecutive(rows)):
        _draw_band(axes, run, labelled=index == 0)
    x = [number for number, _ in rows]
    marker = "o" if len(rows) <= MOST_MARKERS else ""
    axes.plot(
        x,
        [c.median for _, c in rows],
        color=style.BROWN,
        linewidth=1.2,
        linestyle="--",
        marker=marker,
        markersize=2.5,
        label="clients, median",
    )
    return True


def _consecutive(rows: Spreads) -> list[Spreads]:
    """Cut rounds where one between was not evaluated: nothing is known of the spread there."""
    runs: list[Spreads] = []
    for row in rows:
        if runs and row[0] == runs[-1][-1][0] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _draw_band(axes: Any, rows: Spreads, *, labelled: bool) -> None:
    """Draw bands over consecutive rounds, and bars at a round by itself."""
    x = [number for number, _ in rows]
    low, high = [c.p10 for _, c in rows], [c.p90 for _, c in rows]
    least, most = [c.min for _, c in rows], [c.max for _, c in rows]
    whole, inner = ("clients, min to max", "clients, p10 to p90") if labelled else (None, None)
    if len(rows) == 1:
        axes.vlines(x, least, most, color=style.FAINT, linewidth=4, label=whole)
        axes.vlines(x, low, high, color=style.PALE_ORANGE, linewidth=4, label=inner)
    else:
        axes.fill_between(x, least, most, color=style.BAND, label=whole, linewidth=0)
        axes.fill_between(x, low, high, color=style.PALE_ORANGE, label=inner, linewidth=0)


def _draw_density(axes: Any, run: Run) -> None:
    x = [row.round for row in run.rounds]
    y = [row.density for row in run.rounds]
    target = run.summary.target_density
    axes.axhline(target, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"target {format_percent(target)}",
        (1, target),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -4.5),
        textcoords="offset points",
        ha="right",
        va="top",
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


def _title(metric: Metric) -> str:
    return metric.name[:1].upper() + metric.name[1:]


def _caption(curve: Curve, diverged: int | None, *, has_clients: bool) -> str:
    row, best = curve.points[curve.best]
    where = "on the central test set" if curve.central else "in the clients' median"
    value = format_metric(curve.metric, best)
    text = f"Best {curve.metric.name} {where}: {value} at round {row.round}. "
    if not curve.metric.higher_is_better:
        text += "Lower is better. "
    if diverged is not None:
        text += f"From round {diverged} on the loss was not finite. "
    if has_clients:
        text += (
            "Orange holds 80% of the clients that evaluated, each on its own held-out share, at "
            "the rounds where they did; a wide band is a model that serves some clients much "
            "better than others. "
        )
    return text + "Below, the share of weights that are active in the global model."


def metric_over_time(run: Run) -> Chart | None:
    """Draw the metric against the fleet's clock; None where it was never evaluated."""
    curve = Curve.of(run)
    if curve is None:
        return None
    seconds = [row.virtual_seconds for row, _ in curve.points]
    scale = time_scale(seconds[-1])
    x, clock = [each / scale.factor for each in seconds], run.clock
    figure = _small_curve(x, curve, clock.label(scale.unit))
    reached = format_seconds(seconds[curve.near_best])
    return finish_chart(
        figure,
        key="metric-time",
        title=f"{_title(curve.metric)} over {clock.name}",
        caption=f"The same curve by the {'server' if run.deployed else 'fleet'}'s own clock"
        f"{_of_rounds(run)}. "
        f"{curve.near_best_in_words} was reached after {reached}.",
        basis=(f"{curve.metric.name} measured", f"time {clock.basis}"),
    )


def _of_rounds(run: Run) -> str:
    if run.waits_for_all:
        return ": a round that waits for slow devices takes more of it"
    return f": rounds do not wait for slow devices (server.mode = {run.mode})"


def metric_over_traffic(run: Run) -> Chart | None:
    """Draw the metric against the bytes sent so far, up and down; None without evaluations."""
    curve = Curve.of(run)
    if curve is None:
        return None
    sums = accumulate(row.bytes_up + row.bytes_down for row in run.rounds)
    sent = {row.round: total for row, total in zip(run.rounds, sums, strict=True)}
    totals = [sent[row.round] for row, _ in curve.points]
    scale = byte_scale(totals[-1])
    figure = _small_curve(
        [x / scale.factor for x in totals], curve, f"traffic so far, {scale.unit} (measured)"
    )
    return finish_chart(
        figure,
        key="metric-traffic",
        title=f"{_title(curve.metric)} over traffic",
        caption=f"Encoded payloads of all clients, up and down. "
        f"{curve.near_best_in_words} had cost {format_bytes(totals[curve.near_best])}; "
        f"one dense model in fp32 is {format_bytes(run.summary.dense_bytes)}.",
        basis=("measured",),
    )


def _small_curve(x: Sequence[float], curve: Curve, label: str) -> Figure:
    figure = style.new_figure(style.HALF_WIDTH, 3.1)
    axes = figure.subplots()
    draw_curve(axes, x, curve.values, "", curve.metric)
    name = curve.metric.name
    metric_axis(axes, curve, (), name if curve.central else f"{name}, clients' median")
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    return figure
