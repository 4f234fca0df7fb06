"""The energy of each tier, and of the fleet over virtual time."""

from typing import Any

from simulations.report.energy import EnergyUse, energy_by_tier, energy_over_time, lost_energy
from simulations.report.figures import style
from simulations.report.figures.chart import Chart, finish_chart
from simulations.report.figures.curve import MOST_MARKERS
from simulations.report.figures.scales import joule_scale, time_scale
from simulations.report.formats import format_joules, format_percent, shorten
from simulations.report.schema import Run

_PARTS = (
    ("computing", "compute", style.BLUE),
    ("radio", "radio", style.ORANGE),
    ("not divided", "other", style.FAINT),
)
_MOST_ROWS = 24


def energy_by_tier_and_time(run: Run) -> Chart | None:
    """Draw joules by tier, divided, and the fleet's joules so far; None where none were spent."""
    uses = sorted(energy_by_tier(run), key=lambda use: use.total, reverse=True)
    if not uses or uses[0].total == 0:
        return None
    shown = uses[:_MOST_ROWS]
    figure = style.new_figure(style.FULL_WIDTH, max(2.6, 1.3 + 0.36 * len(shown)))
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_tiers(left, shown)
    _draw_time(right, run)
    return finish_chart(
        figure,
        key="energy",
        title="Energy of the fleet, by tier and over time",
        caption=_caption(run, uses),
        basis=("modelled",),
    )


def _draw_tiers(axes: Any, uses: list[EnergyUse]) -> None:
    scale = joule_scale(uses[0].total)
    ends = style.stacked_bars(
        axes,
        (
            (label, [getattr(use, part) / scale.factor for use in uses], colour)
            for label, part, colour in _PARTS
        ),
    )
    for row, use in enumerate(uses):
        share = f" · {format_joules(use.total / use.tasks)} a task" if use.tasks else ""
        axes.annotate(
            f"{format_joules(use.total)}{share}",
            (ends[row], row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
        )
    style.row_axes(axes, [shorten(use.title, style.LABEL_LENGTH) for use in uses])
    axes.set_xlim(0, max(ends) * 1.45)
    axes.set_xlabel(f"energy in all rounds, {scale.unit} (modelled)")
    style.legend_above(axes, 3, handleheight=0.9)


def _draw_time(axes: Any, run: Run) -> None:
    points = energy_over_time(run)
    seconds, joules = time_scale(points[-1][0]), joule_scale(points[-1][1])
    x = [time / seconds.factor for time, _ in points]
    y = [total / joules.factor for _, total in points]
    marker = "o" if len(x) <= MOST_MARKERS else ""
    axes.plot(x, y, color=style.GREEN, marker=marker, markersize=3)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"virtual time, {seconds.unit} (modelled)")
    axes.set_ylabel(f"energy so far, {joules.unit} (modelled)")


def _caption(run: Run, uses: list[EnergyUse]) -> str:
    whole = sum(use.total for use in uses)
    text = (
        f"Of the fleet's {format_joules(whole)}, {uses[0].title} took "
        f"{format_percent(uses[0].total / whole)}. "
    )
    divided = sum(use.compute + use.radio for use in uses)
    if divided:
        radio = format_percent(sum(use.radio for use in uses) / divided)
        text += f"Sending and receiving took {radio} of what training rounds cost. "
    lost = lost_energy(run)
    if lost:
        text += f"Tasks that gave no update took {format_percent(lost / whole)}. "
    return f"{text}Counted is what a device draws while it works or sends, not while it waits."
