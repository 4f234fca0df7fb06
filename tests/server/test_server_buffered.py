"""FedBuff and semi-synchronous rounds over devices in virtual time."""

import gc
import weakref

import numpy as np
import pytest
from server_parts import NODES, strategy_of
from timed_grid import TimedGrid, outcomes, play

from mest_fed.run_rows.rounds import Spread
from mest_fed.sparsity.state import SparseState

A, B, C, D = NODES  # of 10, 20, 30, 40 examples


def buffered(concurrency=4, buffer=2, **sections):
    server = {"mode": "buffered", "concurrency": concurrency, "buffer": buffer}
    changes = {"evaluate_clients_every": 0, **sections.pop("server", {})}
    return strategy_of(server=server | changes, **sections)


def shift(amount):
    """Return a training that moves every value by an amount."""

    def train(state, node_id, number):
        values = {layer: array + np.float32(amount) for layer, array in state.values.items()}
        dense = {name: array + np.float32(amount) for name, array in state.dense.items()}
        return SparseState(state.masks, values, dense)

    return train


def test_a_schedule_by_hand():
    strategy = buffered()
    grid = TimedGrid(strategy, {A: 2.0, B: 3.0, C: 7.0, D: 100.0})
    ends = []
    records = play(strategy, grid, 4, lambda _: ends.append(grid.now))
    # A and B report at 2 and 3 and begin anew at 3, once their round is over: 5 and 6. They begin
    # again at 6. C answers at 7, from the first model, and A at 8.
    assert [outcomes(record) for record in records] == [
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), C: ("ok", 2)},
        {B: ("ok", 1), A: ("ok", 0)},
    ]
    assert ends == [3.0, 6.0, 8.0, 10.0]
    begun = sorted((start, number) for start, node, number in grid.log if node == B)
    assert begun == [(0.0, 1), (3.0, 2), (6.0, 3)]


def test_the_step_of_a_schedule_by_hand():
    # The third round takes A's fresh step and C's, which is two versions old: 1 / sqrt(3) of it.
    strategy = buffered()
    grid = TimedGrid(strategy, {A: 2.0, B: 3.0, C: 7.0, D: 100.0}, train=shift(0.5))
    play(strategy, grid, 2)
    before = strategy.model.state()
    strategy.first_round = 2
    play(strategy, grid, 1)
    moved = 0.5 * (10 * 1 + 30 / np.sqrt(3)) / (10 + 30)
    after = strategy.model.state()
    for layer, values in before.values.items():
        np.testing.assert_allclose(after.values[layer] - values, moved, rtol=1e-4)
    for name, values in before.dense.items():
        np.testing.assert_allclose(after.dense[name] - values, moved, rtol=1e-4)


