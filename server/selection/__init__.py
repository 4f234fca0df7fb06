"""Selection of the nodes that train in a round."""

from collections.abc import Callable

from server.selection.hook import Call, KnowsDurations, KnowsPresence, Report, Selector
from server.selection.uniform import Available, Uniform
from server.selection.utility import Utility

__all__ = [
    "SELECTORS",
    "Available",
    "Call",
    "KnowsDurations",
    "KnowsPresence",
    "Report",
    "Selector",
    "Uniform",
    "Utility",
]

#: What ``server.selection`` may name.
SELECTORS: dict[str, Callable[[], Selector]] = {
    "uniform": Uniform,
    "available": Available,
    "utility": Utility,
}
