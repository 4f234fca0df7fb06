"""What devices did over time, a row a device."""

from typing import Any

from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.devices import REAL_TASK, STARTS
from mest_fed.simulation.report.figures.style import Chart, finish_chart, time_scale
from mest_fed.simulation.report.formats import count_of, format_percent, shorten
from mest_fed.simulation.report.runs import FleetRun
from mest_fed.simulation.report.statistics import Timeline, timeline

_COLOURS = {
    "downloading": style.SKY,
    "starting": style.PURPLE,
    "training": style.BLUE,
    "sending": style.ORANGE,
    "waiting": style.WAITING,
    "away": style.SLATE,
}
_MARKS = {
    TaskStatus.DECLINED: ("D", style.SLATE),
    TaskStatus.LATE: (">", style.VERMILION),
    TaskStatus.DROPPED: ("X", style.VERMILION),
    TaskStatus.FAILED: ("x", style.INK),
    TaskStatus.REJECTED: ("s", style.INK),
    TaskStatus.SURPLUS: ("o", style.GREEN),
}
_LEAST_NUMBERED = 0.025  # of the width, that a round's number needs


def what_devices_did(run: FleetRun) -> Chart | None:
    """Draw the last rounds as rows of phases; None where no task says when it began."""
    shown = timeline(run)
    if shown is None:
        return None
    figure = style.new_figure(style.FULL_WIDTH, 1.5 + 0.19 * len(shown.lines))
    axes = figure.subplots()
    scale = time_scale(shown.end)
    _draw_spans(axes, shown, scale.factor)
    _draw_losses(axes, shown, scale.factor)
    _number_rounds(axes, shown, scale.factor)
    labels = [
        f"{shorten(line.title, style.LABEL_LENGTH)} #{line.partition}" for line in shown.lines
    ]
    style.row_axes(axes, labels)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.grid(False)
    axes.set_xlim(shown.begin / scale.factor, shown.end / scale.factor)
    axes.set_xlabel(run.clock.label(scale.unit))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        [handles[name] for name in (*_COLOURS, *_MARKS) if name in handles],
        [name for name in (*_COLOURS, *_MARKS) if name in handles],
        loc="outside upper left",
        ncols=10,
        columnspacing=1.4,
        handleheight=0.9,
    )
    return finish_chart(
        figure,
        key="timeline",
        title="What the devices were doing",
        caption=_caption(shown, run),
        basis=(run.clock.basis,),
    )


def _draw_spans(axes: Any, shown: Timeline, factor: float) -> None:
    for phase, colour in _COLOURS.items():
        rows, starts, widths = [], [], []
        for row, line in enumerate(shown.lines):
            for span in line.spans:
                if span.phase == phase:
                    rows.append(row)
                    starts.append(span.start / factor)
                    widths.append((span.end - span.start) / factor)
        if rows:
            axes.barh(
                rows,
                widths,
                left=starts,
                height=0.7,
                color=colour,
                edgecolor=colour,
                linewidth=0.5,  # keeps in sight what is too short for a pixel
                # Transfers are short, and the edge of waiting would cover them.
                zorder=1 if phase in ("waiting", "away") else 2,
                label=phase,
            )


def _draw_losses(axes: Any, shown: Timeline, factor: float) -> None:
    for status, (marker, colour) in _MARKS.items():
        points = [
            (time / factor, row)
            for row, line in enumerate(shown.lines)
            for time, ended in line.losses
            if ended == status
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True),
                s=17,
                marker=marker,
                color=colour,
                linewidth=0.9,
                label=status,
                zorder=3,
                clip_on=False,
            )


def _number_rounds(axes: Any, shown: Timeline, factor: float) -> None:
    """Draw a line where a round ends, and its number above."""
    begin = shown.begin
    for number, end in shown.rounds:
        axes.axvline(end / factor, color=style.MUTED, linewidth=0.6, zorder=2.5)
        if end - begin >= _LEAST_NUMBERED * (shown.end - shown.begin):
            axes.annotate(
                str(number),
                ((begin + end) / 2 / factor, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=style.MUTED,
            )
        begin = end


def _caption(shown: Timeline, run: FleetRun) -> str:
    first, last = shown.rounds[0][0], shown.rounds[-1][0]
    rounds = f"round {last}" if first == last else f"rounds {first} to {last}"
    few = len(shown.lines) < shown.asked
    which = f"{len(shown.lines)} of the {count_of(shown.asked, 'device')}" if few else "All devices"
    waiting = (
        "Who is done waits for the end of the round, evaluation included: that took "
        if run.waits_for_all
        else "Waiting is from the end of a task to the next one, or to the end of the round that "
        "took its update: that took "
    )
    starts = any(span.phase == "starting" for line in shown.lines for span in line.spans)
    return (
        f"{which} that were asked in {rounds}, by number; the numbers above are the rounds'. "
        f"{waiting}"
        f"{format_percent(shown.waited)} of the time of all who were there. "
        f"{f'Starting: {STARTS[:1].lower()}{STARTS[1:]} ' if starts else ''}"
        f"{f'Training: {REAL_TASK}. ' if run.deployed else ''}"
        "Blank: not asked, or not done when the run ended."
    )
