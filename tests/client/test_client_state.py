"""What a client keeps in Context.state."""

import numpy as np
import pytest
from client_parts import context_of, small_config

from mest_fed.client.local_round import ClientState
from mest_fed.server.flower_internals import context_state_from_bytes, context_state_to_bytes
from mest_fed.training import ForgettingState
from mest_fed.wire import Residual

MASKS = {"a": np.array([1, 4, 9], np.int32), "b": np.array([0], np.int32)}


@pytest.fixture
def context():
    return context_of(small_config())


def reopened(context):
    """Return the state as it is after a checkpoint, or on Flower's node in the next round."""
    stored = context_state_to_bytes(context.state)
    return ClientState(context_of(small_config(), state=context_state_from_bytes(stored)))


def test_a_fresh_client_keeps_nothing(context):
    state = ClientState(context)
    assert state.masks is None
    assert state.residual is None
    assert not state.forgetting(5).codes.any()
    assert len(context.state) == 0


def test_masks(context):
    ClientState(context).masks = MASKS
    got = reopened(context).masks
    assert list(got) == ["a", "b"]
    for group, slots in MASKS.items():
        assert got[group].dtype == np.int32
        np.testing.assert_array_equal(got[group], slots)


def test_the_residual(context):
    values = {"a": np.full((3, 2), 0.25, np.float32), "b": np.zeros((1, 2), np.float32)}
    ClientState(context).residual = Residual(MASKS, values)
    got = reopened(context).residual
    for group, slots in MASKS.items():
        np.testing.assert_array_equal(got.masks[group], slots)
        np.testing.assert_array_equal(got.values[group], values[group])
    ClientState(context).residual = None  # a codec without error leaves what is owed
    assert reopened(context).residual is not None


def test_the_masks_and_the_residual_do_not_mix(context):
    state = ClientState(context)
    state.masks = MASKS
    fewer = {"a": MASKS["a"][:1]}
    state.residual = Residual(fewer, {"a": np.ones((1, 2), np.float32)})
    assert list(state.masks) == ["a", "b"]
    assert len(state.masks["a"]) == 3
    assert list(state.residual.masks) == ["a"]


def test_forgetting(context):
    codes = np.array([3, 0x80, 0x7F], np.uint8)
    ClientState(context).keep_forgetting(ForgettingState(codes))
    got = reopened(context).forgetting(3)
    np.testing.assert_array_equal(got.codes, codes)
    got.codes[0] = 9  # it is written while training, so it must be a copy
    assert reopened(context).forgetting(3).codes[0] == 3


def test_forgetting_of_another_number_of_examples_starts_anew(context):
    ClientState(context).keep_forgetting(ForgettingState(np.array([3, 3], np.uint8)))
    assert not ClientState(context).forgetting(3).codes.any()
