"""The arena over the step: operators from left to right, addresses from bottom to top."""

from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.patches import Patch, Rectangle

from mest_fed.cli.programs.report import ProgramReport
from mest_fed.runtime.packing import Block
from mest_fed.runtime.program import PHASES
from mest_fed.simulation.report.figures import style
from mest_fed.units import format_bytes

_WIDTH, _HEIGHT, _DPI = 9.5, 5.2, 200
#: A block is named if it takes this share of the picture's width and height.
_NAMED = (0.10, 0.035)


class _Sort(NamedTuple):
    """What a block is for, by the phases in which it begins and ends."""

    begins: int
    ends: int
    label: str
    colour: str


_SORTS = (
    _Sort(0, 0, "within the forward pass", style.PALE_BLUE),
    _Sort(0, 1, "kept for the backward pass", style.BLUE),
    _Sort(1, 1, "gradients", style.PALE_ORANGE),
    _Sort(1, 2, "gradients of parameters", style.ORANGE),
    _Sort(0, 2, "read after the step", style.SLATE),
)


def draw_arena(report: ProgramReport, path: Path) -> None:
    """Draw the arena into a file.

    Parameters
    ----------
    report : ProgramReport
        The program and its arena.
    path : Path
        A .svg or .png file.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    arena, count = report.arena, len(report.program.operators)
    scale = style.byte_scale(arena.peak)
    with style.house_style():
        figure = style.new_figure(_WIDTH, _HEIGHT)
        figure.suptitle(report.title, x=0.01, ha="left", fontsize=9)
        axes = figure.add_subplot()
        axes.set_xlim(0, count)
        axes.set_ylim(0, arena.peak / scale.factor * 1.06)
        axes.set_xlabel("operator", labelpad=18)
        axes.set_ylabel(f"address in the arena, {scale.unit} (modelled)")
        axes.grid(False)
        used = [_draw_block(axes, report, *each) for each in _placed(report)]
        _live(axes, report, scale.factor)
        _bounds(axes, report, scale.factor)
        _phases(axes, report)
        _legend(axes, [it for it in _SORTS if it in used])
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=_DPI, facecolor="white", metadata=metadata)


def _placed(report: ProgramReport) -> list[tuple[Block, int]]:
    return list(zip(report.arena.blocks, report.arena.places, strict=True))


def _sort_of(block: Block, report: ProgramReport) -> _Sort:
    ends = list(accumulate(report.program.phases))
    begins, last = (
        next((phase for phase, end in enumerate(ends) if at < end), len(ends) - 1)
        for at in (block.start, block.end)
    )
    return next(it for it in _SORTS if (it.begins, it.ends) == (begins, last))


def _draw_block(axes: Any, report: ProgramReport, block: Block, place: int) -> _Sort:
    sort, count = _sort_of(block, report), len(report.program.operators)
    factor = style.byte_scale(report.arena.peak).factor
    end = min(block.end + 1, count)
    corner, width, height = (block.start, place / factor), end - block.start, block.size / factor
    axes.add_patch(
        Rectangle(corner, width, height, facecolor=sort.colour, edgecolor="white", linewidth=0.4)
    )
    large = width >= _NAMED[0] * count and block.size >= _NAMED[1] * report.arena.peak
    if large:
        name = report.program.buffers[block.buffers[0]].name.removesuffix(":gradient")
        axes.text(
            block.start + 0.4,
            corner[1] + height / 2,
            name,
            va="center",
            fontsize=6.5,
            color="white" if sort.colour == style.BLUE else style.INK,
            clip_on=True,
        )
    return sort


def _live(axes: Any, report: ProgramReport, factor: float) -> None:
    """Draw how many bytes are in use at each operator, as stairs."""
    edges = range(len(report.live) + 1)
    live = [size / factor for size in report.live]
    axes.stairs(live, edges, color=style.INK, linewidth=1.0, baseline=None, label="in use")


def _bounds(axes: Any, report: ProgramReport, factor: float) -> None:
    arena = report.arena
    above = arena.peak / arena.lower_bound - 1
    text = f"peak {format_bytes(arena.peak)}, {above:.1%} above the lower bound"
    axes.axhline(arena.peak / factor, color=style.VERMILION, lw=1.0, ls=(0, (4, 2)))
    axes.annotate(
        text,
        (1, arena.peak / factor),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=style.VERMILION,
    )


def _phases(axes: Any, report: ProgramReport) -> None:
    """Write each phase below its operators, and draw where the next begins."""
    ends = [0, *accumulate(report.program.phases)]
    for name, start, end in zip(PHASES, ends, ends[1:], strict=False):
        axes.axvline(end, color=style.MUTED, lw=0.6, ls=(0, (2, 2)))
        axes.annotate(
            name,
            ((start + end) / 2, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -22),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8.5,
        )


def _legend(axes: Any, sorts: list[_Sort]) -> None:
    handles: list[Any] = [Patch(facecolor=it.colour, label=it.label) for it in sorts]
    handles += axes.get_legend_handles_labels()[0]
    style.legend_above(axes, 3, handles=handles)
