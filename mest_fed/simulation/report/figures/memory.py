"""Peak training memory of each tier: against its budget, and what it is made of."""

from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mest_fed.run_rows.summary import Tier
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import count_of, format_percent
from mest_fed.simulation.report.plan_table import PlanGroup, plan_groups
from mest_fed.simulation.report.runs import Run
from mest_fed.units import format_bytes

# Blues are what the weights cost, oranges what the examples cost, greys all else.
_PART_COLOURS = {
    "values": "#0b4f7d",
    "gradients": "#3b8fc4",
    "optimizer": "#8cc1e3",
    "index": "#cfe6f5",
    "activations": "#d97706",
    "workspace": "#f2ab4e",
    "batch": "#f8d9ad",
    "wire": "#9aa5b1",
    "runtime": "#d8dde2",
}
_REST = "other"
_LEAST_LABELLED = 0.09
_ABOVE = 0.3  # of a row


def memory_by_tier(run: Run) -> Chart | None:
    """Draw budgets and peaks as dots on a logarithmic axis, and parts as shares of the peak.

    Budgets may be a hundred times the need, so lengths would say nothing; positions do. Devices
    whose plans are equal share a row.
    """
    groups = plan_groups(run.summary.tiers)
    if not groups:
        return None
    figure = style.new_figure(style.FULL_WIDTH, 1.6 + 0.46 * len(groups))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    _draw_against_budget(left, groups)
    _draw_parts(right, [group.first for group in groups])
    style.row_axes(left, [group.label(style.LABEL_LENGTH) for group in groups])
    right.tick_params(axis="y", labelleft=False, length=0)
    right.spines["left"].set_visible(False)
    right.grid(False)
    measured = any(tier.measured_peak_bytes for tier in run.summary.tiers)
    return finish_chart(
        figure,
        key="memory",
        title="Training memory of each plan",
        caption=_caption(groups, run.summary.over_budget),
        basis=("prediction modelled", "peak measured") if measured else ("modelled",),
    )


def _draw_against_budget(axes: Any, groups: list[PlanGroup]) -> None:
    for row, group in enumerate(groups):
        peak, most = group.first.peak_bytes, group.budget_range[1]
        axes.plot(
            [peak, most],
            [row, row],
            color=style.VERMILION if group.over_budget else style.FAINT,
            linewidth=2,
            zorder=1,
        )
        axes.annotate(
            f"{group.use_in_words} of {group.budgets}",
            (max(most, peak), row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.VERMILION if group.over_budget else style.MUTED,
        )
    # Above the dots, which they would cover where a budget is near its need.
    budgets = [
        (tier.budget_bytes, row - _ABOVE) for row, g in enumerate(groups) for tier in g.tiers
    ]
    firsts = [group.first for group in groups]
    predicted = [tier.predicted_peak_bytes for tier in firsts]
    measured = [(t.measured_peak_bytes, i) for i, t in enumerate(firsts) if t.measured_peak_bytes]
    axes.scatter(
        *zip(*budgets, strict=True),
        s=70,
        marker="|",
        color=style.INK,
        linewidth=2.2,
        label="budget",
    )
    axes.scatter(
        predicted,
        range(len(groups)),
        s=52,
        marker="D",
        facecolor="white",
        edgecolor=style.BLUE,
        linewidth=1.4,
        label="predicted peak (modelled)",
        zorder=3,
    )
    if measured:
        axes.scatter(
            *zip(*measured, strict=True),
            s=15,
            color=style.VERMILION,
            label="measured peak",
            zorder=4,
        )
    _log_bytes_axis(
        axes, [size for size, _ in budgets] + predicted + [peak for peak, _ in measured]
    )
    style.legend_above(axes, 2)


def _log_bytes_axis(axes: Any, values: list[int]) -> None:
    low, high = max(1, min(values)), max(1, *values)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.4, high * (high / low) ** 0.32 * 1.8)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("bytes that training adds to the process, logarithmic")


def _draw_parts(axes: Any, tiers: list[Tier]) -> None:
    parts = [_shares(tier) for tier in tiers]
    names = [name for name in _PART_COLOURS if any(share.get(name) for share in parts)]
    names += sorted({name for share in parts for name in share} - set(names) - set(_PART_COLOURS))
    style.stacked_bars(
        axes,
        [
            (name, [share.get(name, 0.0) for share in parts], _PART_COLOURS.get(name, style.FAINT))
            for name in names
        ],
    )
    for bars in axes.containers:
        dark = bars.get_label() in ("values", "gradients", "activations")
        axes.bar_label(
            bars,
            [f"{width:.0%}" if width >= _LEAST_LABELLED else "" for width in bars.datavalues],
            label_type="center",
            fontsize=8,
            color=style.ON_DARK if dark else style.ON_LIGHT,
        )
    for row, tier in enumerate(tiers):
        axes.text(1.015, row, format_bytes(tier.predicted_peak_bytes), va="center", fontsize=8.5)
    axes.set_xlim(0, 1.17)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(style.PERCENT_TICKS)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("share of the predicted peak (modelled)")
    style.legend_above(axes, 3, handleheight=0.9)


def _shares(tier: Tier) -> dict[str, float]:
    """Parts as shares of the predicted peak, with the unexplained rest as a part of its own."""
    known = sum(tier.parts.values())
    whole = max(known, tier.predicted_peak_bytes, 1)
    shares = {name: size / whole for name, size in tier.parts.items()}
    rest = whole - known
    if rest:
        shares[_REST] = shares.get(_REST, 0.0) + rest / whole
    return shares


def _caption(groups: list[PlanGroup], over_budget: int) -> str:
    tiers = [tier for group in groups for tier in group.tiers]
    over = dict.fromkeys(tier.title for tier in tiers if tier.peak_bytes > tier.budget_bytes)
    tightest = max(tiers, key=lambda tier: tier.peak_bytes / max(tier.budget_bytes, 1))
    if over:
        text = f"Over budget: {', '.join(over)}. "
    else:
        share = format_percent(tightest.peak_bytes / max(tightest.budget_bytes, 1))
        text = (
            "The peak of every tier is within its budget; "
            f"the nearest is that of {tightest.title}, {share} of it. "
        )
        if over_budget:
            text += f"Yet {count_of(over_budget, 'task')} went over budget during the run. "
    if len(groups) < len(tiers):
        text += "Devices whose plans are equal share a row. "
    measured = [tier for tier in tiers if tier.measured_peak_bytes]
    if measured:
        worst = max(measured, key=_miss)
        text += (
            f"Predictions miss the measured peaks by {format_percent(_miss(worst))} at most: "
            f"{worst.title} has {format_bytes(worst.predicted_peak_bytes)} predicted and "
            f"{format_bytes(worst.peak_bytes)} measured. "
            "On the left, a dot within its diamond is a prediction that held. "
        )
    else:
        text += "No peak was measured in this run. "
    return text + (
        "The grey line is head-room. On the right is what the prediction is made of: blues are "
        "what the weights cost, oranges what the examples of a step cost, greys all else. "
        "Only a whole peak is measured; its parts are modelled."
    )


def _miss(tier: Tier) -> float:
    measured = tier.measured_peak_bytes or tier.predicted_peak_bytes
    return abs(tier.predicted_peak_bytes - measured) / max(measured, 1)
