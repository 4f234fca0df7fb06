"""How long a task takes on each kind of device, and the energy it costs."""

from statistics import median, quantiles
from typing import Any

from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.metric import MOST_MARKERS
from mest_fed.simulation.report.figures.style import Chart, finish_chart, joule_scale, time_scale
from mest_fed.simulation.report.formats import (
    count_of,
    format_joules,
    format_known_joules,
    format_percent,
    shorten,
)
from mest_fed.simulation.report.runs import FleetRun
from mest_fed.simulation.report.statistics import (
    DeviceTasks,
    EnergyUse,
    energy_by_tier,
    energy_over_time,
    lost_energy,
    tasks_by_device,
)
from mest_fed.units import format_seconds

#: What the time of a real device's task is, of which the server sees no parts.
REAL_TASK = "from the instruction to the reply, transfers included"
_WHOLE = (("instruction to reply", "train_seconds", style.BLUE),)
_PHASES = (
    ("download", "download_seconds", style.SKY),
    ("start of a process", "setup_seconds", style.PURPLE),
    ("training", "train_seconds", style.BLUE),
    ("upload", "upload_seconds", style.ORANGE),
)
#: What a figure with that phase says of it.
STARTS = "A device starts the process that trains anew for each message."
_SPAN = "p10 to p90 of the sum"
_MOST_ROWS = 24


def time_and_energy_by_device(run: FleetRun) -> Chart | None:
    """Draw the median time of a task by phase and its median energy; None without tasks."""
    groups = [group for group in tasks_by_device(run) if group.completed]
    without = [group.title for group in tasks_by_device(run) if not group.completed]
    groups = sorted(groups, key=lambda group: len(group.tasks), reverse=True)[:_MOST_ROWS]
    groups.sort(key=_median_seconds, reverse=True)
    if not groups:
        return None
    figure = style.new_figure(style.FULL_WIDTH, 1.4 + 0.44 * len(groups))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1))
    _draw_times(left, groups, run)
    _draw_energies(right, groups)
    style.row_axes(left, [shorten(group.title, style.LABEL_LENGTH) for group in groups])
    right.grid(False, axis="y")
    right.tick_params(axis="y", labelleft=False, length=0)
    right.spines["left"].set_visible(False)
    return finish_chart(
        figure,
        key="devices",
        title="Time and energy of one task, by device",
        caption=_caption(groups, without, run),
        basis=(f"time {run.clock.basis}", "energy modelled") if run.deployed else ("modelled",),
    )


def _median_seconds(group: DeviceTasks) -> float:
    return median(task.seconds for task in group.completed)


