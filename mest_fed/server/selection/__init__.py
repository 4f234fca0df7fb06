"""Selection of the nodes that train in a round."""

from collections.abc import Callable

from mest_fed.server.selection.selector import (
    AvailabilityInfo,
    Available,
    ClientFeedback,
    SelectionRequest,
    Selector,
    Uniform,
)
from mest_fed.server.selection.utility import Utility

__all__ = [
    "SELECTORS",
    "AvailabilityInfo",
    "Available",
    "ClientFeedback",
    "SelectionRequest",
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
