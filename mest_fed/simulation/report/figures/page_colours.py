"""The colours of drawings that the page changes with its own, light or dark."""

import re

#: A figure's colour -> the variable of ``report.css`` that stands for it in the page. What is drawn
#: upon a colour of its own, such as a number in a bar, has another colour than these.
VARIABLES = {
    "#ffffff": "--page",
    "#1f2933": "--ink",
    "#5f6b76": "--muted",
    "#d9dee3": "--faint",
    "#e8ebee": "--grid",
    "#eef0f2": "--band",
    "#e4e8ec": "--waiting",
    "#0072b2": "--blue",
    "#56b4e9": "--sky",
    "#bcdcf0": "--pale-blue",
    "#0b4f7d": "--deep",
    "#b87900": "--brown",
}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")


def with_variables(style: str) -> str:
    """Replace the colours of a style by variables, which fall back to what they were."""
    return _COLOUR.sub(_variable, style)


def _variable(found: re.Match[str]) -> str:
    colour = found[0].lower()
    name = VARIABLES.get(colour)
    return colour if name is None else f"var({name}, {colour})"
