"""JointGrid: several grids as one, so that one strategy drives unlike nodes in one round.

Under a SuperLink it joins Flower's own grid with the edge link's: nodes with torch and lean nodes
are asked in one round, and their updates go into one average.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from mest_fed.errors import InputError, MestFedError
from mest_fed.link.server.grid import LinkNode
from mest_fed.server.grids import POLL_SECONDS, BlockingGrid, RunGrid, replies_to
from mest_fed.server.node import KnowsActivations


class JointGrid(RunGrid):
    """Flower's Grid over the nodes of several grids.

    A message goes to the grid that has its node; a reply comes from the grid that sent its
    instruction. Nodes and messages keep the ids that their grids gave them.

    Parameters
    ----------
    grids : sequence of Grid
        At least one. The run is that of the first one; the others belong to it already.

    Raises
    ------
    InputError
        If there is no grid.
    """

    others_may_come = True

    def __init__(self, grids: Sequence[Grid]) -> None:
        if not grids:
            raise InputError("a joint grid of no grid; allowed: one or more")
        self._grids = tuple(grids)
        self._owners: dict[int, Grid] = {}
        self._sent: dict[str, Grid] = {}

    def set_run(self, run: Any) -> None:
        """Set the run, of all grids."""
        for grid in self._grids:
            grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run."""
        return self._grids[0].run

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are there, those of the first grid first.

        Raises
        ------
        MestFedError
            If two grids have a node of the same id.
        """
        return self._seen(lambda grid: grid.get_node_ids(), lambda node_id: node_id)

    def get_nodes(self) -> list[Any]:
        """Return what is known of the nodes that are there; MestFedError as for their ids."""
        return self._seen(_nodes_of, lambda node: node.node_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; return the id of each, empty for one that could not be sent.

        Raises
        ------
        MestFedError
            If a grid gives a message the id of another one that was sent.
        """
        messages = list(messages)
        if any(message.metadata.dst_node_id not in self._owners for message in messages):
            self.get_node_ids()  # a node may have come since
        names = [""] * len(messages)
        for grid in self._grids:
            places = [
                place
                for place, message in enumerate(messages)
                if self._owners.get(message.metadata.dst_node_id) is grid
            ]
            if not places:
                continue
            given = list(grid.push_messages([messages[place] for place in places]))
            # Flower's grid returns nothing at all if it could send nothing, None in single places.
            for place, name in zip(places, given, strict=False):
                names[place] = self._note(name, grid) if name else ""
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these ids that are here and were not returned before."""
        wanted: dict[int, list[str]] = {}
        for name in message_ids:
            if name in self._sent:
                wanted.setdefault(self._grids.index(self._sent[name]), []).append(name)
        replies = []
        for place, names in wanted.items():
            for reply in self._grids[place].pull_messages(names):
                self._sent.pop(reply.metadata.reply_to_message_id, None)
                replies.append(reply)
        return replies

    def await_reply(self, seconds: float) -> None:
        """Block on a grid that can, until the others have to be asked again."""
        blocking = next((it for it in self._grids if isinstance(it, BlockingGrid)), None)
        soon = min(POLL_SECONDS, seconds)
        if blocking is None:
            time.sleep(soon)
        else:
            blocking.await_reply(seconds if len(self._grids) == 1 else soon)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages and yield the replies that come in time, as they come.

        All are sent before the first reply is read. One that could not be sent has no reply.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        return replies_to(self, {name for name in self.push_messages(messages) if name}, end)

    def _seen(
        self, look: Callable[[Grid], Iterable[Any]], id_of: Callable[[Any], int]
    ) -> list[Any]:
        """Return what all grids have, and take note of which of them has which node."""
        found, owners = [], dict[int, Grid]()
        for grid in self._grids:
            for each in look(grid):
                if id_of(each) in owners:
                    raise MestFedError(
                        f"two grids that are joined have a node {id_of(each)}; allowed: ids of one"
                    )
                owners[id_of(each)] = grid
                found.append(each)
        self._owners = owners
        return found

    def _note(self, name: str, grid: Grid) -> str:
        if name in self._sent:
            raise MestFedError(f"two messages have the id {name!r}; allowed: ids of one")
        self._sent[name] = grid
        return name


def _nodes_of(grid: Grid) -> Iterable[Any]:
    if isinstance(grid, KnowsActivations):
        return grid.get_nodes()
    return [LinkNode(node_id, "") for node_id in grid.get_node_ids()]
