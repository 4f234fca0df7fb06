"""Error feedback: what was sent over all messages is what was meant, less the last residual."""

import numpy as np
import pytest
from wire_states import moved_masks, random_state, random_values, spec_for

from mest_fed.sparsity.state import SparseState
from mest_fed.wire import decode, encode

SPEC = spec_for("block")


def sent(state, reference, residual):
    payload, residual = encode(state, SPEC, values="int8", reference=reference, residual=residual)
    return decode(payload, SPEC, reference=reference), residual


def test_the_sum_of_what_was_sent_is_the_sum_of_what_was_meant_less_the_residual():
    start = random_state(SPEC, seed=1)
    residual = None
    meant = {layer: np.zeros_like(v, np.float64) for layer, v in start.values.items()}
    arrived = {layer: np.zeros_like(v, np.float64) for layer, v in start.values.items()}
    for step in range(20):
        state = SparseState(start.masks, random_values(SPEC, start.masks, step), start.dense)
        got, residual = sent(state, start, residual)
        for layer in meant:
            meant[layer] += state.values[layer].astype(np.float64) - start.values[layer]
            arrived[layer] += got.values[layer].astype(np.float64) - start.values[layer]
    for layer in meant:
        owed = meant[layer] - arrived[layer]
        np.testing.assert_allclose(owed, residual.values[layer], atol=2e-5)
        assert np.abs(residual.values[layer]).max() > 0


@pytest.mark.parametrize("relative", [True, False])
def test_the_mean_of_a_difference_sent_again_and_again_converges(relative):
    state = random_state(SPEC, seed=1)
    reference = random_state(SPEC, seed=2, masks=state.masks) if relative else None
    errors, total, residual = {}, 0.0, None
    for step in range(1, 65):
        got, residual = sent(state, reference, residual)
        total = total + got.values["layer0"].astype(np.float64)
        errors[step] = np.abs(total / step - state.values["layer0"]).max()
    assert errors[64] < errors[1] / 16
    alone, _ = sent(state, reference, None)
    assert np.abs(alone.values["layer0"] - state.values["layer0"]).max() == errors[1] > 1e-3


def test_a_residual_follows_its_slots_to_a_new_mask():
    state = random_state(SPEC, seed=1)
    _, residual = sent(state, None, None)
    masks = moved_masks(state.masks, SPEC, 3)
    zero = SparseState(masks, random_values(SPEC, masks, 0, spread=0), state.dense)
    got, after = sent(zero, None, residual)
    for layer, slots in masks.items():
        survived = np.isin(slots, state.masks[layer])
        assert survived.any()
        assert not survived.all()
        assert (got.values[layer][~survived] == 0).all()
        row = np.searchsorted(state.masks[layer], slots[survived])
        owed = residual.values[layer][row]
        held = got.values[layer][survived] + after.values[layer][survived]
        np.testing.assert_allclose(held, owed, atol=1e-7)
        assert np.abs(owed).max() > 0


def test_a_residual_keeps_masks_of_its_own():
    state = random_state(SPEC, seed=1)
    _, residual = sent(state, None, None)
    before = {group: slots.copy() for group, slots in state.masks.items()}
    for slots in state.masks.values():
        slots[0] = -1
    for group, slots in before.items():
        np.testing.assert_array_equal(residual.masks[group], slots)


def test_formats_of_absolute_values_return_no_residual():
    state = random_state(SPEC)
    _, residual = sent(state, None, None)
    plain, _ = encode(state, SPEC)
    same, none = encode(state, SPEC, reference=random_state(SPEC, seed=3), residual=residual)
    assert none is None
    assert same.header == plain.header
    np.testing.assert_array_equal(same.arrays["values"], plain.arrays["values"])
