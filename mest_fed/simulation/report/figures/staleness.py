"""How old updates were when the server got them, where it does not wait for all devices."""

from collections import Counter
from statistics import mean, median
from typing import Any

from matplotlib.ticker import MaxNLocator

from mest_fed.run_rows.rounds import ClientRow
from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import count_of, format_percent, shorten
from mest_fed.simulation.report.runs import Run
from mest_fed.simulation.report.statistics import tasks_by_device

_ARRIVED = {TaskStatus.OK: style.BLUE, TaskStatus.REJECTED: style.VERMILION}
_LABELS = {TaskStatus.OK: "accepted", TaskStatus.REJECTED: "rejected"}
_OLDEST = 30
_MOST_ROWS = 24


def _arrived(tasks: tuple[ClientRow, ...]) -> list[ClientRow]:
    return [task for task in tasks if task.staleness is not None and task.status in _ARRIVED]


def staleness_of_updates(run: Run) -> Chart | None:
    """Draw the staleness of updates, and its mean by device; None where rounds wait for all."""
    tasks = _arrived(run.tasks)
    if run.waits_for_all or not tasks:
        return None
    groups = [(group.title, _arrived(group.tasks)) for group in tasks_by_device(run)]
    means = sorted(
        ((title, mean(task.staleness or 0 for task in each)) for title, each in groups if each),
        key=lambda item: -item[1],
    )[:_MOST_ROWS]
    figure = style.new_figure(style.FULL_WIDTH, max(2.8, 1.2 + 0.3 * len(means)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    _draw_ages(left, tasks)
    right.barh(range(len(means)), [value for _, value in means], height=0.52, color=style.BLUE)
    style.row_axes(right, [shorten(title, style.LABEL_LENGTH) for title, _ in means])
    for row, (_, value) in enumerate(means):
        right.annotate(
            f"{value:.2g}",
            (value, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
        )
    right.set_xlim(0, max(value for _, value in means) * 1.2 or 1)
    right.set_xlabel("mean staleness, rounds")
    return finish_chart(
        figure,
        key="staleness",
        title="Staleness of updates",
        caption=_caption(run, tasks),
        basis=("counts measured", f"devices' times {run.clock.basis}"),
    )


def _draw_ages(axes: Any, tasks: list[ClientRow]) -> None:
    oldest = min(_OLDEST, max(task.staleness or 0 for task in tasks))
    starts = [0] * (oldest + 1)
    for status, colour in _ARRIVED.items():
        ages = Counter(min(task.staleness or 0, oldest) for task in tasks if task.status == status)
        counts = [ages[age] for age in range(oldest + 1)]
        if any(counts):
            axes.bar(range(oldest + 1), counts, bottom=starts, color=colour, label=_LABELS[status])
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    axes.set_xlabel("staleness, rounds" + (f" ({oldest}: or more)" if oldest == _OLDEST else ""))
    axes.set_ylabel("updates")
    axes.grid(False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style.legend_above(axes, 2, handleheight=0.9)


def _caption(run: Run, tasks: list[ClientRow]) -> str:
    ages = [task.staleness or 0 for task in tasks]
    fresh = sum(age == 0 for age in ages) / len(ages)
    text = (
        "Staleness is how many rounds ended between the instruction to a device and its update. "
        f"Of {count_of(len(ages), 'update')} {format_percent(fresh)} were of the present round; "
        f"the median is {median(ages):.3g}, the largest {max(ages)}. "
    )
    exponent = run.setting("server", "staleness_exponent")
    if isinstance(exponent, int | float) and exponent >= 0:
        text += (
            f"An update of staleness s counts (1 + s)^-{exponent:g}: the oldest one "
            f"{format_percent((1 + max(ages)) ** -exponent)} of a fresh one. "
        )
    limit = run.setting("server", "max_staleness")
    if isinstance(limit, int):
        text += f"Updates older than {count_of(limit, 'round')} are rejected. "
    return (
        text
        + f"Whose updates are old is a matter of the devices' times, which are {run.clock.basis}."
    )
