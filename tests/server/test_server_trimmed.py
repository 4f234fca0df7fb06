"""The trimmed mean: by hand with unlike masks, against a reference, in a round."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_parts import (
    NODES,
    SCHEMES,
    dense_and_held,
    line_model,
    line_spec,
    line_state,
    spec_for,
    strategy_of,
    train_messages,
)
from test_server_aggregate import CLIENTS, drawn_clients, mean_of
from test_server_strategy import honest, shifted, with_array
from timed_grid import TimedGrid, play

from mest_fed.errors import InputError
from mest_fed.server.aggregation import trimmed
from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.aggregation.trimmed import TrimmedMean, build_aggregate
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.sparsity.state import ModelSpec, SparseState

TRIMS = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.34, 0.4999])


def trimmed_of(spec, states, trim):
    mean = TrimmedMean(spec, PositionCache(spec), trim)
    for state in states:
        mean.add(state, 1)
    return mean


def line(states, trim, weights=4):
    return trimmed_of(line_spec(weights), [line_state(each) for each in states], trim)


def test_unlike_masks_by_hand():
    # Weight 0: five holders, one off at either end. Weight 1: three, none. Weight 2: one. 3: none.
    states = [
        {0: 5.0, 1: 1.0},
        {0: -900.0, 1: 2.0},
        {0: 1.0, 2: 7.0},
        {0: 3.0, 1: 6.0},
        {0: 900.0},
    ]
    average, held = line(states, 0.2).layers["w"].mean()
    assert average.tolist() == [3.0, 3.0, 7.0, 0.0]
    assert held.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("trim", "holders", "kept"),
    [
        (0.2, 4, 4),
        (0.2, 5, 3),
        (0.2, 9, 7),
        (0.2, 10, 6),
        (0.29, 100, 42),  # 0.29 * 100 is 28.999...
        (0.49, 2, 2),
        (0.49, 3, 1),
        (0.4999999999, 4, 2),
        (0.0, 7, 7),
    ],
)
def test_so_many_are_kept(trim, holders, kept):
    # 0, 1, 2, ...: the sum of squares of the ranks that are kept says which they are.
    states = [{0: float(rank**2)} for rank in range(holders)]
    cut = (holders - kept) // 2
    expected = np.mean([rank**2 for rank in range(cut, holders - cut)])
    average, _ = line(states[::-1], trim, 1).layers["w"].mean()
    assert average[0] == np.float32(expected)


def test_examples_do_not_count():
    spec = line_spec(1)
    mean = TrimmedMean(spec, PositionCache(spec), 0.2)
    for value, examples in ((1.0, 10**9), (2.0, 1), (6.0, 1)):
        mean.add(line_state({0: value}), examples)
    assert mean.layers["w"].mean()[0].tolist() == [3.0]
    assert mean.weight == 3


def test_dense_tensors_by_hand():
    spec = ModelSpec({}, {}, {"bias": (1, 2)})
    numbers = [[1, 50], [2, 40], [900, 0], [3, -900], [-900, 60]]
    states = [SparseState({}, {}, {"bias": np.array([row], np.float32)}) for row in numbers]
    assert trimmed_of(spec, states, 0.2).dense_mean()["bias"].tolist() == [[2.0, 30.0]]


def test_what_all_who_were_offered_it_dropped_is_zero():
    model = line_model({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, weights=6)
    mean = TrimmedMean(model.spec, PositionCache(model.spec), 0.2)
    offered = {"w": np.array([0, 1, 2], np.int32)}
    mean.add(line_state({0: 6.0, 5: 0.5}), 1, offered)
    mean.add(line_state({2: 7.0, 5: 0.1}), 3, offered)
    assert mean.layers["w"].dropped().tolist() == [False, True, False, False, False, False]
    model.apply_update(mean, ServerOptimizer(learning_rate=0.5))
    np.testing.assert_allclose(model.weights["w"], [3.5, 0.0, 5.0, 4.0, 0.0, 0.15])


def test_no_update_leaves_the_model():
    model = line_model({0: 1.0}, weights=2)
    model.apply_update(TrimmedMean(model.spec, PositionCache(model.spec), 0.2), ServerOptimizer())
    assert model.weights["w"].tolist() == [1.0, 0.0]


def reference(values, trim):
    """Return the trimmed mean of numbers, and the smallest and largest that are kept."""
    kept = np.sort(np.array(values, np.float64))
    cut = min(int(np.floor(trim * len(kept) + 1e-9)), (len(kept) - 1) // 2)
    kept = kept[cut : len(kept) - cut]
    return kept.mean(), kept[0], kept[-1]


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=15, deadline=None)
@given(drawn=st.lists(CLIENTS, min_size=2, max_size=2).map(lambda two: two[0] + two[1]), trim=TRIMS)
def test_against_a_reference(scheme, drawn, trim):
    spec = spec_for(scheme)
    states = [state for state, _ in drawn_clients(spec, drawn)]
    with patch.object(trimmed, "_AT_ONCE", 1000):  # several blocks
        mean = trimmed_of(spec, states, trim)
        averages = {layer: mean.layers[layer].mean() for layer in spec.layouts}
    for layer, (average, held) in averages.items():
        weights = [dense_and_held(spec, state, layer) for state in states]
        for position in range(0, len(average), 7):
            own = [weight[position] for weight, flags in weights if flags[position]]
            assert held[position] == bool(own)
            expected, low, high = reference(own, trim) if own else (0, 0, 0)
            assert average[position] == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert low <= average[position] <= high


@settings(max_examples=25, deadline=None)
@given(drawn=CLIENTS)
def test_nothing_trimmed_is_the_mean_of_clients_of_one_example(drawn):
    spec = spec_for("block")
    clients = [(state, 1) for state, _ in drawn_clients(spec, drawn)]
    plain, ours = mean_of(spec, clients), trimmed_of(spec, [state for state, _ in clients], 0.0)
    for layer in spec.layouts:
        (one, held), (other, also) = plain.layers[layer].mean(), ours.layers[layer].mean()
        np.testing.assert_array_equal(held, also)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        plain.dense_mean()["bias"], ours.dense_mean()["bias"], rtol=1e-5, atol=1e-7
    )


@settings(max_examples=25, deadline=None)
@given(drawn=CLIENTS, trim=TRIMS, order=st.randoms())
def test_the_order_of_clients_does_not_show_in_the_bits(drawn, trim, order):
    spec = spec_for("block:3")
    states = [state for state, _ in drawn_clients(spec, drawn)]
    shuffled = states.copy()
    order.shuffle(shuffled)
    one, other = trimmed_of(spec, states, trim), trimmed_of(spec, shuffled, trim)
    for layer in spec.layouts:
        for mine, theirs in zip(one.layers[layer].mean(), other.layers[layer].mean(), strict=True):
            assert mine.tobytes() == theirs.tobytes()
    assert one.dense_mean()["bias"].tobytes() == other.dense_mean()["bias"].tobytes()


@settings(max_examples=25, deadline=None)
@given(
    good=st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=12),
    bad=st.lists(st.floats(-(2.0**59), 2.0**59, width=32), max_size=3),
)
def test_so_many_that_send_anything_do_not_reach_beyond_the_others(good, bad):
    # k = floor(trim h) bad ones at most: 3 of 15, 2 of 10, 1 of 5; of those that stay, too.
    bad = bad[: len(good) // 4]
    average, _ = line([{0: each} for each in good + bad], 0.2, 1).layers["w"].mean()
    assert min(good) <= average[0] <= max(good)


def test_the_configuration_chooses():
    spec, cache = line_spec(1), PositionCache(line_spec(1))
    plain, robust = strategy_of().config.server, strategy_of(server={"trim": 0.25}).config.server
    assert type(build_aggregate(plain, spec, cache)) is MaskedMean
    chosen = build_aggregate(robust, spec, cache)
    assert (type(chosen), chosen.trim) == (TrimmedMean, 0.25)


@pytest.mark.parametrize("trim", [0.5, -0.1, 1.0])
def test_a_share_that_leaves_nothing_is_one_line(trim):
    with pytest.raises(
        InputError, match=rf"^server\.trim = {trim} is not allowed \(test\); allowed: "
    ):
        strategy_of(server={"trim": trim})


class SummingGrid:
    """Would sum in its workers, if it were asked."""

    def __init__(self, grid):
        self.grid, self.offered = grid, []

    def __getattr__(self, name):
        return getattr(self.grid, name)

    def sum_in_workers(self, aggregator):
        self.offered.append(aggregator)


def test_a_round_is_trimmed_though_the_grid_would_sum(grid):
    strategy = strategy_of(server={"trim": 0.25})
    summing = SummingGrid(grid)
    messages = train_messages(strategy, summing)
    assert summing.offered == []
    before = strategy.model.state()
    amounts = dict(zip(NODES, (1.0, 2.0, 4.0, 1e6), strict=True))
    replies = [honest(strategy, messages[node], amounts[node]) for node in NODES]
    strategy.aggregate_train(1, replies)
    after = strategy.model.state()
    for layer, values in before.values.items():
        np.testing.assert_allclose(after.values[layer], values + 3.0, rtol=1e-5, atol=1e-5)
    for name, values in before.dense.items():
        np.testing.assert_allclose(after.dense[name], values + 3.0, rtol=1e-5, atol=1e-5)
    assert strategy.record.count("ok") == 4


def test_an_update_that_was_rejected_is_not_among_the_trimmed(grid):
    strategy = strategy_of(server={"trim": 0.34})
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    replies = [honest(strategy, messages[node], 1.0 + n) for n, node in enumerate(NODES)]
    with_array(replies[3], "values", lambda array: array * np.float32(np.nan))
    strategy.aggregate_train(1, replies)
    assert strategy.record.count("rejected") == 1
    for layer, values in strategy.model.state().values.items():
        np.testing.assert_allclose(values, before.values[layer] + 2.0, rtol=1e-5, atol=1e-5)


def test_a_buffer_is_trimmed():
    server = {"mode": "buffered", "concurrency": 4, "buffer": 4, "trim": 0.25}
    strategy = strategy_of(server=server | {"evaluate_clients_every": 0})
    amounts = dict(zip(NODES, (1.0, 2.0, 4.0, 1e6), strict=True))

    def train(state, node_id, number):
        return shifted(state, amounts[node_id])

    before = strategy.model.state()
    play(strategy, TimedGrid(strategy, dict.fromkeys(NODES, 1.0), train=train), 1)
    for layer, values in before.values.items():
        moved = strategy.model.state().values[layer] - values
        np.testing.assert_allclose(moved, 3.0, rtol=1e-5)
