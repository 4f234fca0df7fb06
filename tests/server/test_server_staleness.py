"""The rule for stale updates, by hand and as a property: the inactive stay inactive."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_parts import (
    SCHEMES,
    column,
    dense_and_held,
    line_model,
    line_state,
    random_masks,
    random_state,
    spec_for,
)

from mest_fed.errors import WireError
from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes.buffered import discount, rebase
from mest_fed.server.modes.in_flight import SlotAges
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.sparsity.state import SparseState


def slots(*numbers):
    return np.array(numbers, np.int32)


def test_discounts_by_hand():
    assert discount(0, 0.5) == 1
    assert discount(3, 0.5) == 0.5
    assert discount(8, 0.5) == pytest.approx(1 / 3)
    assert discount(3, 1.0) == 0.25
    assert discount(7, 0.0) == 1


def test_a_share_of_the_difference_by_hand():
    # The client fetched weights 0, 2 and 3 and moved them by 1, 2 and -4. Weight 2 died since;
    # weight 5 was born since. The others stand elsewhere by now.
    model = line_model({0: 10.0, 3: 20.0, 5: 30.0}, weights=6)
    fetched = line_state({0: 1.0, 2: 1.0, 3: 1.0})
    update = line_state({0: 2.0, 2: 3.0, 3: -3.0})
    rows = {"w": np.array([True, False, True])}
    result = rebase(update, fetched, rows, model, 0.5)
    np.testing.assert_array_equal(result.masks["w"], [0, 3])
    np.testing.assert_array_equal(result.values["w"], column([10.5, 18.0]))


def test_statistics_move_towards_the_clients_by_hand():
    # Differences would give 2 + (1 - 9) / 2 = -2, and a variance must not be negative.
    spec = replace(spec_for("unstructured"), statistics=frozenset({"norm.running_var"}))
    spec.dense.update({"norm.running_var": (1,), "norm.weight": (1,)})
    masks = random_masks(spec, 0.2, seed=1)

    def state(variance, weight):
        drawn = random_state(spec, masks=masks)
        dense = {"norm.running_var": slots(variance) * 1.0, "norm.weight": slots(weight) * 1.0}
        return SparseState(masks, drawn.values, drawn.dense | dense)

    model = GlobalModel.from_state(spec, state(2, 2))
    rows = {group: np.ones(len(active), bool) for group, active in masks.items()}
    result = rebase(state(1, 1), state(9, 9), rows, model, 0.5)
    assert result.dense["norm.running_var"] == [1.5]
    assert result.dense["norm.weight"] == [-2.0]


def test_a_sum_that_is_too_large_is_refused():
    model = line_model({0: 3e38}, weights=2)
    rows = {"w": np.array([True])}
    with pytest.raises(WireError, match="finite"):
        rebase(line_state({0: 3e38}), line_state({0: 0.0}), rows, model, 1.0)


def test_a_fresh_update_is_what_the_client_sent():
    spec = spec_for("block:3")
    fetched = random_state(spec, seed=1)
    update = random_state(spec, seed=2, masks=fetched.masks)
    rows = {group: np.ones(len(active), bool) for group, active in fetched.masks.items()}
    result = rebase(update, fetched, rows, GlobalModel.from_state(spec, fetched), 1.0)
    for layer, values in update.values.items():
        np.testing.assert_array_equal(result.values[layer], values)
    np.testing.assert_array_equal(result.dense["bias"], update.dense["bias"])


def test_slot_ages_by_hand():
    ages = SlotAges({"w": slots(1, 4, 7)})
    ages.follow({"w": slots(1, 2, 7)}, 3)  # 4 dies, 2 is born, at the end of round 3
    ages.follow({"w": slots(1, 2, 4)}, 5)  # 7 dies, 4 is born again
    asked = slots(0, 1, 2, 4, 7)

    def still(number):
        return asked[ages.still("w", asked, number)].tolist()

    assert still(1) == [1]
    assert still(3) == [1]  # of the mask before 2 was born
    assert still(4) == [1, 2]
    assert still(5) == [1, 2]
    assert still(6) == [1, 2, 4]


histories = st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=2, max_size=8)


@given(histories, st.data())
def test_slot_ages_count_slots_that_were_always_active(history, data):
    ages = SlotAges({"w": slots(*sorted(history[0]))})
    for number, active in enumerate(history[1:], 1):
        ages.follow({"w": slots(*sorted(active))}, number)
    number = data.draw(st.integers(1, len(history)))
    offered = slots(*sorted(history[number - 1]))
    expected = set.intersection(*history[number - 1 :])
    assert set(offered[ages.still("w", offered, number)].tolist()) == expected


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 3))
def test_stale_updates_leave_the_inactive_and_the_grown_alone(scheme, seed, versions, staleness):
    spec = spec_for(scheme)
    masks = [random_masks(spec, 0.3, seed + number) for number in range(versions + staleness)]
    models = [GlobalModel.from_state(spec, random_state(spec, 0, seed, m)) for m in masks]
    ages = SlotAges(masks[0])
    for number, mask in enumerate(masks[1:], 1):
        ages.follow(mask, number)
    fetched, model = models[versions - 1].state(), models[-1]
    update = random_state(spec, 0, seed + 1, fetched.masks)
    rows = {group: ages.still(group, active, versions) for group, active in fetched.masks.items()}
    share = discount(staleness, 0.5)
    before = model.state()
    mean = MaskedMean(spec, PositionCache(spec))
    mean.add(rebase(update, fetched, rows, model, share), 7)
    model.apply_update(mean, ServerOptimizer())
    for layer in spec.layouts:
        after = model.weights[layer].astype(np.float64)
        start, active = dense_and_held(spec, before, layer)
        assert not after[~active].any()
        history = [
            dense_and_held(spec, random_state(spec, 0, 0, mask), layer)[1]
            for mask in masks[versions - 1 :]
        ]
        lived = np.logical_and.reduce(history)
        difference = (
            dense_and_held(spec, update, layer)[0] - dense_and_held(spec, fetched, layer)[0]
        )
        np.testing.assert_array_equal(after[~lived], start[~lived])
        if scheme != "pattern":  # where a kernel may active on by another pattern
            np.testing.assert_allclose(
                after[lived], (start + share * difference)[lived], rtol=1e-5, atol=1e-5
            )
