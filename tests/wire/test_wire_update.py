"""A state through a payload and back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire_states import (
    DENSE,
    SCHEMES,
    assert_same,
    moved_masks,
    padding,
    random_masks,
    random_state,
    spec_for,
    with_what_is_owed,
)

from mest_fed.nn import build_model, model_spec, read_state, sparsify, write_state
from mest_fed.rng import torch_generator
from mest_fed.sparsity import layout_for
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.wire import VALUE_CODECS, decode, encode, mask_hash
from mest_fed.wire.payload import named_masks
from mest_fed.wire.values import value_codec

TOLERANCE = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0.51 / 127, "topk": 2**-20}
SPEC = spec_for("block")
STATE = random_state(SPEC)


@settings(deadline=None)
@example(  # its largest difference is five times its largest value
    scheme="pattern",
    outputs=3,
    inputs=2,
    density=0.25,
    values="int8",
    held="nothing",
    relative=True,
    seed=31485,
)
@given(
    scheme=st.sampled_from(SCHEMES),
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 6),
    density=st.floats(0.01, 1),
    values=st.sampled_from(sorted(VALUE_CODECS)),
    held=st.sampled_from(["nothing", "the mask", "another mask", "an unrelated mask"]),
    relative=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_round_trip(*, scheme, outputs, inputs, density, values, held, relative, seed):
    spec = spec_for(scheme, ((outputs, inputs, 3, 3), (inputs, outputs)))
    state = random_state(spec, density, seed)
    known = {
        "nothing": None,
        "the mask": state.masks,
        "another mask": moved_masks(state.masks, spec, seed),
        "an unrelated mask": random_masks(spec, 0.5, seed + 1),
    }[held]
    reference = random_state(spec, density, seed + 2) if relative else None
    payload, residual = encode(state, spec, values=values, known=known, reference=reference)
    masks = {mask_hash(known): known} if known else {}
    got = decode(payload, spec, known=masks, reference=reference, max_density=1.0)
    assert (residual is not None) == value_codec(values).differences
    if values == "topk":
        got = with_what_is_owed(got, residual)
    assert_same(got, state, TOLERANCE[values], reference)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_travels(scheme):
    spec = spec_for(scheme)
    state = random_state(spec)
    payload, residual = encode(state, spec)
    active = round(state.density(spec) * spec.sparse_weights)  # padding is not among them
    sizes = {name: array.size for name, array in payload.arrays.items()}
    assert sizes == ({"values": active} if spec.groups else {}) | {"dense": 54 + 3 + 1}
    assert all(array.dtype == np.float32 and array.ndim == 1 for array in payload.arrays.values())
    assert payload.num_bytes == 4 * sum(sizes.values()) + len(payload.header)
    assert residual is None


def test_values_travel_in_the_order_of_the_specification():
    layouts = {"a": layout_for("block:2", (3, 2)), "b": layout_for("unstructured", (2, 2))}
    spec = ModelSpec({"a": ("a",), "b": ("b",)}, layouts, {"z": (2,), "y": ()})
    values = {
        "b": np.array([[5], [6]], np.float32),
        "a": np.array([[1, 2], [3, 0]], np.float32),  # the second block lacks its second row
    }
    masks = {"a": np.array([1, 2], np.int32), "b": np.array([0, 3], np.int32)}
    dense = {"y": np.float32(9).reshape(()), "z": np.array([7, 8], np.float32)}
    payload, _ = encode(SparseState(masks, values, dense), spec)
    assert payload.arrays["values"].tolist() == [1, 2, 3, 5, 6]
    assert payload.arrays["dense"].tolist() == [7, 8, 9]


def test_a_known_mask_travels_as_a_header_of_fixed_length():
    payload, _ = encode(STATE, SPEC, known=STATE.masks)
    assert payload.header == b"MFSU" + bytes([1, 0, 0, 0]) + mask_hash(STATE.masks) + bytes(8)


def test_a_long_mask_body_is_compressed():
    spec = spec_for("unstructured", ((64, 64),))
    full = {"layer0": np.arange(4096, dtype=np.int32)}
    payload, _ = encode(random_state(spec, masks=full), spec)
    assert payload.header[7] == 1
    assert len(payload.header) < 70
    assert_same(decode(payload, spec), random_state(spec, masks=full))


def test_a_shared_mask_travels_once():
    pair, single = spec_for("pair"), spec_for("channel", ((6, 4, 3, 3),))
    payload, _ = encode(random_state(pair), pair)
    alone, _ = encode(random_state(single), single)
    assert len(payload.header) == len(alone.header)


def test_decoded_arrays_are_the_receivers_own():
    known = {mask_hash(STATE.masks): STATE.masks}
    payload, _ = encode(STATE, SPEC, known=STATE.masks)
    got = decode(payload, SPEC, known=known)
    for array in (*got.masks.values(), *got.values.values(), *got.dense.values()):
        array[...] = 1
    assert_same(decode(payload, SPEC, known=known), STATE)


def test_arrays_that_cannot_be_written_will_do():
    state = random_state(SPEC)
    for array in (*state.masks.values(), *state.values.values(), *state.dense.values()):
        array.flags.writeable = False
    payload, _ = encode(state, SPEC, values="int8", known=state.masks, reference=state)
    for array in payload.arrays.values():
        array.flags.writeable = False
    known = {mask_hash(state.masks): state.masks}
    got = decode(payload, SPEC, known=known, reference=state)
    assert all(array.flags.writeable for array in got.masks.values())
    assert_same(got, state, TOLERANCE["int8"])


def test_padding_does_not_travel():
    state = random_state(SPEC)
    layout, slots = SPEC.layouts["layer1"], state.masks["layer1"]
    outside = padding(layout, slots)
    assert outside.any()
    state.values["layer1"][outside] = 5
    got = decode(encode(state, SPEC)[0], SPEC)
    assert (got.values["layer1"][outside] == 0).all()


def test_a_reference_counts_where_it_is_active():
    # The new slot 3 starts from 0, whatever other slots the reference has there.
    spec = ModelSpec({"a": ("a",)}, {"a": layout_for("unstructured", (2, 4))}, {})

    def state(slots, values):
        column = np.array(values, np.float32).reshape(-1, 1)
        return SparseState({"a": np.array(slots, np.int32)}, {"a": column}, {})

    reference = state([1, 2, 7], [10, 20, 30])
    payload, _ = encode(state([1, 3], [10, 127]), spec, values="int8", reference=reference)
    assert payload.arrays["values"].tolist() == [0, 127]
    assert payload.arrays["scales"].tolist() == [1]
    got = decode(payload, spec, reference=reference)
    assert got.values["a"].tolist() == [[10], [127]]


def test_a_dense_model_sends_its_tensors_alone():
    spec = spec_for("dense")
    state = random_state(spec)
    for values in ("fp32", "fp16", "bf16"):
        payload, residual = encode(state, spec, values=values, known={}, reference=state)
        assert list(payload.arrays) == ["dense"]
        assert residual is None
        assert_same(decode(payload, spec, max_density=0.1), state, TOLERANCE[values])
    assert sum(np.prod(shape, dtype=int) for shape in DENSE.values()) == 58


def test_a_model_without_dense_tensors_sends_its_values_alone():
    spec = dataclasses.replace(SPEC, dense={})
    payload, _ = encode(random_state(spec), spec)
    assert list(payload.arrays) == ["values"]
    assert_same(decode(payload, spec), random_state(spec))


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel"])
def test_a_model_travels(scheme):
    models = [
        sparsify(
            build_model("resnet8", (3, 8, 8), 10, generator=torch_generator(seed)), scheme, 0.2
        )
        for seed in (0, 1)
    ]
    spec = model_spec(models[0])
    known = read_state(models[1]).masks
    payload, _ = encode(read_state(models[0]), spec, known=known)
    write_state(models[1], decode(payload, spec, known={mask_hash(known): known}))
    assert_same(read_state(models[1]), read_state(models[0]))


@pytest.mark.parametrize("other", [False, True])
def test_a_hash_that_the_caller_has_changes_nothing(other):
    spec = spec_for("block")
    state = random_state(spec)
    known = moved_masks(state.masks, spec, 1) if other else state.masks
    plain, _ = encode(state, spec, known=known)
    named, _ = encode(state, spec, known=known, known_hash=mask_hash(known))
    assert named.header == plain.header
    assert named_masks(plain.header) == mask_hash(state.masks)
