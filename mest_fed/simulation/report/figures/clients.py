"""How well the model serves each client, by kind of device."""

from statistics import median
from typing import Any

from mest_fed.run_rows.rounds import ClientScore
from mest_fed.schema import Metric
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import count_of, format_count, format_metric, shorten
from mest_fed.simulation.report.runs import Run

_MOST_ROWS = 24


def scores_by_tier(run: Run) -> dict[str, list[ClientScore]]:
    """Group the last scores by kind of device, in the tiers' order; empty where there are none."""
    last = run.last_scores
    titles = {tier.profile: tier.title for tier in run.summary.tiers}
    groups: dict[str, list[ClientScore]] = {title: [] for title in titles.values()}
    for score in () if last is None else last[1]:
        groups.setdefault(titles.get(score.device, score.device), []).append(score)
    return {title: scores for title, scores in groups.items() if scores}


def metric_by_client(run: Run) -> Chart | None:
    """Draw a dot for each client of the last round in which clients evaluated; None without one."""
    groups = dict(list(scores_by_tier(run).items())[:_MOST_ROWS])
    last = run.last_scores
    if last is None or not groups:
        return None
    metric = run.summary.primary_metric
    figure = style.new_figure(style.FULL_WIDTH, 1.2 + 0.34 * len(groups))
    axes = figure.subplots()
    _draw(axes, list(groups.values()), metric)
    style.row_axes(axes, [shorten(title, style.LABEL_LENGTH) for title in groups])
    axes.set_xlabel(f"{metric.name} on each client's held-out examples (measured)")
    style.legend_above(axes, 2)
    return finish_chart(
        figure,
        key="client-metric",
        title=f"{metric.name[:1].upper()}{metric.name[1:]} of each client, by device",
        caption=_caption(run, last[0], last[1], groups),
        basis=("measured",),
    )


def _draw(axes: Any, groups: list[list[ClientScore]], metric: Metric) -> None:
    for row, scores in enumerate(groups):
        values = [score.value for score in scores]
        middle = median(values)
        axes.scatter(
            values,
            [row] * len(values),
            s=26,
            color=style.BLUE,
            alpha=0.7,
            linewidth=0,
            label="a client" if row == 0 else None,
        )
        axes.scatter(
            [middle],
            [row],
            s=150,
            marker="|",
            color=style.INK,
            linewidth=1.6,
            label="median" if row == 0 else None,
            zorder=3,
        )
        axes.annotate(
            f"{format_metric(metric, middle)} · {count_of(len(values), 'client')}",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
            annotation_clip=False,
        )
    if metric.share:
        low = min(score.value for scores in groups for score in scores)
        axes.set_xlim(max(-0.01, low - 0.05), 1.01)
        axes.xaxis.set_major_formatter(style.PERCENT_TICKS)


def _caption(
    run: Run, number: int, scores: tuple[ClientScore, ...], groups: dict[str, list[ClientScore]]
) -> str:
    metric, fleet = run.summary.primary_metric, sum(tier.clients for tier in run.summary.tiers)
    text = (
        f"The model of round {number} on the held-out examples of each of "
        f"{format_count(len(scores))} clients, of {format_count(fleet)}; where there are few "
        "examples, chance moves a client far. "
    )
    if len(groups) > 1:
        middles = {title: median(s.value for s in each) for title, each in groups.items()}
        ordered = sorted(middles, key=lambda title: middles[title])
        low, high = ordered[0], ordered[-1]
        text += (
            f"The medians lie between {format_metric(metric, middles[low])} ({low}) and "
            f"{format_metric(metric, middles[high])} ({high}). "
        )
    sizes = [score.examples for score in scores]
    return text + f"The clients hold out {min(sizes)} to {max(sizes)} examples each."
