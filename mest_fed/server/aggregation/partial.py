"""Partial aggregation: replies are summed where they are made, to the same bits everywhere.

Sums of floating-point numbers depend on their order. Here the order is a fixed binary tree over the
positions of the jobs: position 0 with 1, 2 with 3, those two sums with each other, and so on. A
worker that runs an aligned block of ``2**k`` positions computes one subtree and sends one sum. So
the bits depend neither on how jobs were cut into blocks, nor on who ran them, nor on when.
Pairwise sums also round less than running ones: O(log n) instead of O(n) errors (Higham 1993).
"""

from typing import Any, Protocol, Self, TypeVar, runtime_checkable


class PartialAggregate(Protocol):
    """A sum of replies."""

    def add(self, other: Self) -> Self:
        """Return the sum of both; may edit this one, and keeps nothing of the other."""


Reply = TypeVar("Reply")


class WorkerAggregator(Protocol[Reply]):
    """What a strategy offers that is content with a sum of its replies; picklable.

    Workers call :meth:`map`; the strategy's process calls :meth:`finalize`.
    """

    def map(self, reply: Reply) -> tuple[Any, Reply]:
        """Take a reply (without error) apart.

        Returns
        -------
        partial : PartialAggregate or None
            What is summed; None if this reply adds nothing.
        reply : Reply
            What the strategy sees of this client: its metrics, or an error.
        """

    def finalize(self, total: Any) -> None:
        """Take the sum over an exchange, once all its replies were read."""


@runtime_checkable
class SummingGrid(Protocol):
    """A grid whose workers sum replies."""

    def sum_in_workers(self, aggregator: WorkerAggregator[Any]) -> None:
        """Have the replies of the next exchange summed where they are made."""


class PairwiseSum:
    """Adds up partial sums of aligned blocks that come in order.

    A block is of ``2**level`` positions. The last one may lack some of its last positions; nothing
    comes after it.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[int, PartialAggregate | None]] = []

    def add(self, partial: PartialAggregate | None, level: int = 0) -> None:
        """Add the sum of the next block."""
        while self._stack and self._stack[-1][0] == level:
            _, left = self._stack.pop()
            partial, level = _sum(left, partial), level + 1
        self._stack.append((level, partial))

    def total(self) -> PartialAggregate | None:
        """Return the sum of all blocks, None if nothing was added; empties this."""
        total: PartialAggregate | None = None
        while self._stack:
            _, left = self._stack.pop()
            total = _sum(left, total)
        return total


def _sum(left: PartialAggregate | None, right: PartialAggregate | None) -> PartialAggregate | None:
    if left is None or right is None:
        return right if left is None else left
    return left.add(right)
