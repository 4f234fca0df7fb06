"""Selectors that know nothing of nodes but, perhaps, who is there."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy.typing as npt

from server.selection.hook import Arrays, Call, Report, draw_present, patiently


class Uniform:
    """Any node, all equally likely, there or not."""

    def select(self, call: Call) -> list[int]:
        """Return ``call.count`` nodes, or all."""
        return list(islice(call.drawn(call.generator()), call.count))

    def learn(self, number: int, reports: Iterable[Report]) -> None:
        """Learn nothing."""

    def arrays(self) -> Arrays:
        """Return nothing."""
        return {}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take nothing."""


class Available(Uniform):
    """Any node that is there, all equally likely; where nobody knows, any node.

    If nobody is, time passes until somebody comes.
    """

    def select(self, call: Call) -> list[int]:
        """Return ``call.count`` nodes, or those that were found."""
        return patiently(call, lambda generator: draw_present(call, generator))[: call.count]
