"""A state through a payload and back, and what encoder and decoder refuse."""

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
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
)

from mest_fed.errors import InputError, WireError
from mest_fed.nn import (
    ModelSpec,
    SparseState,
    build_model,
    model_spec,
    read_state,
    sparsify,
    write_state,
)
from mest_fed.rng import torch_generator
from mest_fed.sparsity import layout_for
from mest_fed.wire import VALUE_CODECS, Payload, UnknownMaskError, decode, encode, mask_hash

TOLERANCE = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0.51 / 127}
SPEC = spec_for("block")
STATE = random_state(SPEC)


@settings(deadline=None)
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
    tolerance = TOLERANCE[values] * (5 if relative else 1)  # a difference may be larger
    assert_same(got, state, tolerance)
    assert (residual is not None) == (values == "int8" and bool(spec.groups))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_travels(scheme):
    spec = spec_for(scheme)
    state = random_state(spec)
    payload, residual = encode(state, spec)
    live = round(state.density(spec) * spec.sparse_weights)  # padding is not among them
    sizes = {name: array.size for name, array in payload.arrays.items()}
    assert sizes == ({"values": live} if spec.groups else {}) | {"dense": 54 + 3 + 1}
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


def test_an_unknown_mask_is_named():
    payload, _ = encode(STATE, SPEC, known=STATE.masks)
    with pytest.raises(UnknownMaskError, match=mask_hash(STATE.masks).hex()) as caught:
        decode(payload, SPEC)
    assert caught.value.mask_hash == mask_hash(STATE.masks)


def test_an_unknown_base_is_named():
    base = moved_masks(STATE.masks, SPEC, 1)
    spec = spec_for("unstructured", ((64, 64),))
    state = random_state(spec, 0.2)
    base = moved_masks(state.masks, spec, 1)
    payload, _ = encode(state, spec, known=base)
    assert payload.header[6] == 2
    with pytest.raises(UnknownMaskError) as caught:
        decode(payload, spec, known={mask_hash(state.masks): state.masks})
    assert caught.value.mask_hash == mask_hash(base)


def test_a_known_mask_of_another_model_is_rejected():
    payload, _ = encode(STATE, SPEC, known=STATE.masks)
    with pytest.raises(WireError, match="mask groups"):
        decode(payload, spec_for("pair"), known={mask_hash(STATE.masks): STATE.masks})


def test_density_above_the_allowed():
    density = STATE.density(SPEC)
    payload, _ = encode(STATE, SPEC)
    decode(payload, SPEC, max_density=density)
    with pytest.raises(WireError, match=f"density {density:.4f} is above the allowed 0.1000"):
        decode(payload, SPEC, max_density=0.1)


def test_differences_need_their_reference():
    reference = random_state(SPEC, seed=1)
    payload, _ = encode(STATE, SPEC, values="int8", reference=reference)
    with pytest.raises(WireError, match="no reference"):
        decode(payload, SPEC)
    with pytest.raises(WireError, match="another reference"):
        decode(payload, SPEC, reference=random_state(SPEC, seed=2))


def test_a_reference_counts_where_it_lives():
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


@pytest.mark.parametrize("values", VALUE_CODECS)
@pytest.mark.parametrize("part", ["values", "dense"])
def test_a_diverged_state_is_not_sent(values, part):
    state = random_state(SPEC)
    getattr(state, part)["layer0" if part == "values" else "bn.running_var"].flat[0] = np.nan
    with pytest.raises(WireError, match="finite"):
        encode(state, SPEC, values=values)


def test_differences_that_overflow_are_not_sent():
    state, reference = random_state(SPEC), random_state(SPEC)
    state.values["layer0"][0] = 3e38
    reference.values["layer0"][0] = -3e38
    with pytest.raises(WireError, match="finite"):
        encode(state, SPEC, values="int8", reference=reference)


def test_differences_that_overflow_are_not_taken():
    reference = random_state(SPEC, masks=STATE.masks)
    reference.values["layer0"][0] = 3e38
    payload, _ = encode(reference, SPEC, values="int8", reference=reference)
    payload.arrays["values"][0] = 127
    payload.arrays["scales"][0] = 2e36
    with pytest.raises(WireError, match="after the difference is added"):
        decode(payload, SPEC, reference=reference)


