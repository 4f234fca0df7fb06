"""Thousands of damaged messages: a valid state or a WireError, and never much memory."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from flwr.app import Array
from wire_states import assert_same, moved_masks, random_state, spec_for

from mest_fed.errors import WireError
from mest_fed.rng import numpy_generator
from mest_fed.wire import Payload, check_masks, decode, encode, mask_hash
from mest_fed.wire.records import from_record, to_record

CASES = 400  # for each scheme and codec


def damaged_bytes(data, rng):
    """Flip, cut, extend, repeat, or overwrite a number."""
    data = bytearray(data)
    kind, at = rng.integers(6), int(rng.integers(len(data) + 1))
    if kind == 0 and data:
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data += rng.bytes(int(rng.integers(1, 40)))
    elif kind == 3:
        data[at:at] = data[: int(rng.integers(1, 20))]
    elif kind == 4:
        data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
    else:
        del data[at : at + int(rng.integers(1, 5))]
    return bytes(data)


def damaged_arrays(arrays, rng):
    """Change one array's bits, length, type or shape, or its name."""
    arrays = dict(arrays)
    name = str(rng.choice(list(arrays)))
    array, kind = arrays[name], rng.integers(7)
    if kind == 0:
        arrays[name] = np.frombuffer(
            damaged_bytes(array.tobytes(), rng).ljust(array.nbytes, b"\xff")[: array.nbytes],
            array.dtype,
        )
    elif kind == 1:
        arrays[name] = array[: rng.integers(len(array) + 1)]
    elif kind == 2:
        arrays[name] = np.concatenate([array, array])
    elif kind == 3:
        types = [np.float64, np.float32, np.float16, np.int8, np.uint16, np.complex64, object]
        arrays[name] = array.astype(types[rng.integers(len(types))])
    elif kind == 4:
        arrays[name] = array.reshape(1, -1)
    elif kind == 5:
        del arrays[name]
    else:
        arrays[str(rng.choice(["values", "scales", "dense", "more"]))] = arrays.pop(name)
    return arrays


def assert_valid(state, spec):
    check_masks(state.masks, spec)
    for layer, layout in spec.layouts.items():
        group = next(group for group, layers in spec.groups.items() if layer in layers)
        assert state.values[layer].shape == (len(state.masks[group]), layout.width)
    assert {name: array.shape for name, array in state.dense.items()} == spec.dense
    for array in (*state.values.values(), *state.dense.values()):
        assert np.isfinite(array).all()


@pytest.fixture
def memory():
    tracemalloc.start()
    yield tracemalloc
    tracemalloc.stop()


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "pair", "dense"])
@pytest.mark.parametrize("values", ["fp32", "fp16", "bf16", "int8"])
def test_damaged_payloads(scheme, values, memory):
    spec = spec_for(scheme)
    state, reference = random_state(spec), random_state(spec, seed=1)
    base = moved_masks(state.masks, spec, 2)
    known = {mask_hash(masks): masks for masks in (state.masks, base)}
    honest = [
        encode(state, spec, values=values, known=held, reference=relative)[0]
        for held in (None, state.masks, base)
        for relative in (None, reference)
    ]
    rng = numpy_generator(0, "fuzz", scheme, values)
    limit = 40 * max(payload.num_bytes for payload in honest) + 50_000
    rejected = 0
    for case in range(CASES):
        payload = honest[case % len(honest)]
        if case % 2:
            payload = Payload(payload.arrays, damaged_bytes(payload.header, rng))
        else:
            payload = Payload(damaged_arrays(payload.arrays, rng), payload.header)
        memory.reset_peak()
        before = memory.get_traced_memory()[0]
        try:
            assert_valid(decode(payload, spec, known=known, reference=reference), spec)
        except WireError:
            rejected += 1
        assert memory.get_traced_memory()[1] - before < limit
    assert rejected > CASES / 2


def test_damaged_records(memory):
    spec = spec_for("block")
    payload, _ = encode(random_state(spec), spec)
    rng = numpy_generator(0, "fuzz", "records")
    rejected = 0
    for case in range(1200):
        record = to_record(payload)
        if case % 4 == 0:
            record["mest"]["header"] = damaged_bytes(payload.header, rng)
        else:
            name = str(rng.choice(list(payload.arrays)))
            honest = record["arrays"][name]
            head, tail = honest.data[:128], honest.data[128:]
            data = damaged_bytes(head, rng) + tail if case % 2 else damaged_bytes(honest.data, rng)
            record["arrays"][name] = Array(honest.dtype, honest.shape, honest.stype, data)
        memory.reset_peak()
        before = memory.get_traced_memory()[0]
        try:
            assert_valid(decode(from_record(record), spec), spec)
        except WireError:
            rejected += 1
        assert memory.get_traced_memory()[1] - before < 40 * payload.num_bytes + 50_000
    assert rejected > 600


def test_a_decompression_bomb_stays_small(memory):
    spec = spec_for("block")
    payload, _ = encode(random_state(spec), spec)
    bomb = zlib.compress(bytes(50_000_000), 9)
    for length in (100, 2**32 - 1):
        fixed = bytearray(payload.header[:32])
        fixed[7] = 1
        fixed[28:32] = struct.pack("<I", length)
        memory.reset_peak()
        before = memory.get_traced_memory()[0]
        with pytest.raises(WireError):
            decode(Payload(payload.arrays, bytes(fixed) + bomb), spec)
        assert memory.get_traced_memory()[1] - before < len(bomb) + 100_000


def test_an_honest_message_takes_a_small_multiple_of_its_size(memory):
    spec = spec_for("unstructured", ((64, 32, 3, 3), (100, 100)))
    state = random_state(spec, 0.1)
    payload, _ = encode(state, spec)
    memory.reset_peak()
    before = memory.get_traced_memory()[0]
    got = decode(payload, spec)
    peak = memory.get_traced_memory()[1] - before
    assert_same(got, state)
    assert peak < 8 * payload.num_bytes
