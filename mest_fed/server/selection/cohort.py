"""The cohort of a round: the nodes that a selector chooses, and what it learns of them."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from flwr.serverapp import Grid

from mest_fed.server.client_registry import ClientRegistry
from mest_fed.server.node import Node
from mest_fed.server.round_record import ClientOutcome
from mest_fed.server.selection.selector import (
    AvailabilityInfo,
    ClientFeedback,
    SelectionRequest,
    Selector,
)


class CohortSelection:
    """Asks a selector who trains, and tells it what became of them.

    Parameters
    ----------
    clients : ClientRegistry
        Whom to choose from. Others are chosen in the place of those that refuse to take part.
    selector : Selector
        Who chooses.
    seed : int
        The run's.
    """

    def __init__(self, clients: ClientRegistry, selector: Selector, seed: int) -> None:
        self.selector = selector
        self._clients, self._seed = clients, seed
        self._availability: AvailabilityInfo | None = None

    def open_round(self, grid: Grid) -> None:
        """Have the round's selections see what the grid knows of its nodes, if it knows."""
        self._availability = grid if isinstance(grid, AvailabilityInfo) else None

    def choose(
        self,
        number: int,
        count: int,
        *path: int,
        without: Collection[int] = (),
        waits: bool = True,
    ) -> list[Node]:
        """Have the selector choose who trains.

        Parameters
        ----------
        number : int
            The round, from 1.
        count : int
            How many are wanted.
        *path : int
            Which selection of the round it is, if there are several.
        without : collection of int
            Ids of nodes that are not to be chosen.
        waits : bool
            Whether time may pass until a node is available.
        """
        asked = SelectionRequest(
            self._clients.in_order(),
            count,
            number,
            (self._seed, number, "cohort", *path),
            availability=self._availability,
            waits=waits,
        )

        def draw(wanted: int, out: Collection[int]) -> list[int]:
            request = replace(asked, count=wanted, without=out)
            return request.checked(self.selector.select(request))

        return self._clients.gather(count, draw, without)

    def learn(self, number: int, clients: Iterable[ClientOutcome]) -> None:
        """Tell the selector what became of the clients of a round."""
        seconds = {} if self._availability is None else self._availability.train_seconds()
        self.selector.learn(
            number,
            [
                ClientFeedback(who.node_id, who.examples, who.train_loss, seconds.get(who.node_id))
                for who in clients
            ],
        )
