"""Masked averaging: FedDST's rule by hand and against a dense reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_parts import (
    SCHEMES,
    column,
    dense_and_held,
    line_model,
    line_spec,
    line_state,
    random_state,
    spec_for,
)

from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.sparsity.state import ModelSpec, SparseState

CLIENTS = st.lists(
    st.tuples(
        st.floats(0.02, 1.0),  # density
        st.integers(1, 1000),  # examples
        st.integers(0, 2**32),  # seed
    ),
    min_size=1,
    max_size=5,
)


def mean_of(spec, clients):
    mean = MaskedMean(spec, PositionCache(spec))
    for state, weight in clients:
        mean.add(state, weight)
    return mean


def drawn_clients(spec, drawn):
    return [(random_state(spec, density, seed), weight) for density, weight, seed in drawn]


def test_feddst_by_hand():
    # Client A: 1 example, holds 0 and 1. Client B: 3 examples, holds 1 and 2. Nobody holds 3.
    mean = mean_of(
        line_spec(4), [(line_state({0: 2.0, 1: 4.0}), 1), (line_state({1: 8.0, 2: 1.0}), 3)]
    )
    average, held = mean.layers["w"].mean()
    # weight 1: (1 * 4 + 3 * 8) / 4
    assert average.tolist() == [2.0, 7.0, 1.0, 0.0]
    assert held.tolist() == [True, True, True, False]
    assert mean.weight == 4


def test_padding_is_left_out():
    # Blocks of 3 rows over 16 outputs: the third value of every last strip is padding.
    spec = spec_for("block:3")
    one = random_state(spec, 1.0, 1)
    average, held = mean_of(spec, [(one, 5)]).layers["a"].mean()
    weight, _ = dense_and_held(spec, one, "a")
    assert held.all()
    np.testing.assert_array_equal(average, weight.astype(np.float32))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=25, deadline=None)
@given(drawn=CLIENTS)
def test_against_a_dense_reference(scheme, drawn):
    spec = spec_for(scheme)
    clients = drawn_clients(spec, drawn)
    mean = mean_of(spec, clients)
    for layer in spec.layouts:
        total, weights = 0.0, 0.0
        for state, examples in clients:
            weight, held = dense_and_held(spec, state, layer)
            total, weights = total + examples * weight, weights + examples * held
        average, anybody = mean.layers[layer].mean()
        np.testing.assert_array_equal(anybody, weights > 0)
        want = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
        np.testing.assert_allclose(average, want, rtol=1e-6, atol=1e-6)
    dense = sum(examples * state.dense["bias"] for state, examples in clients)
    want = dense / sum(examples for _, examples in clients)
    np.testing.assert_allclose(mean.dense_mean()["bias"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=10, deadline=None)
@given(density=st.floats(0.02, 1.0), weights=st.lists(st.integers(1, 999), min_size=1, max_size=4))
def test_equal_clients_give_the_client(scheme, density, weights):
    spec = spec_for(scheme)
    client = random_state(spec, density, 3)
    mean = mean_of(spec, [(client, weight) for weight in weights])
    model = GlobalModel.from_state(spec, client)
    model.apply_update(mean, ServerOptimizer())
    after = model.state()
    for layer, values in client.values.items():
        np.testing.assert_allclose(after.values[layer], values, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(after.dense["bias"], client.dense["bias"], rtol=1e-6, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(drawn=CLIENTS, order=st.randoms())
def test_the_order_of_clients_does_not_matter(drawn, order):
    spec = spec_for("block")
    clients = drawn_clients(spec, drawn)
    shuffled = clients.copy()
    order.shuffle(shuffled)
    one, other = mean_of(spec, clients), mean_of(spec, shuffled)
    for layer in spec.layouts:
        (first, held), (second, also) = one.layers[layer].mean(), other.layers[layer].mean()
        np.testing.assert_array_equal(held, also)
        np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-7)


def test_weights_that_no_client_held_stay():
    model = line_model({0: 1.0, 1: 2.0, 2: 3.0}, weights=4)
    model.apply_update(mean_of(model.spec, [(line_state({0: 5.0}), 7)]), ServerOptimizer())
    assert model.weights["w"].tolist() == [5.0, 2.0, 3.0, 0.0]
    assert model.pseudo_gradient["w"].tolist() == [-4.0, 0.0, 0.0, 0.0]


def test_what_all_who_were_offered_it_dropped_is_zero():
    model = line_model({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, weights=6)
    mean = MaskedMean(model.spec, PositionCache(model.spec))
    # Both were offered 0, 1, 2. Both dropped 1 and grew 5; 0 and 2 have one holder each.
    offered = {"w": np.array([0, 1, 2], np.int32)}
    mean.add(line_state({0: 6.0, 5: 0.5}), 1, offered)
    mean.add(line_state({2: 7.0, 5: 0.1}), 3, offered)
    assert mean.layers["w"].dropped().tolist() == [False, True, False, False, False, False]
    model.apply_update(mean, ServerOptimizer(learning_rate=0.5))
    # Half way to the average; 3 was offered to nobody.
    np.testing.assert_allclose(model.weights["w"], [3.5, 0.0, 5.0, 4.0, 0.0, 0.1])


def test_without_an_offer_nothing_is_dropped():
    mean = mean_of(line_spec(2), [(line_state({0: 1.0}), 1)])
    assert not mean.layers["w"].dropped().any()


def test_the_largest_values_do_not_overflow():
    largest = float(np.finfo(np.float32).max)
    state = line_state({0: largest})
    average, _ = mean_of(line_spec(1), [(state, 10**6), (state, 10**6)]).layers["w"].mean()
    assert average[0] == np.float32(largest)


def test_a_zero_that_is_held_counts():
    mean = mean_of(line_spec(2), [(line_state({0: 0.0}), 1), (line_state({0: 3.0}), 2)])
    average, held = mean.layers["w"].mean()
    assert average[0] == 2.0
    assert held.tolist() == [True, False]


def test_dense_tensors_are_averaged_by_examples():
    spec = ModelSpec({}, {}, {"bias": (2,)})
    states = [SparseState({}, {}, {"bias": np.array(b, np.float32)}) for b in ([1, 0], [5, 4])]
    mean = mean_of(spec, [(states[0], 1), (states[1], 3)])
    assert mean.dense_mean()["bias"].tolist() == [4.0, 3.0]


def test_more_masks_than_the_cache_keeps():
    spec = line_spec(300)
    cache = PositionCache(spec)
    mean = MaskedMean(spec, cache)
    for position in [*range(100), *range(100)]:
        mean.add(SparseState({"w": np.array([position], np.int32)}, {"w": column([1.0])}, {}), 1)
    assert mean.layers["w"].weights.tolist() == [2.0] * 100 + [0.0] * 201
    assert 0 < len(cache) <= 32
