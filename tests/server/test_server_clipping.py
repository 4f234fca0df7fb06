"""Norm clipping: by hand with unlike masks, in the server and where updates are computed."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_parts import (
    NODES,
    SCHEMES,
    dense_and_held,
    line_spec,
    line_state,
    random_masks,
    random_state,
    spec_for,
    strategy_of,
    train_messages,
)
from test_server_strategy import honest, shifted
from timed_grid import TimedGrid, play

from mest_fed.errors import InputError
from mest_fed.server.aggregation.clipping import NormClipping
from mest_fed.sparsity.state import ModelSpec, SparseState


def test_unlike_masks_by_hand():
    # Sent 0: 1, 1: 2, 2: 9. The client dropped 2 and grew 3. It moved by (3, 0) and from 0 to 4.
    clip = NormClipping(line_spec(5), 2.5)
    sent = line_state({0: 1.0, 1: 2.0, 2: 9.0})
    state, norm = clip(line_state({0: 4.0, 1: 2.0, 3: 4.0}), sent)
    assert norm == 5.0
    assert state.masks["w"].tolist() == [0, 1, 3]
    assert state.values["w"].ravel().tolist() == [2.5, 2.0, 2.0]


def test_dense_tensors_and_statistics_count():
    shapes = {"bias": (2,), "running_var": (1,)}
    spec = ModelSpec({}, {}, shapes, frozenset({"running_var"}), frozenset({"running_var"}))

    def state(*numbers):
        bias, var = np.array(numbers[:2], np.float32), np.array(numbers[2:], np.float32)
        return SparseState({}, {}, {"bias": bias, "running_var": var})

    clipped, norm = NormClipping(spec, 1.0)(state(2.0, 1.0, 8.0), state(0.0, 0.0, 6.0))
    assert norm == 3.0
    assert clipped.dense["bias"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert clipped.dense["running_var"].tolist() == pytest.approx([6 + 2 / 3])


def test_within_the_bound_nothing_is_touched():
    spec, sent, after = line_spec(2), line_state({0: 1.0}), line_state({0: 3.0})
    assert NormClipping(spec, 2.0)(after, sent) == (after, 2.0)
    assert NormClipping(spec, 0.0)(after, sent) == (after, 0.0)


def test_the_largest_numbers_that_are_accepted():
    spec = line_spec(2)
    clipped, norm = NormClipping(spec, 1.0)(line_state({0: 1e18, 1: -1e18}), line_state({0: 0.0}))
    assert norm == pytest.approx(np.sqrt(2) * 1e18)
    np.testing.assert_allclose(clipped.values["w"].ravel(), [np.sqrt(0.5), -np.sqrt(0.5)])


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=15, deadline=None)
@given(
    share=st.floats(0.05, 3.0),
    density=st.floats(0.02, 1.0),
    seed=st.integers(0, 99),
    same=st.booleans(),
)
def test_against_dense_weights(scheme, share, density, seed, same):
    spec = spec_for(scheme)
    sent = random_state(spec, density, seed)
    masks = sent.masks if same else random_masks(spec, density, seed + 1)
    after = random_state(spec, seed=seed + 2, masks=masks)

    def pairs(state):
        """Yield what was sent and what a state has, where it holds a weight."""
        for layer in spec.layouts:
            (start, _), (weight, held) = (dense_and_held(spec, s, layer) for s in (sent, state))
            yield start[held], weight[held]
        yield sent.dense["bias"], state.dense["bias"]

    expected = np.sqrt(sum(np.square(weight - start).sum() for start, weight in pairs(after)))
    bound = float(share * expected)
    clipped, norm = NormClipping(spec, bound)(after, sent)
    assert norm == pytest.approx(expected, rel=1e-6)
    assert clipped.masks == after.masks
    factor = min(1.0, share)
    for (start, came), (_, counts) in zip(pairs(after), pairs(clipped), strict=True):
        np.testing.assert_allclose(counts, start + factor * (came - start), rtol=1e-5, atol=1e-6)


def norm_of_one(strategy):
    """Return the norm of an update that moves every number of a strategy's model by 1."""
    state = strategy.model.state()
    return np.sqrt(sum(each.size for each in (*state.values.values(), *state.dense.values())))


def moved_by(strategy, before):
    """Return by how much a step moved every number of the model."""
    after = strategy.model.state()
    moves = [after.values[layer] - values for layer, values in before.values.items()]
    moves += [after.dense[name] - values for name, values in before.dense.items()]
    return np.concatenate([move.ravel() for move in moves])


