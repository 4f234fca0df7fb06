"""A drawn figure with the words that stand around it."""

from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from simulations.report.figures.svg import inline_svg


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
    """

    key: str
    title: str
    caption: str
    basis: tuple[str, ...]
    svg: Markup


def finish_chart(
    figure: Figure, *, key: str, title: str, caption: str, basis: tuple[str, ...]
) -> Chart:
    """Turn a figure into a chart; the caption is its description for screen readers too."""
    return Chart(key, title, caption, basis, inline_svg(figure, key, title, caption))
