"""What a step takes in memory and in time, one point a plan: the picture of ``mest-fed plan``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mest_fed.catalogue import FORMATS, Recompute
from mest_fed.cli.planning.frontier import FrontierPoint, format_multiple, front, place
from mest_fed.cli.planning.report import PlanReport
from mest_fed.simulation.report.figures import style
from mest_fed.units import format_bytes, format_seconds, number_of

BAND = "#f4f6f8"


def memory_axis(axes: Any, points: Sequence[FrontierPoint], report: PlanReport) -> None:
    """Give the axes room for all peaks and the budget, on a logarithmic scale."""
    peaks = [point.peak for point in points] + [report.plan.budget]
    low, high = min(peaks), max(peaks)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.25, high * 1.25)
    steps = (1, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5) if high / low < 100 else (1, 3)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(
        "predicted peak: bytes that training adds to the process (modelled, logarithmic)"
    )


def time_axis(axes: Any, points: Sequence[FrontierPoint], report: PlanReport) -> None:
    """Write each time beside its band; bands are in order, not to scale."""
    middles = {}
    for time in sorted({point.time for point in points}):
        heights = [point.height for point in points if point.time == time]
        low, high = min(heights), max(heights)
        middles[time] = (low + high) / 2
        axes.axhspan(low - 0.6, high + 0.9, color=BAND, lw=0, zorder=0)
    axes.set_ylim(-0.9, max(point.height for point in points) + 1.7)
    axes.set_yticks(list(middles.values()), [_written(time, report) for time in middles])
    axes.tick_params(axis="y", length=0, labelcolor=style.INK)
    axes.set_ylabel(_time_label(report))
    axes.grid(False, axis="y")


def _written(time: float, report: PlanReport) -> str:
    return format_multiple(time) if report.profile is None else format_seconds(time)


def _time_label(report: PlanReport) -> str:
    batch = report.plan.shape.batch
    if report.profile is None:
        return (
            f"time of a step of {number_of(batch, 'example')} (modelled),\nplain training being 1"
        )
    return f"time of a step of {number_of(batch, 'example')} (modelled),\n{report.profile.title}"


_COLOURS = dict(zip(Recompute, (style.BLUE, style.ORANGE, style.VERMILION), strict=True))
#: Of the formats, in the registry's order; what has none of its own gets the last.
_MARKERS = ("o", "D", "s", "v", "^", "X")
_FRONT: dict[str, Any] = {"color": style.MUTED, "lw": 5, "alpha": 0.22}
_RING: dict[str, Any] = {"s": 150, "facecolor": "none", "edgecolor": style.INK, "lw": 1.6}
#: Inches, and dots to each.
_WIDTH, _LANE, _DPI = 8, 0.33, 200
#: Points between the middles of two micro-batches that are both written, at least.
_ROOM = 15


def draw_frontier(report: PlanReport, path: Path) -> None:
    """Draw the frontier, the budget and the plan into a file.

    Parameters
    ----------
    report : PlanReport
        The plan, and all that it was chosen from.
    path : Path
        A .svg or .png file.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    points = place(
        [(plan, _time(report, plan)) for plan in report.frontier],
        (report.plan, _time(report, report.plan)),
    )
    density = report.wished.density
    with style.house_style():
        figure = style.new_figure(_WIDTH, 1.7 + _LANE * (1 + max(point.height for point in points)))
        figure.suptitle(report.request.title, x=0.01, ha="left", fontsize=9)
        axes = figure.add_subplot()
        memory_axis(axes, points, report)
        time_axis(axes, points, report)
        _lanes(axes, points)
        _front(axes, front(points, density))
        _budget(axes, report)
        _chosen(axes, next(point for point in points if point.chosen), report)
        _legend(axes, points, density)
        _micro_batches(figure, axes, points)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=_DPI, facecolor="white", metadata=metadata)


def _time(report: PlanReport, plan: Any) -> float:
    """Return a plan's step time: seconds on the device, or against plain training."""
    seconds = report.clock.seconds(plan.shape)
    return report.clock.against(plan.shape, report.wished) if seconds is None else seconds


def _lanes(axes: Any, points: Sequence[FrontierPoint]) -> None:
    """Draw the plans that differ in the micro-batch alone on one thin line."""
    for height in {point.height for point in points}:
        lane = sorted((s for s in points if s.height == height), key=lambda point: point.peak)
        memory, peaks = lane[0].plan.memory, [point.peak for point in lane]
        look: dict[str, Any] = {"color": _COLOURS[Recompute(memory.recompute)], "zorder": 3}
        axes.plot(peaks, [height] * len(lane), lw=0.8, alpha=0.5, **look)
        axes.scatter(peaks, [height] * len(lane), marker=_marker(memory.saved), s=26, **look)


