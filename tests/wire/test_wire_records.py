"""Payloads through Flower: its serialisation, its mods, and records that lie."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod, message_size_mod
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from wire_states import assert_same, random_state, random_values, spec_for

from mest_fed.errors import WireError
from mest_fed.rng import numpy_generator
from mest_fed.sparsity.state import SparseState
from mest_fed.wire import VALUE_CODECS, decode, encode
from mest_fed.wire.records import from_record, to_record

SPEC = spec_for("block")
STATE = random_state(SPEC)


@pytest.mark.parametrize("values", VALUE_CODECS)
@pytest.mark.parametrize("scheme", ["block", "dense"])
def test_flower_carries_a_payload_byte_for_byte(values, scheme):
    spec = spec_for(scheme)
    payload, _ = encode(random_state(spec), spec, values=values)
    bits = recorddict_to_proto(to_record(payload)).SerializeToString()
    got = from_record(recorddict_from_proto(ProtoRecordDict.FromString(bits)))
    assert got.header == payload.header
    assert list(got.arrays) == list(payload.arrays)
    for name, array in payload.arrays.items():
        assert got.arrays[name].dtype == array.dtype
        assert got.arrays[name].tobytes() == array.tobytes()
    assert_same(decode(got, spec), decode(payload, spec))


def test_other_records_and_keys_may_stand_beside():
    payload, _ = encode(STATE, SPEC)
    record = to_record(payload)
    record["mest"]["round"] = 3
    record["metrics"] = MetricRecord({"num-examples": 5})
    assert_same(decode(from_record(record), SPEC), STATE)


def message(content):
    return SimpleNamespace(content=content, has_error=lambda: False)


@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_flowers_clipping_mod_clips_the_update(values):
    request = to_record(encode(STATE, SPEC, values=values)[0])
    request["mest"]["clipping_norm"] = 0.5
    trained = SparseState(STATE.masks, random_values(SPEC, STATE.masks, 9), STATE.dense)
    reply = message(to_record(encode(trained, SPEC, values=values, known=STATE.masks)[0]))
    fixedclipping_mod(message(request), None, lambda *_: reply)
    clipped = from_record(reply.content)
    change = clipped.arrays["values"].astype(np.float64) - from_record(request).arrays["values"]
    assert np.linalg.norm(change) == pytest.approx(0.5, rel=1e-2)
    payload = encode(STATE, SPEC, values=values)[0]
    held = decode(payload, SPEC).masks
    got = decode(clipped, SPEC, known={clipped.header[8:24]: held})
    assert list(got.masks) == list(held)


def test_noise_on_the_arrays_is_accepted():
    payload, _ = encode(STATE, SPEC)
    rng = numpy_generator(0, "noise")
    for array in payload.arrays.values():
        array += rng.normal(0, 0.1, array.shape).astype(array.dtype)
    decode(payload, SPEC)


@pytest.mark.parametrize("mod", [message_size_mod, arrays_size_mod])
def test_flowers_size_mods_can_count(mod):
    record = to_record(encode(STATE, SPEC)[0])
    mod(message(record), None, lambda msg, _: msg)


def good():
    return to_record(encode(STATE, SPEC)[0])


@pytest.mark.parametrize("key", ["arrays", "mest"])
def test_missing_and_mistyped_records(key):
    record = good()
    del record[key]
    with pytest.raises(WireError, match="are needed"):
        from_record(record)
    record[key] = MetricRecord({"values": 1})
    with pytest.raises(WireError, match="are needed"):
        from_record(record)


@pytest.mark.parametrize("header", [None, "text", 3, [b"MFSU"]])
def test_a_header_that_is_no_bytes(header):
    record = good()
    record["mest"] = ConfigRecord({} if header is None else {"header": header})
    with pytest.raises(WireError, match=r"mest\.header must be bytes"):
        from_record(record)


def test_an_array_of_an_unknown_name():
    record = good()
    record["arrays"]["weights"] = Array(np.zeros(3, np.float32))
    with pytest.raises(WireError, match="array 'weights' is unknown; known: values, scales, pos"):
        from_record(record)


def lying(**fields):
    array = Array(np.arange(3, dtype=np.float32))
    facts = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}
    return Array(**(facts | fields))


DATA = Array(np.arange(3, dtype=np.float32)).data


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (Array(np.zeros(3)), "known type"),
        (Array(np.zeros((3, 1), np.float32)), "one-dimensional"),
        (Array(np.zeros((), np.float32)), "one-dimensional"),
        (Array(np.zeros(3, ">f4")), "known type"),
        (Array(np.asfortranarray(np.zeros((2, 2), np.float32))), "one-dimensional"),
        (lying(stype="torch.tensor"), "npy"),
        (lying(data=b""), "npy"),
        (lying(data=DATA[:50]), "npy"),
        (lying(data=DATA[:-1]), "3 items"),
        (lying(data=DATA + b"\0"), "3 items"),
        (lying(data=DATA.replace(b"(3,)", b"(9,)")), "9 items"),
        (lying(data=DATA.replace(b"(3,), }       ", b"(999999999,), }")), "npy"),
        (lying(data=DATA.replace(b"'<f4'", b"'|O' ")), "npy"),
        (lying(data=DATA.replace(b"\x01\x00v\x00", b"\x01\x00u\x00")), "npy"),
        (lying(data=DATA.replace(b"\x01\x00v", b"\x02\x00v")), "npy"),
        (lying(dtype="float64"), "another type"),
        (lying(shape=(4,)), "another type or shape"),
        (lying(shape=(3, 1)), "another type or shape"),
    ],
)
def test_arrays_that_lie(array, reason):
    record = RecordDict({"arrays": ArrayRecord({"values": array}), "mest": good()["mest"]})
    with pytest.raises(WireError, match=reason):
        from_record(record)
