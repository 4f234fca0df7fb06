"""The store of clients' states keeps its contract."""

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from flwr.app import RecordDict
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from state_cases import content, records_in, state

from mest_fed.errors import InputError
from mest_fed.simulation.client_state import DiskStates

#: Two nodes of one shard on disk, and one of another.
NODES = (1000, 1008, 1003)


@pytest.fixture
def states(tmp_path):
    with closing(DiskStates(tmp_path / "states")) as store:
        yield store


def test_a_state_comes_back_as_it_was_put(states):
    assert states.get(1000) is None
    states.put(1000, state(3, tier=1))
    states.put(1003, state(4))
    for step in range(2):  # before and after a commit
        assert content(states.get(1000)) == content(state(3, tier=1))
        assert content(states.get(1003)) == content(state(4))
        states.commit(step)


def test_the_last_put_counts_and_none_forgets(states):
    states.put(1000, state(1))
    states.put(1000, state(2, tier=0))
    assert content(states.get(1000)) == content(state(2, tier=0))
    states.put(1000, None)
    assert states.get(1000) is None
    states.put(1003, state(1))
    states.put(1003, RecordDict())
    assert states.get(1003) is None


def test_a_rewound_store_forgets_what_came_later(states):
    states.put(1000, state(1, tier=1))
    states.commit(4)
    states.put(1000, state(2, tier=2))
    states.put(1003, state(3))
    states.commit(6)
    states.put(1000, None)
    states.rewind(4)
    assert content(states.get(1000)) == content(state(1, tier=1))
    assert states.get(1003) is None
    with pytest.raises(InputError, match="states of step 6 are not there; found: 4 to 4"):
        states.rewind(6)
    states.put(1003, state(9))
    states.commit(5)  # the steps that were undone can be taken again
    states.rewind(5)
    assert content(states.get(1003)) == content(state(9))


def test_pruned_steps_are_gone_and_later_ones_whole(states):
    for step in (1, 2, 3):
        states.put(1000, state(step, tier=step))
        states.commit(step)
    states.prune(2)
    with pytest.raises(InputError, match="states of step 1 are not there; found: 2 to 3"):
        states.rewind(1)
    states.rewind(2)
    assert content(states.get(1000)) == content(state(2, tier=2))


def test_pruning_keeps_the_last_commit(states):
    states.prune(5)  # there is none
    states.put(1000, state(1))
    states.commit(1)
    states.put(1000, state(2))
    states.prune(50)
    states.rewind(1)
    assert content(states.get(1000)) == content(state(1))


def test_nothing_was_committed_yet(states):
    with pytest.raises(InputError, match="states of step 0 are not there; found: none"):
        states.rewind(0)


@pytest.mark.parametrize("step", [-1, 2, 3])
def test_steps_increase(states, step):
    states.commit(3)
    with pytest.raises(ValueError, match=f"commit of step {step} after step 3"):
        states.commit(step)
    states.commit(4)


class AgainstADict(RuleBasedStateMachine):
    """Random work on a store, and on a dict of states with a copy for each commit."""

    def __init__(self):
        super().__init__()
        self.folder = TemporaryDirectory()
        self.states = self.open()
        self.now, self.copies = {}, {}

    def open(self):
        return DiskStates(Path(self.folder.name) / "states")

    @property
    def last(self):
        return max(self.copies, default=-1)

    @rule(
        node=st.sampled_from(NODES),
        number=st.integers(0, 3),
        tier=st.sampled_from([None, 0, 1]),
    )
    def put(self, node, number, tier):
        self.states.put(node, state(number, tier))
        self.now[node] = content(state(number, tier))

    @rule(node=st.sampled_from(NODES))
    def forget(self, node):
        self.states.put(node, None)
        self.now.pop(node, None)

    @rule(more=st.integers(1, 3))
    def commit(self, more):
        step = self.last + more
        self.states.commit(step)
        self.copies[step] = dict(self.now)

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def rewind(self, data):
        step = data.draw(st.sampled_from(sorted(self.copies)))
        self.states.rewind(step)
        self.now = dict(self.copies[step])
        self.copies = {s: copy for s, copy in self.copies.items() if s <= step}

    @rule(keep_from=st.integers(0, 12))
    def prune(self, keep_from):
        self.states.prune(keep_from)
        keep_from = min(keep_from, self.last)
        self.copies = {s: copy for s, copy in self.copies.items() if s >= keep_from}

    @invariant()
    def agrees(self):
        for node in NODES:
            assert content(self.states.get(node)) == self.now.get(node)

    @rule()
    def reopen(self):
        self.states.close()
        self.states = self.open()
        self.now = dict(self.copies[self.last]) if self.copies else {}

    def teardown(self):
        self.states.close()
        for uses, held in records_in(Path(self.folder.name) / "states"):
            assert held == set(uses)
        self.folder.cleanup()


AgainstADict.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestAgainstADict = AgainstADict.TestCase