def _marker(saved: str) -> str:
    """Return the marker of a format; all of a user's own share one."""
    return dict(zip(FORMATS, _MARKERS[:-1], strict=False)).get(saved, _MARKERS[-1])


def _front(axes: Any, best: Sequence[FrontierPoint]) -> None:
    """Draw the least step time that each budget allows, as stairs."""
    xs, ys = [axes.get_xlim()[1]], [best[0].height]
    for before, point in zip([best[0], *best], best, strict=False):
        xs += [before.peak, point.peak]
        ys += [point.height, point.height]
    axes.plot(xs, ys, **_FRONT, zorder=1, solid_joinstyle="round")


def _budget(axes: Any, report: PlanReport) -> None:
    budget = report.plan.budget
    axes.axvline(budget, color=style.INK, lw=1.2, ls=(0, (4, 2)), zorder=2)
    axes.annotate(
        f"budget {format_bytes(budget)}",
        (budget, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
    )


def _chosen(axes: Any, point: FrontierPoint, report: PlanReport) -> None:
    """Mark the plan, and write what of it the picture does not show."""
    axes.scatter([point.peak], [point.height], zorder=5, **_RING)
    shape, said = point.plan.shape, []
    if shape.density != report.wished.density:
        said.append(f"density {shape.density:.3g}")
    if not shape.momentum:
        said.append("no momentum")
    if shape.memory.frozen:
        said.append(f"{shape.memory.frozen} blocks frozen")
    low, high = axes.get_xlim()
    left = point.peak < (low * high) ** 0.5
    axes.annotate(
        ", ".join(said),
        (max(point.peak, point.plan.budget) if left else point.peak, point.height),
        xytext=(10 if left else -10, 0),
        textcoords="offset points",
        ha="left" if left else "right",
        va="center",
        fontsize=8.5,
    )


def _legend(axes: Any, points: Sequence[FrontierPoint], density: float) -> None:
    def mark(label: str, **look: Any) -> Line2D:
        plain: dict[str, Any] = {"lw": 0, "color": style.MUTED, "ms": 5}
        return Line2D([], [], label=label, **(plain | look))

    memory = [point.plan.memory for point in sorted(points, key=lambda point: -point.height)]
    recomputed = [each for each in Recompute if any(s.recompute == each for s in memory)]
    used = dict.fromkeys(s.saved for s in memory)
    saved = [each for each in FORMATS if each in used]
    saved += [each for each in used if each not in FORMATS]
    handles = [
        mark(_written_recompute(each), color=_COLOURS[each], marker="o", lw=0.8)
        for each in recomputed
    ]
    # Of a reference to a file, its name without the folder.
    handles += [mark(f"kept as {Path(each).name}", marker=_marker(each)) for each in saved]
    handles += [
        Line2D([], [], label=f"fastest at density {density:.3g}", **_FRONT),
        mark("number: micro-batch", marker=""),
        mark("the plan", marker="o", ms=10, mfc="none", mec=style.INK, mew=1.6),
    ]
    style.legend_above(axes, 3 if len(handles) > 8 else 4, handles=handles)


def _written_recompute(recompute: Recompute) -> str:
    return f"{'nothing' if recompute is Recompute.NONE else recompute} recomputed"


def _micro_batches(figure: Any, axes: Any, points: Sequence[FrontierPoint]) -> None:
    """Write each micro-batch above its point, where there is room."""
    figure.canvas.draw()
    scale = 72 / figure.dpi
    for height in {point.height for point in points}:
        written: list[float] = []
        lane = [point for point in points if point.height == height]
        for point in sorted(lane, key=lambda each: (not each.chosen, each.peak)):
            x = axes.transData.transform((point.peak, height))[0] * scale
            if any(abs(x - other) < _ROOM for other in written):
                continue
            axes.annotate(
                str(point.plan.micro_batch),
                (point.peak, height),
                xytext=(0, 8 if point.chosen else 4),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=style.INK if point.chosen else style.MUTED,
                zorder=2.5,
                bbox={"facecolor": BAND, "edgecolor": "none", "pad": 0.3},
            )
            written.append(x)
