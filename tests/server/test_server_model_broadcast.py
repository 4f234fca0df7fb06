"""What the server sends: shared arrays, masks only to those who lack them."""

import numpy as np
import pytest
from server_parts import random_state, spec_for

from mest_fed.server.global_model import GlobalModel
from mest_fed.server.model_broadcast import ModelBroadcast
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.sparsity import build_method
from mest_fed.wire import UnknownMaskError, decode, mask_hash
from mest_fed.wire.records import content_bytes, from_record

SPEC = spec_for("unstructured")
ORDER = {"round": 1}
LARGE, SMALL = 0.2, 0.05


@pytest.fixture
def model():
    return GlobalModel.from_state(SPEC, random_state(SPEC, LARGE))


@pytest.fixture
def broadcast():
    return opened("fp32")


def opened(values):
    broadcast = ModelBroadcast(SPEC, "uniform", values)
    broadcast.open_round()
    return broadcast


def mutate(model, number):
    model.mutate(build_method("set", LARGE), 0.0, ServerOptimizer(), (1, "growth", number))


def test_the_nodes_of_a_tier_share_one_array_record(model, broadcast):
    fresh = broadcast.content(model, SMALL, b"", ORDER)
    informed = broadcast.content(model, SMALL, broadcast.tier_hash(SMALL), ORDER)
    again = broadcast.content(model, SMALL, b"", ORDER)
    assert fresh["arrays"] is informed["arrays"] is again["arrays"]
    assert fresh["mest"] == again["mest"] != informed["mest"]
    assert broadcast.content(model, LARGE, b"", ORDER)["arrays"] is not fresh["arrays"]


def test_the_mask_goes_only_to_those_who_lack_it(model, broadcast):
    fresh = broadcast.content(model, LARGE, b"", ORDER)
    state = decode(from_record(fresh), SPEC)
    np.testing.assert_array_equal(state.masks["a"], model.masks["a"])
    assert mask_hash(state.masks) == broadcast.tier_hash(LARGE)
    informed = broadcast.content(model, LARGE, broadcast.tier_hash(LARGE), ORDER)
    assert content_bytes(informed) < content_bytes(fresh)
    with pytest.raises(UnknownMaskError):
        decode(from_record(informed), SPEC)
    known = {broadcast.tier_hash(LARGE): state.masks}
    again = decode(from_record(informed), SPEC, known=known)
    np.testing.assert_array_equal(again.values["b"], state.values["b"])


def test_a_changed_mask_builds_on_the_one_that_is_known(model, broadcast):
    old = decode(from_record(broadcast.content(model, LARGE, b"", ORDER)), SPEC).masks
    mutate(model, 1)
    broadcast.forget_tiers()
    broadcast.open_round()
    content = broadcast.content(model, LARGE, mask_hash(old), ORDER)
    with pytest.raises(UnknownMaskError):
        decode(from_record(content), SPEC)
    got = decode(from_record(content), SPEC, known={mask_hash(old): old})
    np.testing.assert_array_equal(got.masks["a"], model.masks["a"])


def test_a_mask_that_is_long_forgotten_is_sent_in_full(model, broadcast):
    broadcast.content(model, LARGE, b"", ORDER)
    old = broadcast.tier_hash(LARGE)
    for number in range(20):
        mutate(model, number)
        broadcast.forget_tiers()
        broadcast.open_round()
        broadcast.content(model, LARGE, b"", ORDER)
    assert old not in broadcast.mask_sets
    assert len(broadcast.mask_sets) <= 16
    got = decode(from_record(broadcast.content(model, LARGE, old, ORDER)), SPEC)
    np.testing.assert_array_equal(got.masks["a"], model.masks["a"])


def test_values_are_encoded_anew_each_round_and_tiers_stay(model, broadcast):
    before = broadcast.content(model, SMALL, b"", ORDER)
    masks = broadcast.tiers[SMALL]
    model.weights = {layer: -2 * weights for layer, weights in model.weights.items()}
    assert broadcast.content(model, SMALL, b"", ORDER)["arrays"] is before["arrays"]
    broadcast.open_round()
    after = broadcast.content(model, SMALL, b"", ORDER)
    assert broadcast.tiers[SMALL] is masks
    old, new = (decode(from_record(content), SPEC) for content in (before, after))
    np.testing.assert_array_equal(new.values["a"], -2 * old.values["a"])


@pytest.mark.parametrize("values", ["fp32", "fp16", "bf16"])
def test_the_state_is_what_clients_decode(model, values):
    # Differences that clients upload start from what they decoded, bit for bit.
    broadcast = opened(values)
    content = broadcast.content(model, LARGE, b"", ORDER)
    state, got = broadcast.state(model, LARGE), decode(from_record(content), SPEC)
    for layer in SPEC.layouts:
        np.testing.assert_array_equal(state.values[layer], got.values[layer])
    np.testing.assert_array_equal(state.dense["bias"], got.dense["bias"])
    assert mask_hash(state.masks) == mask_hash(got.masks)


def test_the_order_goes_with_it(model, broadcast):
    content = broadcast.content(model, LARGE, b"", {"round": 5, "mutate": True})
    assert (content["mest"]["round"], content["mest"]["mutate"]) == (5, True)
    other = broadcast.content(model, LARGE, b"", {"round": 6, "mutate": False})
    assert (content["mest"]["round"], other["mest"]["round"]) == (5, 6)
