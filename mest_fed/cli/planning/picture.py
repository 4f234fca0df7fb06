"""What a step takes in memory and in time, one point a plan: the picture of ``mest-fed plan``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from mest_fed.cli.planning.answer import Answer
from mest_fed.cli.planning.axes import BAND, memory_axis, time_axis
from mest_fed.cli.planning.spots import Spot, front, place
from mest_fed.units import format_bytes
from simulations.report.figures import style

_COLOURS = {"none": style.BLUE, "norms": style.ORANGE, "segments": style.VERMILION}
_RECOMPUTES = {
    "none": "nothing recomputed",
    "norms": "norms recomputed",
    "segments": "segments recomputed",
}
_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "s", "int8": "^", "mask": "D"}
_FRONT: dict[str, Any] = {"color": style.MUTED, "lw": 5, "alpha": 0.22}
_RING: dict[str, Any] = {"s": 150, "facecolor": "none", "edgecolor": style.INK, "lw": 1.6}
#: Inches, and dots to each.
_WIDTH, _LANE, _DPI = 8, 0.33, 200
#: Points between the middles of two micro-batches that are both written, at least.
_ROOM = 15


def draw_frontier(answer: Answer, path: Path) -> None:
    """Draw the frontier, the budget and the plan into a file.

    Parameters
    ----------
    answer : Answer
        The plan, and all that it was chosen from.
    path : Path
        A .svg or .png file.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    spots = place(
        [(plan, _time(answer, plan)) for plan in answer.frontier],
        (answer.plan, _time(answer, answer.plan)),
    )
    density = answer.question.wish.density
    with style.house_style():
        figure = style.new_figure(_WIDTH, 1.7 + _LANE * (1 + max(spot.height for spot in spots)))
        figure.suptitle(answer.question.title, x=0.01, ha="left", fontsize=9)
        axes = figure.add_subplot()
        memory_axis(axes, spots, answer)
        time_axis(axes, spots, answer)
        _lanes(axes, spots)
        _front(axes, front(spots, density))
        _budget(axes, answer)
        _chosen(axes, next(spot for spot in spots if spot.chosen), answer)
        _legend(axes, spots, density)
        _micro_batches(figure, axes, spots)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=_DPI, facecolor="white", metadata=metadata)


def _time(answer: Answer, plan: Any) -> float:
    """Return a plan's step time: seconds on the device, or against plain training."""
    seconds = answer.clock.seconds(plan.shape)
    return answer.clock.against(plan.shape, answer.question.wish) if seconds is None else seconds


def _lanes(axes: Any, spots: Sequence[Spot]) -> None:
    """Draw the plans that differ in the micro-batch alone on one thin line."""
    for height in {spot.height for spot in spots}:
        lane = sorted((s for s in spots if s.height == height), key=lambda spot: spot.peak)
        savings, peaks = lane[0].plan.savings, [spot.peak for spot in lane]
        look: dict[str, Any] = {"color": _COLOURS[savings.recompute], "zorder": 3}
        axes.plot(peaks, [height] * len(lane), lw=0.8, alpha=0.5, **look)
        marker = _MARKERS[savings.saved]
        axes.scatter(peaks, [height] * len(lane), marker=marker, s=26, **look)


def _front(axes: Any, best: Sequence[Spot]) -> None:
    """Draw the least step time that each budget allows, as stairs."""
    xs, ys = [axes.get_xlim()[1]], [best[0].height]
    for before, spot in zip([best[0], *best], best, strict=False):
        xs += [before.peak, spot.peak]
        ys += [spot.height, spot.height]
    axes.plot(xs, ys, **_FRONT, zorder=1, solid_joinstyle="round")


def _budget(axes: Any, answer: Answer) -> None:
    budget = answer.plan.budget
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


def _chosen(axes: Any, spot: Spot, answer: Answer) -> None:
    """Mark the plan, and write what of it the picture does not show."""
    axes.scatter([spot.peak], [spot.height], zorder=5, **_RING)
    shape, said = spot.plan.shape, []
    if shape.density != answer.question.wish.density:
        said.append(f"density {shape.density:.3g}")
    if not shape.momentum:
        said.append("no momentum")
    if shape.savings.frozen:
        said.append(f"{shape.savings.frozen} blocks frozen")
    low, high = axes.get_xlim()
    left = spot.peak < (low * high) ** 0.5
    axes.annotate(
        ", ".join(said),
        (max(spot.peak, spot.plan.budget) if left else spot.peak, spot.height),
        xytext=(10 if left else -10, 0),
        textcoords="offset points",
        ha="left" if left else "right",
        va="center",
        fontsize=8.5,
    )


def _legend(axes: Any, spots: Sequence[Spot], density: float) -> None:
    def mark(label: str, **look: Any) -> Line2D:
        plain: dict[str, Any] = {"lw": 0, "color": style.MUTED, "ms": 5}
        return Line2D([], [], label=label, **(plain | look))

    savings = [spot.plan.savings for spot in sorted(spots, key=lambda spot: -spot.height)]
    recomputed = [each for each in _RECOMPUTES if any(s.recompute == each for s in savings)]
    saved = [each for each in _MARKERS if any(s.saved == each for s in savings)]
    handles = [
        mark(_RECOMPUTES[each], color=_COLOURS[each], marker="o", lw=0.8) for each in recomputed
    ]
    handles += [mark(f"kept as {each}", marker=_MARKERS[each]) for each in saved]
    handles += [
        Line2D([], [], label=f"fastest at density {density:.3g}", **_FRONT),
        mark("number: micro-batch", marker=""),
        mark("the plan", marker="o", ms=10, mfc="none", mec=style.INK, mew=1.6),
    ]
    style.legend_above(axes, 3 if len(handles) > 8 else 4, handles=handles)


def _micro_batches(figure: Any, axes: Any, spots: Sequence[Spot]) -> None:
    """Write each micro-batch above its point, where there is room."""
    figure.canvas.draw()
    scale = 72 / figure.dpi
    for height in {spot.height for spot in spots}:
        written: list[float] = []
        lane = [spot for spot in spots if spot.height == height]
        for spot in sorted(lane, key=lambda each: (not each.chosen, each.peak)):
            x = axes.transData.transform((spot.peak, height))[0] * scale
            if any(abs(x - other) < _ROOM for other in written):
                continue
            axes.annotate(
                str(spot.plan.micro_batch),
                (spot.peak, height),
                xytext=(0, 8 if spot.chosen else 4),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=style.INK if spot.chosen else style.MUTED,
                zorder=2.5,
                bbox={"facecolor": BAND, "edgecolor": "none", "pad": 0.3},
            )
            written.append(x)
