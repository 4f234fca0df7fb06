"""Clients' states in this process, for a grid without a folder."""

from collections.abc import Iterator

from flwr.app import RecordDict

from simulations.states.protocol import check_commit, check_rewind

Before = dict[int, RecordDict | None]


class MemoryStates:
    """Keeps states in a dict, and for each commit what the step had replaced.

    See :class:`simulations.states.protocol.VersionedStates`. What was replaced stays in memory
    until :meth:`prune`.
    """

    def __init__(self) -> None:
        self._states: dict[int, RecordDict] = {}
        self._replaced: Before = {}
        self._commits: dict[int, Before] = {}

    def get(self, node_id: int) -> RecordDict | None:
        """Return a client's state, as it was put last; None if it has none."""
        return self._states.get(node_id)

    def put(self, node_id: int, state: RecordDict | None) -> None:
        """Set a client's state; None, or a state without records, forgets it."""
        self._replaced.setdefault(node_id, self._states.get(node_id))
        self._set(node_id, state)

    def commit(self, step: int) -> None:
        """See :meth:`VersionedStates.commit`."""
        check_commit(step, max(self._commits, default=-1))
        self._commits[step], self._replaced = self._replaced, {}

    def rewind(self, step: int) -> None:
        """See :meth:`VersionedStates.rewind`."""
        check_rewind(step, list(self._commits), "this grid")
        for before in self._undone(step):
            for node_id, state in before.items():
                self._set(node_id, state)

    def prune(self, keep_from: int) -> None:
        """See :meth:`VersionedStates.prune`."""
        keep_from = min(keep_from, max(self._commits, default=-1))
        self._commits = {step: old for step, old in self._commits.items() if step >= keep_from}

    def close(self) -> None:
        """Forget what was put since the last commit."""
        for node_id, state in self._replaced.items():
            self._set(node_id, state)
        self._replaced = {}

    def _undone(self, step: int) -> Iterator[Before]:
        """Take away what was replaced after a step, the latest first."""
        before, self._replaced = self._replaced, {}
        yield before
        while max(self._commits) > step:
            yield self._commits.popitem()[1]

    def _set(self, node_id: int, state: RecordDict | None) -> None:
        if state:
            self._states[node_id] = state
        else:
            self._states.pop(node_id, None)
