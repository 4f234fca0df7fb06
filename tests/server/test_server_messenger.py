"""Modes on a grid of Flower's own, where time is real and replies may never come."""

import math

import pytest
from server_parts import NODES, strategy_of
from timed_grid import TimedGrid, outcomes, play

from mest_fed.errors import MestFedError
from mest_fed.server import grids
from mest_fed.server.modes import arrivals as messenger
from mest_fed.server.modes.arrivals import AsyncMessenger

A, B, C, D = NODES


class Watch:
    """A clock and a sleep that take no time."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def watch(monkeypatch):
    made = Watch()
    for module in (messenger, grids):
        monkeypatch.setattr(module, "time", made)
    return made


class RealGrid:
    """Gives replies when they are due, and only Flower's methods.

    ``unsent`` are nodes to whom nothing can be sent.
    """

    def __init__(self, timed, watch, unsent=()):
        self._timed, self._watch, self._unsent = timed, watch, unsent
        self.send_and_receive, self.get_node_ids = timed.send_and_receive, timed.get_node_ids

    def push_messages(self, messages):
        self._timed.now = self._watch.now
        return [
            None if m.metadata.dst_node_id in self._unsent else self._timed.push_messages([m])[0]
            for m in messages
        ]

    def pull_messages(self, message_ids):
        assert message_ids, "Flower's grids are asked for something"
        self._timed.wait_until(self._watch.now)
        flying = {pending.message_id for pending in self._timed.in_flight()}
        names = [name for name in message_ids if name not in flying]
        return self._timed.pull_messages(names) if names else []


def strategy_with(fleet=None, **server):
    server = {"evaluate_clients_every": 0, "concurrency": 4} | server
    return strategy_of(server=server, fleet=fleet or {})


def test_buffers_fill_in_real_time(watch):
    strategy = strategy_with(mode="buffered", buffer=2)
    grid = RealGrid(TimedGrid(strategy, {A: 2.0, B: 3.0, C: 7.0, D: 100.0}), watch)
    records = play(strategy, grid, 3)
    assert [outcomes(record) for record in records] == [
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), C: ("ok", 2)},
    ]
    assert set(watch.slept) == {grids.POLL_SECONDS}
    assert watch.now == pytest.approx(1008, abs=1)
    assert strategy.kept()[1][0]["number"] == 0


def test_a_period_in_real_time(watch):
    strategy = strategy_with(mode="semi-sync", period=5.0)
    grid = RealGrid(TimedGrid(strategy, {A: 2.0, B: 4.0, C: 7.0, D: 100.0}), watch)
    ends = []
    records = play(strategy, grid, 2, lambda _: ends.append(watch.now))
    assert [outcomes(record) for record in records] == [
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), B: ("ok", 0), C: ("ok", 1)},
    ]
    assert ends == pytest.approx([1005, 1010])


def test_no_task_starts_within_a_period(watch):
    strategy = strategy_with(mode="semi-sync", period=5.0, concurrency=1)
    timed = TimedGrid(strategy, dict.fromkeys(NODES, 7.0))
    play(strategy, RealGrid(timed, watch), 3)
    assert [start for start, *_ in timed.log] == pytest.approx([1000, 1010], abs=0.2)


def test_who_never_answers_is_given_up_and_asked_again_later(watch):
    strategy = strategy_with(mode="buffered", buffer=4, fleet={"deadline": 60.0})
    grid = RealGrid(TimedGrid(strategy, {A: 1.0, B: 1.0, C: 1.0, D: math.inf}), watch)
    records = play(strategy, grid, 2)
    assert outcomes(records[0]) == {
        A: ("ok", 0),
        B: ("ok", 0),
        C: ("ok", 0),
        D: ("late", 0),
    }
    assert next(c.reason for c in records[0].clients if c.node_id == D) == "no reply"
    assert watch.now == pytest.approx(1000 + 2 * 60, abs=1)
    assert outcomes(records[1])[D] == ("late", 0)


def test_what_cannot_be_sent_has_failed(watch):
    strategy = strategy_with(mode="buffered", buffer=4)
    timed = TimedGrid(strategy, dict.fromkeys(NODES, 1.0))
    (record,) = play(strategy, RealGrid(timed, watch, unsent=(B,)), 1)
    assert outcomes(record) == {A: ("ok", 0), B: ("away", 0), C: ("ok", 0), D: ("ok", 0)}
    assert timed.log  # the others were sent theirs


def test_messages_that_are_too_large_to_send_have_failed(watch):
    strategy = strategy_with(over_selection=1.5, clients_per_round=2)
    timed = TimedGrid(strategy, dict.fromkeys(NODES, 1.0))
    grid = RealGrid(timed, watch)
    grid.push_messages = lambda messages: []  # what Flower's grid returns then
    (record,) = play(strategy, grid, 1)
    assert record.without_reply == 3
    assert not timed.log


def test_a_grid_whose_time_stands_still():
    strategy = strategy_with(mode="semi-sync")
    grid = TimedGrid(strategy, dict.fromkeys(NODES, 0.0))
    grid.wait_until = lambda now: None
    with pytest.raises(MestFedError, match="take no time"):
        AsyncMessenger(grid).wait([], 5.0)
