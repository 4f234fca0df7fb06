"""A matplotlib figure as an SVG element that can stand beside others in one HTML page."""

import io
import re
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

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
