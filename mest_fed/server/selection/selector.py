"""Selection: which nodes train in a round; what a selector is asked, and what it learns.

A selector sees node ids alone, in a stable order, and draws from (seed, round, ...): so the same
seed selects the same nodes whatever their ids, and a population of millions costs nothing to
select from. What it learns of nodes it keeps itself, in arrays that go into checkpoints.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from logging import getLogger
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mest_fed.errors import InputError
from mest_fed.rng import in_random_order, numpy_generator

log = getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]

#: How many nodes are looked at for each one that is wanted: at first, and at most.
OVERDRAW = 4
MOST_DRAWN = 64
#: How often to wait for a node to become available.
_MOST_WAITS = 1000


@runtime_checkable
class AvailabilityInfo(Protocol):
    """What a grid knows of its nodes beyond their ids."""

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return those nodes that are there now, in the order given."""

    def wait_for_nodes(self, node_ids: Sequence[int]) -> bool:
        """Let time pass until one of these nodes may be there; False if none ever will."""

    def train_seconds(self) -> Mapping[int, float]:
        """Return the seconds that each node of the round took, as far as known."""


@dataclass(frozen=True)
class SelectionRequest:
    """What a selector is asked.

    Parameters
    ----------
    nodes : sequence of int
        All node ids, in a stable order; may be a range of millions.
    count : int
        How many nodes are wanted.
    round : int
        The round, from 1.
    path : tuple of int and str
        The run's seed, and what else draws come from.
    without : collection of int
        Nodes that are not to be selected.
    availability : AvailabilityInfo, optional
        Which nodes are available; None: the grid does not know.
    waits : bool
        Whether time may pass until a node is available.
    """

    nodes: Sequence[int]
    count: int
    round: int
    path: tuple[int | str, ...]
    without: Collection[int] = ()
    availability: AvailabilityInfo | None = None
    waits: bool = True

    def generator(self) -> np.random.Generator:
        """Return the generator of this selection."""
        seed, *rest = self.path
        return numpy_generator(int(seed), *rest)

    def drawn(self, generator: np.random.Generator) -> Iterator[int]:
        """Yield the nodes in random order, at a cost that follows what is taken."""
        for place in in_random_order(len(self.nodes), generator):
            if (node := self.nodes[place]) not in self.without:
                yield node

    def checked(self, chosen: Iterable[int]) -> list[int]:
        """Return what a selector chose, if it is what was asked for.

        Raises
        ------
        InputError
            If it is no list of distinct nodes that may be selected, or one of too many.
        """
        try:
            nodes = [int(node) for node in chosen]
        except (TypeError, ValueError):
            raise self._not_selectable(f"{chosen!r}") from None
        if len(nodes) > self.count:
            raise self._not_selectable(f"{len(nodes)} nodes")
        if len(set(nodes)) < len(nodes):
            raise self._not_selectable("a node twice")
        known = self.nodes if isinstance(self.nodes, range) else set(self.nodes)
        for node in nodes:
            if node not in known or node in self.without:
                raise self._not_selectable(f"node {node}")
        return nodes

    def _not_selectable(self, chosen: str) -> InputError:
        allowed = f"at most {self.count} distinct nodes of the request, none of its without"
        return InputError(f"server.selection chose {chosen}; allowed: {allowed}")

    def present(self, node_ids: Sequence[int]) -> list[int]:
        """Return the available nodes; all of them where availability is unknown."""
        if self.availability is None:
            return list(node_ids)
        return self.availability.present_nodes(node_ids)


@dataclass(frozen=True)
class ClientFeedback:
    """What came of a selected node.

    Parameters
    ----------
    node_id : int
        The node.
    examples : int
        Its training examples.
    train_loss : float or None
        Their mean loss; None if it failed.
    seconds : float or None
        How long it took, where known.
    """

    node_id: int
    examples: int
    train_loss: float | None
    seconds: float | None = None


@runtime_checkable
class Selector(Protocol):
    """Chooses the nodes of each round; the hook."""

    def select(self, call: SelectionRequest) -> list[int]:
        """Return distinct nodes, at most ``call.count``, and as many if enough are there."""

    def learn(self, number: int, reports: Iterable[ClientFeedback]) -> None:
        """Take in what came of a round."""

    def arrays(self) -> Arrays:
        """Return what was learned, for a checkpoint."""

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what :meth:`arrays` gave; ValueError or KeyError if it is something else."""


def draw_present(
    call: SelectionRequest, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Draw nodes and return those that are there, and all that were looked at.

    First a few times as many as are wanted are looked at, then more, until enough are there or so
    many were looked at that hardly anyone is.
    """
    drawn = call.drawn(generator)
    there: list[int] = []
    looked_at: list[int] = []
    while len(there) < call.count and len(looked_at) < MOST_DRAWN * call.count:
        batch = list(islice(drawn, OVERDRAW * call.count))
        if not batch:
            break
        there += call.present(batch)
        looked_at += batch
    return there, looked_at


def select_with_retry(
    call: SelectionRequest,
    attempt: Callable[[np.random.Generator], tuple[list[int], Sequence[int]]],
) -> list[int]:
    """Return what an attempt selects; if that is no node, let time pass and try again.

    Parameters
    ----------
    call : SelectionRequest
        What is asked.
    attempt : callable
        Given the generator, returns the selection and the nodes that were looked at. Where no node
        ever becomes available, any node is selected.
    """
    generator = call.generator()
    for _ in range(_MOST_WAITS):
        chosen, looked_at = attempt(generator)
        if chosen or not looked_at or call.availability is None or not call.waits:
            return chosen
        if not call.availability.wait_for_nodes(looked_at):
            break
    log.warning("round %d: no node is there, and none will be; asking anyone", call.round)
    return list(islice(call.drawn(generator), call.count))


class Uniform:
    """Any node, all equally likely, there or not."""

    def select(self, call: SelectionRequest) -> list[int]:
        """Return ``call.count`` nodes, or all."""
        return list(islice(call.drawn(call.generator()), call.count))

    def learn(self, number: int, reports: Iterable[ClientFeedback]) -> None:
        """Learn nothing."""

    def arrays(self) -> Arrays:
        """Return nothing."""
        return {}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take nothing."""


class Available(Uniform):
    """Any available node, all equally likely; where availability is unknown, any node.

    If none is, time passes until one is.
    """

    def select(self, call: SelectionRequest) -> list[int]:
        """Return ``call.count`` nodes, or those that were found."""
        return select_with_retry(call, lambda generator: draw_present(call, generator))[
            : call.count
        ]
