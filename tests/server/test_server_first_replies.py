"""Over-selection: the first to report are taken, the others are counted and dropped."""

import numpy as np
import pytest
from server_parts import NODES, strategy_of
from timed_grid import TimedGrid, drift, outcomes, play

from mest_fed.server.modes.arrivals import ArrivalStrategy
from mest_fed.wire import mask_hash

A, B, C, D = NODES  # of 10, 20, 30, 40 examples


def over_selected(cohort=2, factor=1.5, **sections):
    server = {"clients_per_round": cohort, "over_selection": factor, "evaluate_clients_every": 0}
    return strategy_of(server=server | sections.pop("server", {}), **sections)


def test_without_over_selection_rounds_wait_for_all():
    assert not isinstance(over_selected(factor=1.0), ArrivalStrategy)


def test_a_schedule_by_hand():
    strategy = over_selected(factor=2.0)
    grid = TimedGrid(strategy, {A: 1.0, B: 2.0, C: 2.5, D: 9.0})
    ends = []
    records = play(strategy, grid, 6, lambda _: ends.append(grid.now))
    # C is busy until 2.5 and D until 9, so that A and B, who report first, are alone in round 2.
    assert ends == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    assert [outcomes(record) for record in records] == [
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), B: ("ok", 0), C: ("surplus", 1)},
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), B: ("ok", 0), C: ("surplus", 1)},
        {A: ("ok", 0), B: ("ok", 0), D: ("surplus", 4)},
        {A: ("ok", 0), B: ("ok", 0), C: ("surplus", 1)},
    ]
    assert [node for _, node, number in grid.log if number == 2] == [A, B]


def test_the_factor_is_rounded_up():
    strategy = over_selected(cohort=2, factor=1.1)
    grid = TimedGrid(strategy, dict.fromkeys(NODES, 1.0))
    strategy.configure_train(1, None, None, grid)
    assert len(grid.log) == 3


def test_who_arrives_together_with_the_last_is_surplus():
    strategy = over_selected(factor=2.0)
    before = strategy.model.state()

    def train(state, node_id, number):
        return drift(state, node_id, number) if node_id in (A, B) else drift(state, 0, 0)

    grid = TimedGrid(strategy, dict.fromkeys(NODES, 1.0), train=train)
    (record,) = play(strategy, grid, 1)
    assert outcomes(record) == {
        A: ("ok", 0),
        B: ("ok", 0),
        C: ("surplus", 0),
        D: ("surplus", 0),
    }
    layer = next(iter(before.values))
    moved = [drift(before, node, 1).values[layer] for node in (A, B)]
    expected = (10 * moved[0].astype(float) + 20 * moved[1].astype(float)) / 30
    np.testing.assert_allclose(strategy.model.state().values[layer], expected, rtol=1e-6)


def test_surplus_is_counted_and_knows_its_mask():
    strategy = over_selected(factor=2.0)
    grid = TimedGrid(strategy, {A: 1.0, B: 2.0, C: 2.5, D: 9.0})
    records = play(strategy, grid, 2)
    surplus = next(client for client in records[1].clients if client.status == "surplus")
    assert surplus.node_id == C
    assert surplus.bytes_up == records[0].clients[0].bytes_up
    assert surplus.presented == 0
    assert records[1].bytes_up == 3 * surplus.bytes_up
    assert strategy.clients.known_mask[C] == mask_hash(grid.held[C])
    assert len(strategy.pending_updates) == 1
    down = sum(client.bytes_down for record in records for client in record.clients)
    assert down == sum(record.bytes_down() for record in records)


def test_failures_are_made_good_by_the_slower():
    strategy = over_selected(factor=2.0)

    def train(state, node_id, number):
        return "out of memory" if node_id == A else state

    grid = TimedGrid(strategy, {A: 1.0, B: 2.0, C: 2.5, D: 9.0}, train=train)
    (record,) = play(strategy, grid, 1)
    assert outcomes(record) == {A: ("failed", 0), B: ("ok", 0), C: ("ok", 0)}
    assert grid.now == 2.5


def test_a_round_ends_when_all_have_answered():
    strategy = over_selected(cohort=3, factor=1.3)
    grid = TimedGrid(
        strategy,
        {A: 1.0, B: 2.0, C: 2.5, D: 9.0},
        train=lambda state, node, _: state if node == D else "missed the deadline",
    )
    (record,) = play(strategy, grid, 1)
    assert record.count("ok") == 1
    assert record.without_reply == 3
    assert grid.now == 9.0


@pytest.mark.parametrize("mutation", ["client", "server"])
def test_masks_change_between_a_surplus_and_its_end(mutation):
    sparsity = {"method": "mest-em", "mutation": mutation, "period": 0.125}
    strategy = over_selected(factor=2.0, sparsity=sparsity)
    grid = TimedGrid(strategy, {A: 1.0, B: 2.0, C: 2.5, D: 9.0})
    start = strategy.record.density
    records = play(strategy, grid, 8)
    assert all(record.count("ok") == 2 for record in records)
    assert sum(record.count("surplus") for record in records) == 5
    assert strategy.record.density == pytest.approx(start, abs=0.01)
