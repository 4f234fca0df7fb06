"""What a device keeps frozen does not travel: the receiver has it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_states import SCHEMES, assert_same, moved_masks, random_state, spec_for

from mest_fed.errors import WireError
from mest_fed.sparsity.state import SparseState
from mest_fed.wire import VALUE_CODECS, decode, encode, mask_hash

TOLERANCE = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0.51 / 127, "topk": 2}
SPEC = spec_for("block")
SENT = random_state(SPEC, 0.3, 1)
FROZEN = frozenset({"layer0", "stem.weight"})


@settings(deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    values=st.sampled_from(sorted(VALUE_CODECS)),
    chosen=st.sets(st.integers(0, 5)),
    knows=st.booleans(),
)
def test_the_rest_arrives_and_what_is_frozen_is_the_receivers(*, scheme, values, chosen, knows):
    spec = spec_for(scheme)
    names = [*spec.layouts, *(name for name in spec.dense if name != "bn.running_var")]
    frozen = frozenset(name for number, name in enumerate(names) if number in chosen)
    sent = random_state(spec, 0.3, 1)
    other = random_state(spec, 0.3, 2, sent.masks)
    state = SparseState(
        sent.masks,
        {n: sent.values[n] if n in frozen else v for n, v in other.values.items()},
        {n: sent.dense[n] if n in frozen else v for n, v in other.dense.items()},
    )
    known = sent.masks if knows else None
    payload, owed = encode(state, spec, values=values, known=known, reference=sent, frozen=frozen)
    whole, _ = encode(state, spec, values=values, known=known, reference=sent)
    saved = whole.num_bytes - payload.num_bytes
    assert saved >= 0 if values == "topk" else (saved > 0) == bool(frozen)  # a share is rounded
    held = {mask_hash(sent.masks): sent.masks}
    got = decode(payload, spec, known=held, reference=sent, frozen=frozen)
    assert list(got.values) == list(spec.layouts)
    assert list(got.dense) == list(spec.dense)
    assert_same(got, state, TOLERANCE[values], reference=sent)
    for name in frozen:
        mine, theirs = (it.values | it.dense for it in (got, sent))
        assert np.array_equal(mine[name], theirs[name])
        assert mine[name] is not theirs[name]
    if owed is not None:  # and the next message, in which all is trained, goes on from there
        again, _ = encode(state, spec, values=values, reference=sent, residual=owed)
        assert_same(decode(again, spec, reference=sent), state, 2 * TOLERANCE[values], sent)


def test_what_is_left_out_is_of_whom_that_is_known():
    state = random_state(SPEC, 0.3, 2, SENT.masks)
    payload, _ = encode(state, SPEC, reference=SENT, frozen=FROZEN)
    for known in ({}, {"reference": SENT}, {"frozen": FROZEN}):
        with pytest.raises(WireError, match="nothing is frozen here"):
            decode(payload, SPEC, **known)
    whole, _ = encode(state, SPEC, reference=SENT)  # who sends all may
    assert_same(decode(whole, SPEC, reference=SENT, frozen=FROZEN), state)


def test_a_layer_that_is_left_out_has_the_mask_that_was_sent():
    masks = moved_masks(SENT.masks, SPEC, 3)
    payload, _ = encode(random_state(SPEC, seed=2, masks=masks), SPEC, frozen=FROZEN)
    with pytest.raises(WireError, match="layer0 is left out, and its mask is not"):
        decode(payload, SPEC, reference=SENT, frozen=FROZEN)


def test_more_is_not_left_out_than_is_frozen():
    state = random_state(SPEC, 0.3, 2, SENT.masks)
    payload, _ = encode(state, SPEC, reference=SENT, frozen=FROZEN | {"layer1"})
    with pytest.raises(WireError):
        decode(payload, SPEC, reference=SENT, frozen=FROZEN)
