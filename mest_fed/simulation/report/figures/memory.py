"""Peak training memory of each tier: against its budget, and what it is made of."""

from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mest_fed.rows import Tier
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import count_of, format_percent, shorten
from mest_fed.simulation.report.load import Run
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
    "runtime": "#d9dee3",
}
_REST = "other"
_LEAST_LABELLED = 0.09


def memory_by_tier(run: Run) -> Chart | None:
    """Draw budgets and peaks as dots on a logarithmic axis, and parts as shares of the peak.

    Budgets may be a hundred times the need, so lengths would say nothing; positions do.
    """
    tiers = sorted(run.summary.tiers, key=lambda tier: tier.budget_bytes)
    if not tiers:
        return None
    figure = style.new_figure(style.FULL_WIDTH, 1.5 + 0.46 * len(tiers))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    _draw_against_budget(left, tiers)
    _draw_parts(right, tiers)
    style.row_axes(left, [shorten(tier.title, style.LABEL_LENGTH) for tier in tiers])
    right.tick_params(axis="y", labelleft=False, length=0)
    right.spines["left"].set_visible(False)
    right.grid(False)
    measured = any(tier.measured_peak_bytes for tier in tiers)
    return finish_chart(
        figure,
        key="memory",
        title="Training memory of each tier",
        caption=_caption(tiers, run.summary.over_budget),
        basis=("prediction modelled", "peak measured") if measured else ("modelled",),
    )


def _draw_against_budget(axes: Any, tiers: list[Tier]) -> None:
    rows = range(len(tiers))
    for row, tier in enumerate(tiers):
        over = tier.peak_bytes > tier.budget_bytes
        axes.plot(
            [tier.peak_bytes, tier.budget_bytes],
            [row, row],
            color=style.VERMILION if over else style.FAINT,
            linewidth=2,
            zorder=1,
        )
        axes.annotate(
            f"{format_percent(tier.peak_bytes / max(tier.budget_bytes, 1))} of "
            f"{format_bytes(tier.budget_bytes)}",
            (max(tier.budget_bytes, tier.peak_bytes), row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.VERMILION if over else style.MUTED,
        )
    budgets = [tier.budget_bytes for tier in tiers]
    predicted = [tier.predicted_peak_bytes for tier in tiers]
    measured = [(t.measured_peak_bytes, i) for i, t in enumerate(tiers) if t.measured_peak_bytes]
    axes.scatter(budgets, rows, s=150, marker="|", color=style.INK, linewidth=2.2, label="budget")
    axes.scatter(
        predicted,
        rows,
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
    _log_bytes_axis(axes, [*budgets, *predicted, *(peak for peak, _ in measured)])
    style.legend_above(axes, 3)


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
            color="white" if dark else style.INK,
        )
    for row, tier in enumerate(tiers):
        axes.text(1.015, row, format_bytes(tier.predicted_peak_bytes), va="center", fontsize=8.5)
    axes.set_xlim(0, 1.17)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(style.PERCENT_TICKS)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("share of the predicted peak (modelled)")
    style.legend_above(axes, 4, handleheight=0.9)


def _shares(tier: Tier) -> dict[str, float]:
    """Parts as shares of the predicted peak, with the unexplained rest as a part of its own."""
    known = sum(tier.parts.values())
    whole = max(known, tier.predicted_peak_bytes, 1)
    shares = {name: size / whole for name, size in tier.parts.items()}
    rest = whole - known
    if rest:
        shares[_REST] = shares.get(_REST, 0.0) + rest / whole
    return shares


def _caption(tiers: list[Tier], over_budget: int) -> str:
    over = [tier.title for tier in tiers if tier.peak_bytes > tier.budget_bytes]
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
    measured = [tier for tier in tiers if tier.measured_peak_bytes]
    if measured:
        worst = max(measured, key=_miss)
        text += (
            f"Predictions miss the measured peaks by {format_percent(_miss(worst))} at most: "
            "on the left, a dot within its diamond is a prediction that held. "
        )
    else:
        text += "No peak was measured in this run. "
    return text + (
        "The grey line is head-room. On the right, blues are what the weights cost, oranges what "
        "the examples of a step cost."
    )


def _miss(tier: Tier) -> float:
    measured = tier.measured_peak_bytes or tier.predicted_peak_bytes
    return abs(tier.predicted_peak_bytes - measured) / max(measured, 1)
