"""Why tasks gave no update."""

from collections import Counter

from matplotlib.ticker import MaxNLocator

from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import count_of, format_count, format_percent, shorten
from mest_fed.simulation.report.runs import FleetRun
from mest_fed.simulation.report.statistics import LostTasks, lost_by_reason

_MOST_ROWS = 10
_A = {"update": "an update", "result": "a result"}
_COLOURS = {
    TaskStatus.FAILED: style.ORANGE,
    TaskStatus.REJECTED: style.INK,
    TaskStatus.AWAY: style.SLATE,
    TaskStatus.DECLINED: style.PURPLE,
    TaskStatus.LATE: style.SKY,
    TaskStatus.DROPPED: style.VERMILION,
    TaskStatus.SURPLUS: style.PALE_BLUE,
}
_MEANINGS = {
    TaskStatus.FAILED: "Failed: the device ended without a result.",
    TaskStatus.REJECTED: "Rejected: the server refused what it sent.",
    TaskStatus.AWAY: "Away: it could not be asked.",
    TaskStatus.DECLINED: "Declined: the device might not train then.",
    TaskStatus.LATE: "Late: the server had stopped waiting.",
    TaskStatus.DROPPED: "Dropped: it went away before it was done.",
    TaskStatus.SURPLUS: "Surplus: enough other devices were faster.",
}


def failures_by_reason(run: FleetRun) -> Chart | None:
    """Draw the tasks without an update, or a result, by reason; None if there is none."""
    lost = lost_by_reason(run)
    if not lost:
        return None
    shown = _merge_tail(lost)
    figure = style.new_figure(style.FULL_WIDTH, 1.1 + 0.34 * len(shown))
    axes = figure.subplots()
    rows = range(len(shown))
    starts = [0] * len(shown)
    for status, colour in _COLOURS.items():
        widths = [entry.counts.get(status, 0) for entry in shown]
        if any(widths):
            axes.barh(rows, widths, left=starts, height=0.5, color=colour, label=status)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, entry in enumerate(shown):
        axes.annotate(
            str(entry.total),
            (entry.total, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
        )
    style.row_axes(axes, [shorten(entry.reason, 56) for entry in shown])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, max(entry.total for entry in shown) * 1.1)
    axes.set_xlabel("tasks")
    style.legend_above(axes, 6, handleheight=0.9)
    return finish_chart(
        figure,
        key="failures",
        title=f"Tasks without {_A[run.gives]}, by reason",
        caption=_caption(lost, run),
        basis=("measured",) if run.deployed else ("counts measured", "devices' behaviour modelled"),
    )


def _merge_tail(lost: list[LostTasks]) -> list[LostTasks]:
    if len(lost) <= _MOST_ROWS:
        return lost
    head, tail = lost[: _MOST_ROWS - 1], lost[_MOST_ROWS - 1 :]
    counts = sum((Counter(entry.counts) for entry in tail), Counter[TaskStatus]())
    rest = LostTasks(count_of(len(tail), "other reason"), counts)
    return [*head, rest]


def _caption(lost: list[LostTasks], run: FleetRun) -> str:
    total = sum(entry.total for entry in lost)
    statuses = {status for entry in lost for status in entry.counts}
    meanings = (_MEANINGS[status] for status in _COLOURS if status in statuses)
    return (
        f"{count_of(total, 'task')} of {format_count(len(run.tasks))} gave no {run.gives} "
        f"({format_percent(total / len(run.tasks))}). {' '.join(meanings)}"
        + ("" if run.deployed else " Whether a device is away, drops out or is late is modelled.")
    )
