"""Layers that some clients keep frozen: averaged over those who trained them."""

import numpy as np
import pytest
from server_parts import (
    NODES,
    StubGrid,
    capability,
    line_state,
    random_state,
    spec_for,
    strategy_of,
    train_messages,
)
from test_server_strategy import examples_of, honest

from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.aggregation.trimmed import TrimmedMean
from mest_fed.sparsity import layout_for
from mest_fed.sparsity.state import ModelSpec, SparseState

SPEC = ModelSpec(
    {"w": ("w",)}, {"w": layout_for("unstructured", (1, 3))}, {"first": (2,), "last": (1,)}
)


def client(values, first, last):
    state = line_state(values)
    dense = {"first": np.array(first, np.float32), "last": np.array(last, np.float32)}
    return SparseState(state.masks, state.values, dense)


@pytest.mark.parametrize("kind", ["mean", "trimmed"])
def test_frozen_layers_by_hand(kind):
    cache = PositionCache(SPEC)
    mean = MaskedMean(SPEC, cache) if kind == "mean" else TrimmedMean(SPEC, cache, 0.1)
    mean.add(client({0: 2.0, 1: 4.0}, [1, 1], [3]), 1)
    mean.add(client({0: 9.0, 1: 9.0}, [9, 9], [7]), 3, untrained={"w", "first"})
    average, held = mean.layers["w"].mean()
    assert average.tolist() == [2.0, 4.0, 0.0]
    assert held.tolist() == [True, True, False]
    dense = mean.dense_mean()
    assert dense["first"].tolist() == [1, 1]
    assert dense["last"].tolist() == [6.0 if kind == "mean" else 5.0]


@pytest.mark.parametrize("kind", ["mean", "trimmed"])
def test_what_nobody_trained_is_no_part_of_the_mean(kind):
    cache = PositionCache(SPEC)
    mean = MaskedMean(SPEC, cache) if kind == "mean" else TrimmedMean(SPEC, cache, 0.1)
    mean.add(client({0: 9.0}, [9, 9], [7]), 3, untrained={"w", "first"})
    assert not mean.layers["w"].mean()[1].any()
    assert mean.dense_mean().keys() == {"last"}


def test_sums_of_those_who_trained_all_are_as_before():
    spec = spec_for("block")
    one, two = (random_state(spec, 0.3, seed) for seed in (1, 2))
    plain, marked = (MaskedMean(spec, PositionCache(spec)) for _ in range(2))
    for state, weight in ((one, 3), (two, 11)):
        plain.add(state, weight)
        marked.add(state, weight, untrained=frozenset())
    for name, values in plain.dense_mean().items():
        np.testing.assert_array_equal(values, marked.dense_mean()[name])


#: Segments that each node keeps frozen, and how far its training moves all others.
FROZEN = dict(zip(NODES, (0, 2, 1, 2), strict=True))
AMOUNTS = dict(zip(NODES, (1.0, 100.0, 3.0, 10.0), strict=True))


def frozen_grid(frozen, density=1.0):
    return StubGrid(
        {node: capability(p, density, frozen=frozen[node]) for p, node in enumerate(NODES)}
    )


@pytest.mark.parametrize("server", [{}, {"clip_median": 100.0}, {"trim": 0.1}])
def test_a_round_averages_a_layer_over_those_who_trained_it(server):
    strategy = strategy_of(sparsity={"method": "dense"}, server=server)
    first, second = strategy.task.untrained(1), strategy.task.untrained(2)
    assert "conv1.weight" in first < second
    before = strategy.model.state()
    messages = train_messages(strategy, frozen_grid(FROZEN))
    replies = [honest(strategy, messages[node], AMOUNTS[node]) for node in NODES]
    strategy.aggregate_train(1, replies)
    for name, values in strategy.model.dense.items():
        depth = 1 if name in first else 2 if name in second else 3
        trained = [node for node in NODES if FROZEN[node] < depth]
        weights = [1 if "trim" in server else examples_of(messages[node]) for node in trained]
        moved = np.average([AMOUNTS[node] for node in trained], weights=weights)
        np.testing.assert_allclose(values, before.dense[name] + moved, rtol=1e-5, atol=1e-5)


def test_a_layer_that_all_keep_frozen_stays():
    strategy = strategy_of()
    before = strategy.model.state()
    messages = train_messages(strategy, frozen_grid(dict.fromkeys(NODES, 2), 0.2))
    strategy.aggregate_train(1, [honest(strategy, it) for it in messages.values()])
    after, frozen = strategy.model.state(), strategy.task.untrained(2)
    for kind in ("values", "dense"):
        for name, values in getattr(before, kind).items():
            assert np.array_equal(values, getattr(after, kind)[name]) == (name in frozen)


def test_a_node_that_claims_a_negative_number_is_left_out():
    strategy = strategy_of()
    frozen = {**dict.fromkeys(NODES, 0), NODES[0]: -1}
    assert NODES[0] not in train_messages(strategy, frozen_grid(frozen, 0.2))


def test_the_names_are_those_of_a_state():
    task = strategy_of(sparsity={"method": "static"}).task
    everything = task.untrained(4)
    assert everything <= task.spec.layouts.keys() | task.spec.dense.keys()
    assert "stage1.0.conv1" in everything
    assert not everything & task.spec.statistics
    assert task.untrained(0) == frozenset()
