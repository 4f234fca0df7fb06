"""What encoder and decoder refuse, and why."""

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from wire_states import moved_masks, random_state, spec_for

from mest_fed.errors import InputError, WireError
from mest_fed.sparsity.state import SparseState
from mest_fed.wire import VALUE_CODECS, Payload, UnknownMaskError, decode, encode, mask_hash

SPEC = spec_for("block")
STATE = random_state(SPEC)


def test_an_unknown_mask_is_named():
    payload, _ = encode(STATE, SPEC, known=STATE.masks)
    with pytest.raises(UnknownMaskError, match=mask_hash(STATE.masks).hex()) as caught:
        decode(payload, SPEC)
    assert caught.value.mask_hash == mask_hash(STATE.masks)


def test_an_unknown_base_is_named():
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
    with pytest.raises(InputError, match=r"wire\.upload or wire\.download = 'fp8'"):
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
        (7, b"\10", "flags 8"),
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
