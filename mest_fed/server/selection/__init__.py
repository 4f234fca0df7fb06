"""Selection of the nodes that train in a round."""

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
    "AvailabilityInfo",
    "Available",
    "ClientFeedback",
    "SelectionRequest",
    "Selector",
    "Uniform",
    "Utility",
]