def test_equal_weights_by_hand():
    strategy = buffered(buffer=4, server={"weighting": "equal"})

    def train(state, node_id, number):
        return shift(float(NODES.index(node_id)))(state, node_id, number)

    before = strategy.model.state()
    play(strategy, TimedGrid(strategy, dict.fromkeys(NODES, 1.0), train=train), 1)
    for layer, values in before.values.items():
        moved = strategy.model.state().values[layer] - values
        np.testing.assert_allclose(moved, (0 + 1 + 2 + 3) / 4, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
def test_a_buffer_of_all_fresh_updates_is_a_synchronous_round(optimizer):
    sparsity = {"method": "mest-ems", "period": 0.125}
    server = {"optimizer": optimizer, "evaluate_clients_every": 2}
    one = buffered(buffer=4, server=server, sparsity=sparsity)
    two = strategy_of(server=server, sparsity=sparsity)
    grid = TimedGrid(one, {A: 4.0, B: 3.0, C: 1.0, D: 2.0})
    records = play(one, grid, 5)

    replies = TimedGrid(two, dict.fromkeys(NODES, 1.0))
    for number in range(1, 6):
        names = replies.push_messages(two.configure_train(number, None, None, replies))
        two.aggregate_train(number, replies.pull_messages(names))
        asked = two.configure_evaluate(number, None, None, replies)
        two.aggregate_evaluate(number, replies.send_and_receive(asked))
    assert {staleness for r in records for _, staleness in outcomes(r).values()} == {0}
    ours, theirs = one.model.state(), two.model.state()
    for group, slots in theirs.masks.items():
        np.testing.assert_array_equal(ours.masks[group], slots)
    for layer, values in theirs.values.items():
        np.testing.assert_allclose(ours.values[layer], values, rtol=1e-6, atol=1e-9)
    assert one.record.client_metrics == {}  # round 5 is odd
    assert records[3].client_metrics["accuracy"] == Spread(
        **dict.fromkeys(("mean", "min", "p10", "median", "p90", "max"), 0.75)
    )


def test_replies_that_arrive_together_go_into_one_round():
    strategy = buffered(concurrency=3, buffer=2)
    grid = TimedGrid(strategy, dict.fromkeys(NODES, 5.0))
    records = play(strategy, grid, 2)
    assert [list(outcomes(record).values()) for record in records] == [[("ok", 0)] * 3] * 2
    assert grid.now == 10.0


def test_no_device_gives_two_updates_to_a_round():
    strategy = buffered(concurrency=2, buffer=4)
    grid = TimedGrid(strategy, {A: 1.0, B: 1.5, C: 2.0, D: 50.0})
    (record,) = play(strategy, grid, 1)
    assert set(outcomes(record)) == set(NODES)
    assert grid.now == pytest.approx(51.0, abs=2.0)


def test_an_old_update_is_rejected_and_its_device_asked_again():
    strategy = buffered(server={"max_staleness": 1})
    grid = TimedGrid(strategy, {A: 2.0, B: 3.0, C: 7.0, D: 100.0})
    records = play(strategy, grid, 4)
    assert outcomes(records[2])[C] == ("rejected", 2)
    reason = next(c.reason for c in records[2].clients if c.node_id == C)
    assert reason == "2 rounds old; server.max_staleness = 1"
    assert records[2].count("ok") == 2
    assert [number for _, node, number in grid.log if node == C] == [1, 4]
    assert C in strategy.clients.known_mask or C in strategy.busy()


def test_a_failure_makes_room_and_does_not_count():
    strategy = buffered(concurrency=2, buffer=2)

    def train(state, node_id, number):
        return "out of memory" if node_id in (A, B, C) and number == 1 else state

    grid = TimedGrid(strategy, dict.fromkeys(NODES, 1.0), train=train)
    records = play(strategy, grid, 2)
    assert outcomes(records[0]) == {
        A: ("failed", 0),
        B: ("failed", 0),
        C: ("failed", 0),
        D: ("ok", 0),
    }
    assert records[1].count("ok") == 2


def test_when_all_fail_the_round_ends_and_the_model_stays():
    strategy = buffered()
    before = strategy.model.state()
    grid = TimedGrid(strategy, dict.fromkeys(NODES, 1.0), train=lambda *_: "out of memory")
    records = play(strategy, grid, 2)
    assert [record.without_reply for record in records] == [4, 4]
    for layer, values in before.values.items():
        np.testing.assert_array_equal(strategy.model.state().values[layer], values)


def test_states_of_a_version_go_with_its_last_instruction():
    strategy = buffered(concurrency=4, buffer=1)
    grid = TimedGrid(strategy, {A: 1.0, B: 10.5, C: 100.0, D: 1000.0})
    references = {}

    def note(number):
        for pending in strategy.pending_updates.values():
            references.setdefault(pending.round, weakref.ref(pending.sent))
        gc.collect()
        alive = {number for number, reference in references.items() if reference() is not None}
        on_their_way = {pending.round for pending in strategy.pending_updates.values()}
        assert alive - {number} == on_their_way - {number}

    play(strategy, grid, 25, note)
    assert {1, 12, 23} <= references.keys()  # of A, C and D; then B's


@pytest.mark.parametrize("scheme", ["unstructured", "pattern", "channel"])
@pytest.mark.parametrize("upload", ["fp32", "int8"])
def test_updates_across_mutations_leave_the_inactive_inactive(scheme, upload):
    strategy = buffered(
        run={"rounds": 12},
        sparsity={"method": "mest-em", "period": 2 / 12, "scheme": scheme},
        wire={"upload": upload, "download": "fp16"},
    )
    grid = TimedGrid(strategy, {A: 2.0, B: 3.1, C: 17.0, D: 7.3})
    absorbed = []
    apply_update = strategy.model.apply_update

    def watched(mean, optimizer):
        apply_update(mean, optimizer)
        for layer in strategy.model.spec.layouts:
            inactive = ~strategy.model.active(layer)
            assert not strategy.model.weights[layer][inactive].any()
        absorbed.append(mean.weight)

    strategy.model.apply_update = watched
    records = play(strategy, grid, 12)
    stale = [c.staleness for r in records for c in r.clients if c.status == "ok"]
    assert max(stale) > 2
    assert sum(record.count("ok") for record in records) == 24
    assert len(absorbed) == 12


def test_int8_updates_are_differences_to_what_was_fetched():
    strategy = buffered(wire={"upload": "int8"})
    grid = TimedGrid(strategy, {A: 2.0, B: 3.0, C: 7.0, D: 100.0}, train=shift(0.5))
    play(strategy, grid, 2)
    before = strategy.model.state()
    strategy.first_round = 2
    (record,) = play(strategy, grid, 1)
    assert outcomes(record)[C] == ("ok", 2)
    moved = 0.5 * (10 * 1 + 30 / np.sqrt(3)) / (10 + 30)
    for layer, values in before.values.items():
        np.testing.assert_allclose(strategy.model.state().values[layer] - values, moved, rtol=1e-2)


def test_bytes_count_in_the_round_in_which_a_task_ends():
    strategy = buffered()
    grid = TimedGrid(strategy, {A: 2.0, B: 3.0, C: 7.0, D: 100.0})
    records = play(strategy, grid, 5)
    taken = [client for record in records for client in record.clients]
    up = sum(client.bytes_up for client in taken)
    assert up == sum(record.bytes_up for record in records)
    assert strategy.pending_updates
    down = sum(client.bytes_down for client in taken)
    assert down == sum(record.bytes_down() for record in records)


def test_busy_devices_do_not_evaluate():
    strategy = buffered(server={"evaluate_clients_every": 1})
    grid = TimedGrid(strategy, {A: 2.0, B: 3.0, C: 7.0, D: 100.0})
    grid.evaluation_seconds = 0.5
    play(strategy, grid, 1)
    assert sorted(grid.evaluated) == sorted([A, B])
    assert grid.now == 3.5


def semi_synchronous(**server):
    server = {"mode": "semi-sync", "concurrency": 3, "period": 10.0} | server
    return strategy_of(server={"evaluate_clients_every": 0} | server)


def test_periods_by_hand():
    strategy = semi_synchronous(concurrency=4)
    grid = TimedGrid(strategy, {A: 2.0, B: 10.0, C: 25.0, D: 31.0})
    ends = []
    records = play(strategy, grid, 4, lambda _: ends.append(grid.now))
    assert ends == [10.0, 20.0, 30.0, 40.0]
    assert [outcomes(record) for record in records] == [
        {A: ("ok", 0), B: ("ok", 0)},  # who arrives with the end of a period is in time
        {A: ("ok", 0), B: ("ok", 0)},
        {A: ("ok", 0), B: ("ok", 0), C: ("ok", 2)},
        {A: ("ok", 0), B: ("ok", 0), D: ("ok", 3)},
    ]


def test_a_period_without_replies_changes_nothing():
    strategy = semi_synchronous(concurrency=1)
    before = strategy.model.state()
    grid = TimedGrid(strategy, dict.fromkeys(NODES, 15.0))
    records = play(strategy, grid, 2)
    assert [record.count("ok") for record in records] == [0, 1]
    assert records[0].train_loss is None
    layer = next(iter(before.values))
    assert (strategy.model.state().values[layer] != before.values[layer]).any()
    assert grid.now == 20.0


def test_periods_pass_without_available_devices():
    strategy = semi_synchronous()
    grid = TimedGrid(strategy, dict.fromkeys(NODES, 0.0), train=lambda *_: "away")
    play(strategy, grid, 2)
    assert grid.now == 20.0
