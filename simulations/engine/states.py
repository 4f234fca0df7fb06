"""Where the clients' states are between their instructions."""

from typing import Protocol

from flwr.app import RecordDict


class States(Protocol):
    """States by node id."""

    def get(self, node_id: int) -> RecordDict | None:
        """Return a client's state; None if it has none. Whoever gets it does not edit it."""

    def put(self, node_id: int, state: RecordDict | None) -> None:
        """Keep a client's state from now on; None forgets it."""


class DictStates(dict[int, RecordDict]):
    """States in this process's memory."""

    def put(self, node_id: int, state: RecordDict | None) -> None:
        """See :class:`States`."""
        if state:
            self[node_id] = state
        else:
            self.pop(node_id, None)