@pytest.mark.parametrize(
    ("server", "expected"),
    # Of 10 examples each 1, of 90 in all 2 each; the two in the middle of four.
    [({}, (10 * 1 + 90 * 2) / 100), ({"trim": 0.25}, 2.0)],
)
def test_a_round_by_hand(grid, caplog, server, expected):
    bound = 2.0 * norm_of_one(strategy_of())
    strategy = strategy_of(server=server | {"clip_norm": float(bound)})
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    amounts = (1.0, 2.5, 4.0, 1e6)
    replies = [honest(strategy, messages[n], a) for n, a in zip(NODES, amounts, strict=True)]
    with caplog.at_level(logging.INFO, "mest_fed.server"):
        strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(moved_by(strategy, before), expected, rtol=1e-4)
    (line,) = [each for each in caplog.messages if each.startswith("norms of 4 updates: ")]
    assert line.endswith(f"; 3 clipped to {bound:.4g}")
    assert f"median {3.25 * norm_of_one(strategy):.4g}" in line


def test_a_buffered_update_is_clipped_from_what_was_sent():
    bound = float(2.0 * norm_of_one(strategy_of()))
    server = {"mode": "buffered", "concurrency": 4, "buffer": 4, "weighting": "equal"}
    strategy = strategy_of(server=server | {"clip_norm": bound, "evaluate_clients_every": 0})
    amounts = dict(zip(NODES, (1.0, -1e6, 2.0, 1e6), strict=True))

    def train(state, node_id, number):
        return shifted(state, amounts[node_id])

    before = strategy.model.state()
    play(strategy, TimedGrid(strategy, dict.fromkeys(NODES, 1.0), train=train), 1)
    np.testing.assert_allclose(moved_by(strategy, before), (1 - 2 + 2 + 2) / 4, rtol=1e-4)


@pytest.mark.parametrize(
    ("server", "expected", "bound"),
    [
        # The norms are as 1, 2, 4 and 1e6: their median is as 3.
        ({"clip_median": 1.0}, (10 * 1 + 20 * 2 + 70 * 3) / 100, 3.0),
        ({"clip_median": 0.5}, (10 * 1 + 90 * 1.5) / 100, 1.5),
        ({"clip_median": 1.0, "clip_norm": 0.5}, 0.5, 0.5),
        ({"clip_median": 2.0, "clip_norm": 1e9}, (10 * 1 + 20 * 2 + 30 * 4 + 40 * 6) / 100, 6.0),
        ({"clip_median": 1.0, "trim": 0.25}, (2 + 3) / 2, 3.0),
    ],
)
def test_a_round_that_is_clipped_to_its_median(grid, caplog, server, expected, bound):
    one = float(norm_of_one(strategy_of()))
    if server.get("clip_norm") == 0.5:
        server = server | {"clip_norm": 0.5 * one}
    strategy = strategy_of(server=server)
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    amounts = (1.0, 2.0, 4.0, 1e6)
    replies = [honest(strategy, messages[n], a) for n, a in zip(NODES, amounts, strict=True)]
    with caplog.at_level(logging.INFO, "mest_fed.server"):
        strategy.aggregate_train(1, replies[::-1])
    np.testing.assert_allclose(moved_by(strategy, before), expected, rtol=1e-4)
    (line,) = [each for each in caplog.messages if each.startswith("norms of 4 updates: ")]
    assert line.endswith(f" clipped to {bound * one:.4g}")
    assert strategy.record.count("ok") == 4


def test_where_most_updates_change_nothing_none_does(grid):
    strategy = strategy_of(server={"clip_median": 1.0})
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    amounts = (0.0, 0.0, 0.0, 1e6)
    replies = [honest(strategy, messages[n], a) for n, a in zip(NODES, amounts, strict=True)]
    strategy.aggregate_train(1, replies)
    assert not moved_by(strategy, before).any()


def test_old_updates_have_no_common_median():
    server = {"mode": "buffered", "concurrency": 4, "buffer": 4, "clip_median": 1.0}
    with pytest.raises(InputError, match=r"server\.clip_median = 1\.0 is for .*; allowed: 0"):
        strategy_of(server=server)


def test_without_a_bound_nothing_is_said(grid, caplog):
    strategy = strategy_of()
    messages = train_messages(strategy, grid)
    with caplog.at_level(logging.INFO, "mest_fed.server"):
        strategy.aggregate_train(1, [honest(strategy, messages[node]) for node in NODES])
    assert not [each for each in caplog.messages if "norm" in each]


def test_a_bound_below_zero_is_one_line():
    with pytest.raises(InputError, match=r"server\.clip_norm = -1.* is not allowed"):
        strategy_of(server={"clip_norm": -1.0})
