"""How every figure looks: sizes, colours (Okabe & Ito 2008, safe for colour-blind readers)."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mest_fed.simulation.report.figures.page_colours import with_variables
from mest_fed.simulation.report.formats import format_percent

INK = "#1f2933"
MUTED = "#5f6b76"
FAINT = "#d9dee3"
SLATE = "#8793a0"
BLUE = "#0072b2"
SKY = "#56b4e9"
PALE_BLUE = "#bcdcf0"
ORANGE = "#e69f00"
VERMILION = "#d55e00"
PALE_ORANGE = "#f6d99a"
PURPLE = "#cc79a7"
GREEN = "#009e73"
BAND = "#eef0f2"
WAITING = "#e4e8ec"
BROWN = "#b87900"
#: Of text in a bar, whatever the page's own colours are.
ON_LIGHT, ON_DARK = "#1b242d", "#fefefe"

FULL_WIDTH = 10.4
HALF_WIDTH = 5.1
LABEL_LENGTH = 28
PERCENT_TICKS = FuncFormatter(lambda share, _: format_percent(round(share, 9)))

_STYLE = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the layout is the same everywhere
    "font.size": 9,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.6,
    "legend.borderpad": 0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "pdf.fonttype": 42,  # TrueType, which other programs can edit
    "svg.fonttype": "none",
    "svg.hashsalt": "mest-fed",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the report's style, whatever the reader's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def log_scale(axes: Any) -> None:
    """Give a y axis steps of ten times each, their values as plain numbers.

    matplotlib's own labels are formulas, which an SVG whose text is text shows as their source.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of width x height inches that pyplot knows nothing of."""
    return Figure(figsize=(width, height), layout="constrained")


def row_axes(axes: Any, labels: list[str]) -> None:
    """Prepare axes of horizontal rows, the first label on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


def stacked_bars(axes: Any, parts: Iterable[tuple[str, Sequence[float], str]]) -> list[float]:
    """Draw bars of parts, one row each; return where they end.

    A part is its label, its width in each row and its colour. One that is nowhere is left out.
    """
    ends: list[float] = []
    for label, widths, colour in parts:
        starts = ends or [0.0] * len(widths)
        if any(widths):
            axes.barh(
                range(len(widths)),
                widths,
                left=starts,
                height=0.52,
                color=colour,
                edgecolor="white",
                linewidth=0.6,
                label=label,
            )
        ends = [start + width for start, width in zip(starts, widths, strict=True)]
    return ends


def legend_above(axes: Any, columns: int, **options: Any) -> None:
    """Put the legend on the left above the axes, where it hides nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        columnspacing=1.4,
        borderaxespad=0.4,
        **options,
    )


_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_PIXELS_PER_INCH = 100


def inline_svg(figure: Figure, key: str, title: str, description: str) -> Markup:
    """Draw a figure as one ``<svg>`` element with a title and a description.

    Parameters
    ----------
    figure : Figure
        What to draw.
    key : str
        Unique in the page: all ids begin with it.
    title, description : str
        Read out by screen readers.
    """
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    for element in root.iter():
        for name in ("style", "fill", "stroke"):
            if value := element.get(name):
                element.set(name, with_variables(value))
    _rename_ids(root, key)
    width, _ = figure.get_size_inches()
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-description")
    root.set("style", f"max-width: {width * _PIXELS_PER_INCH:.0f}px")
    root.insert(0, _text_element("desc", f"{key}-description", description))
    root.insert(0, _text_element("title", f"{key}-title", title))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _strip(root: ElementTree.Element) -> None:
    """Drop metadata, the style sheet that would reach the whole page, and namespaces."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            if "}" in name:
                element.set(name.rpartition("}")[2], element.attrib.pop(name))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)


def _rename_ids(root: ElementTree.Element, key: str) -> None:
    """Give the ids in use the figure's prefix and drop the others."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            used.update(_REFERENCE.findall(value))
            if name == "href":
                used.add(value.removeprefix("#"))
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                if value in used:
                    element.set("id", f"{key}-{value}")
                else:
                    del element.attrib["id"]
            elif name == "href":
                element.set("href", f"#{key}-{value.removeprefix('#')}")
            else:
                element.set(name, _REFERENCE.sub(rf"url(#{key}-\1)", value))


def _text_element(tag: str, identifier: str, text: str) -> ElementTree.Element:
    element = ElementTree.Element(tag, {"id": identifier})
    element.text = text
    return element


@dataclass(frozen=True)
class Chart:
    """One figure of the report.

    Attributes
    ----------
    key : str
        Its id in the page.
    title, caption : str
        Plain text; the caption says what to see.
    basis : tuple of str
        Where the numbers come from; each ends in ``measured`` or ``modelled``.
    svg : Markup
        The drawing.
    figure : Figure
        What it was drawn from, to be written to other files.
    """

    key: str
    title: str
    caption: str
    basis: tuple[str, ...]
    svg: Markup
    figure: Figure = field(compare=False, repr=False)

    @property
    def wide(self) -> bool:
        """Whether its text is too small where the page is as narrow as a telephone."""
        return float(self.figure.get_size_inches()[0]) > HALF_WIDTH


def finish_chart(
    figure: Figure, *, key: str, title: str, caption: str, basis: tuple[str, ...]
) -> Chart:
    """Turn a figure into a chart; the caption is its description for screen readers too."""
    svg = inline_svg(figure, key, title, caption)
    return Chart(key, title, caption, basis, svg, figure)


@dataclass(frozen=True)
class Scale:
    """An axis in ``unit``, each of ``factor`` base units."""

    factor: float
    unit: str


def time_scale(longest: float) -> Scale:
    """Choose seconds, minutes, hours or days for an axis up to ``longest`` seconds."""
    for factor, unit, least in ((86400, "days", 3), (3600, "hours", 2), (60, "minutes", 3)):
        if longest >= least * factor:
            return Scale(factor, unit)
    return Scale(1, "seconds")


def byte_scale(largest: float) -> Scale:
    """Choose B, kB, MB, GB or TB for an axis up to ``largest`` bytes."""
    for factor, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if largest >= 2 * factor:
            return Scale(factor, unit)
    return Scale(1, "B")


def joule_scale(largest: float) -> Scale:
    """Choose J, kJ or MJ for an axis up to ``largest`` joules."""
    for factor, unit in ((10**6, "MJ"), (10**3, "kJ")):
        if largest >= 2 * factor:
            return Scale(factor, unit)
    return Scale(1, "J")