def test_what_the_encoder_refuses():
    with pytest.raises(InputError, match="values = 'fp8'"):
        encode(STATE, SPEC, values="fp8")
    backwards = {group: slots[::-1] for group, slots in STATE.masks.items()}
    with pytest.raises(WireError, match="do not increase"):
        encode(SparseState(backwards, STATE.values, STATE.dense), SPEC)
    short = STATE.values | {"layer0": STATE.values["layer0"][1:]}
    with pytest.raises(ValueError, match="layer0 has"):
        encode(SparseState(STATE.masks, short, STATE.dense), SPEC)
    with pytest.raises(ValueError, match="scale has shape"):
        encode(SparseState(STATE.masks, STATE.values, STATE.dense | {"scale": np.ones(2)}), SPEC)


@pytest.mark.parametrize(
    ("offset", "byte", "reason"),
    [
        (0, b"X", "magic"),
        (4, b"\2", "version 2"),
        (5, b"\x09", "value codec 9"),
        (5, b"\1", "values: float32"),
        (6, b"\3", "mask source 3"),
        (6, b"\0", "not allowed here"),
        (7, b"\4", "flags 4"),
        (7, b"\1", "decompress"),
        (7, b"\2", "differences are not allowed"),
        (8, b"\0\0", "hash"),
        (28, b"\xff\xff\xff\xff", "not allowed here"),
        (28, b"\1", "another length"),
        (33, b"\0", "mask of layer0"),
    ],
)
def test_headers_that_are_wrong(offset, byte, reason):
    payload, _ = encode(STATE, SPEC)
    assert payload.header[7] == 0
    header = payload.header[:offset] + byte + payload.header[offset + len(byte) :]
    with pytest.raises(WireError, match=reason):
        decode(dataclasses.replace(payload, header=header), SPEC)


def test_every_cut_and_every_extension_of_a_header_is_rejected():
    spec = spec_for("unstructured", ((64, 64),))
    state = random_state(spec, 0.2)
    base = moved_masks(state.masks, spec, 1)
    for known in (None, state.masks, base):
        payload, _ = encode(state, spec, known=known)
        held = {mask_hash(masks): masks for masks in (state.masks, base)}
        headers = [payload.header[:size] for size in range(len(payload.header))]
        for header in [*headers, payload.header + b"\0", payload.header * 2]:
            with pytest.raises(WireError):
                decode(Payload(payload.arrays, header), spec, known=held)


def test_a_compressed_body_that_goes_on_is_rejected():
    spec = spec_for("unstructured", ((64, 64),))
    state = random_state(spec, masks={"layer0": np.arange(4096, dtype=np.int32)})
    payload, _ = encode(state, spec)
    body = zlib.decompress(payload.header[32:])
    assert decode(Payload(payload.arrays, payload.header[:32] + zlib.compress(body)), spec)
    stream = zlib.compress(body)
    for tail in (zlib.compress(body + b"\0"), stream + b"\0", stream[:-1]):
        with pytest.raises(WireError):
            decode(Payload(payload.arrays, payload.header[:32] + tail), spec)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"values": None}, r"arrays \['dense'\] instead of \['dense', 'values'\]"),
        ({"extra": np.zeros(1, np.float32)}, "arrays"),
        ({"values": np.zeros(3, np.float32)}, r"\(3,\)"),
        ({"values": STATE.values["layer0"].astype(np.float64)}, "float64"),
        ({"values": np.array([object()])}, "object"),
        ({"dense": np.zeros((29, 2), np.float32)}, r"\(29, 2\)"),
        ({"dense": np.full(58, np.inf, np.float32)}, "finite"),
        ({"dense": np.zeros(58, ">f4")}, "dense"),
    ],
)
def test_arrays_that_are_wrong(change, reason):
    payload, _ = encode(STATE, SPEC)
    arrays = {k: v for k, v in (payload.arrays | change).items() if v is not None}
    with pytest.raises(WireError, match=reason):
        decode(Payload(arrays, payload.header), SPEC)


def test_a_dense_model_sends_its_tensors_alone():
    spec = spec_for("dense")
    state = random_state(spec)
    for values in VALUE_CODECS:
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


def test_a_mask_with_another_hash_is_rejected():
    other = random_state(SPEC, seed=5)
    payload, _ = encode(STATE, SPEC)
    foreign = payload.header[:8] + mask_hash(other.masks) + payload.header[24:]
    with pytest.raises(WireError, match="hash"):
        decode(Payload(payload.arrays, foreign), SPEC)


def test_a_checksum_without_differences_is_rejected():
    payload, _ = encode(STATE, SPEC)
    header = payload.header[:24] + struct.pack("<I", 7) + payload.header[28:]
    with pytest.raises(WireError, match="flags 0"):
        decode(Payload(payload.arrays, header), SPEC)


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