def _draw_times(axes: Any, groups: list[DeviceTasks], run: FleetRun) -> None:
    totals = [sorted(task.seconds for task in group.completed) for group in groups]
    spans = [_p10_p90(total) for total in totals]
    scale = time_scale(max(high for _, high in spans))
    parts = []
    for label, phase, colour in _WHOLE if run.deployed else _PHASES:
        medians = [median(getattr(task, phase) for task in group.completed) for group in groups]
        parts.append((label, [value / scale.factor for value in medians], colour))
    ends = style.stacked_bars(axes, parts)
    lows, highs = ([value / scale.factor for value in side] for side in zip(*spans, strict=True))
    axes.hlines(range(len(groups)), lows, highs, color=style.INK, linewidth=1, label=_SPAN)
    for row, total in enumerate(totals):
        axes.annotate(
            f"{format_seconds(median(total))} · {count_of(len(total), 'task')}",
            (max(ends[row], highs[row]), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
        )
    axes.set_xlim(0, max(*ends, *highs) * 1.32 or 1)
    axes.set_xlabel(f"median time of one task, {scale.unit} ({run.clock.basis})")
    handles, labels = axes.get_legend_handles_labels()
    in_order = sorted(zip(handles, labels, strict=True), key=lambda item: item[1] == _SPAN)
    style.legend_above(axes, 5, handles=[handle for handle, _ in in_order], handleheight=0.9)


def _draw_energies(axes: Any, groups: list[DeviceTasks]) -> None:
    energies = [_median_joules(group) for group in groups]
    scale = joule_scale(max(energy or 0.0 for energy in energies))
    widths = [(energy or 0.0) / scale.factor for energy in energies]
    axes.barh(range(len(groups)), widths, height=0.52, color=style.GREEN)
    for row, (width, energy) in enumerate(zip(widths, energies, strict=True)):
        axes.annotate(
            format_known_joules(energy),
            (width, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
        )
    axes.set_xlim(0, max(widths) * 1.3 or 1)
    axes.set_xlabel(f"median energy of one task, {scale.unit} (modelled)")


def _median_joules(group: DeviceTasks) -> float | None:
    known = [joules for task in group.completed if (joules := task.energy_joules) is not None]
    return median(known) if known else None


def _p10_p90(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    deciles = quantiles(values, n=10, method="inclusive")
    return deciles[0], deciles[-1]


def _caption(groups: list[DeviceTasks], without: list[str], run: FleetRun) -> str:
    slowest, fastest = groups[0], groups[-1]
    text = f"A task on {slowest.title} takes {format_seconds(_median_seconds(slowest))}"
    if slowest is not fastest and _median_seconds(fastest) > 0:
        ratio = _median_seconds(slowest) / _median_seconds(fastest)
        text += f", {ratio:.3g} times as long as on {fastest.title}"
    return (
        text
        + (
            ". A round that waits for all devices lasts as long as its slowest task. "
            if run.waits_for_all
            else ". Rounds do not wait for the slowest task: its update counts in a later one. "
        )
        + (
            f"Bars are the medians of {f'the time {REAL_TASK},' if run.deployed else 'each phase'} "
            "over completed tasks; the thin line is where 80% of the tasks lie."
        )
        + (f" {STARTS}" if any(t.setup_seconds for g in groups for t in g.completed) else "")
        + (f" No task was completed on {', '.join(without)}." if without else "")
    )


_PARTS = (
    ("computing", "compute", style.BLUE),
    ("radio", "radio", style.ORANGE),
    ("not divided", "other", style.FAINT),
)
_MOST_TIERS = 24


def energy_by_tier_and_time(run: FleetRun) -> Chart | None:
    """Draw joules by tier, divided, and the fleet's joules so far; None where none were spent."""
    uses = sorted(energy_by_tier(run), key=lambda use: use.total, reverse=True)
    if not uses or uses[0].total == 0:
        return None
    shown = uses[:_MOST_TIERS]
    figure = style.new_figure(style.FULL_WIDTH, max(2.6, 1.3 + 0.36 * len(shown)))
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_tiers(left, shown)
    _draw_so_far(right, run)
    return finish_chart(
        figure,
        key="energy",
        title="Energy of the fleet, by tier and over time",
        caption=_energy_caption(run, uses),
        basis=(f"time {run.clock.basis}", "energy modelled") if run.deployed else ("modelled",),
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


def _draw_so_far(axes: Any, run: FleetRun) -> None:
    points = energy_over_time(run)
    seconds, joules = time_scale(points[-1][0]), joule_scale(points[-1][1])
    x = [time / seconds.factor for time, _ in points]
    y = [total / joules.factor for _, total in points]
    marker = "o" if len(x) <= MOST_MARKERS else ""
    axes.plot(x, y, color=style.GREEN, marker=marker, markersize=3)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(run.clock.label(seconds.unit))
    axes.set_ylabel(f"energy so far, {joules.unit} (modelled)")


def _energy_caption(run: FleetRun, uses: list[EnergyUse]) -> str:
    whole = sum(use.total for use in uses)
    text = (
        f"Of the fleet's {format_joules(whole)}, {uses[0].title} took "
        f"{format_percent(uses[0].total / whole)}. "
    )
    divided = sum(use.compute + use.radio for use in uses)
    if divided and not run.deployed:  # whose time is in one piece
        radio = format_percent(sum(use.radio for use in uses) / divided)
        text += f"Sending and receiving took {radio} of what is divided. "
    lost = lost_energy(run)
    if lost:
        text += f"Tasks that gave no {run.gives} took {format_percent(lost / whole)}. "
    without = run.without_power
    if without:
        text += f"Of {count_of(without, 'device')} no power is known: they are left out. "
    return f"{text}Counted is what a device draws while it works or sends, not while it waits."
