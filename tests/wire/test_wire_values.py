"""Value codecs: hand-worked codes, one contract for all, and values that are not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mest_fed.errors import InputError, WireError
from mest_fed.wire import VALUE_CODECS
from mest_fed.wire.float_formats import BFloat16
from mest_fed.wire.values import open_codecs, value_codec, value_codec_of

LENGTHS = [5, 1, 6]
NORMAL = arrays(
    np.float32,
    sum(LENGTHS),
    elements=st.floats(-60000, 60000, width=32, allow_subnormal=False),
)


def floats(*numbers):
    return np.array(numbers, np.float32)


def test_codes_by_hand():
    one = floats(1.0)
    assert value_codec("fp32").pack(one, [1])["values"].tobytes() == b"\x00\x00\x80\x3f"
    assert value_codec("fp16").pack(one, [1])["values"].tobytes() == b"\x00\x3c"
    assert value_codec("bf16").pack(one, [1])["values"].tobytes() == b"\x80\x3f"


def test_bfloat16_rounds_to_nearest_even():
    halfway = floats(1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-12, -1 - 3 * 2**-8)
    assert BFloat16().narrow(halfway).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF82]


def test_int8_by_hand():
    packed = value_codec("int8").pack(floats(254, -127, 1, 3, 0, 0, -1), [4, 2, 1])
    assert packed["scales"].tolist() == [2, 0, np.float32(1 / 127)]
    assert packed["values"].tolist() == [127, -64, 0, 2, 0, 0, -127]  # ties go to even
    back = value_codec("int8").unpack(packed, [4, 2, 1])
    np.testing.assert_allclose(back, [254, -128, 0, 4, 0, 0, -1], rtol=1e-6)


def test_value_codecs_have_numbers_of_their_own():
    for codec in map(value_codec, VALUE_CODECS):
        assert value_codec_of(codec.number) is codec


def test_unknown_codecs():
    with pytest.raises(InputError, match=r"wire\.download = 'fp8' is not allowed; allowed: fp32"):
        value_codec("fp8")
    with pytest.raises(WireError, match="value codec 77"):
        value_codec_of(77)


def test_a_number_stands_for_the_codec_of_the_latest_run(tmp_path):
    text = "from mest_fed.wire.values import Int8\n\n\nclass Own(Int8):\n    number = {}\n"
    names = []
    for file, number in (("first", 211), ("second", 211), ("taken", 3)):
        (tmp_path / f"{file}.py").write_text(text.format(number), encoding="utf-8")
        names.append(f"{tmp_path}/{file}.py:Own")
    first, second, taken = names
    for name in (first, second, first):
        open_codecs("fp16", name)
        assert value_codec_of(211) is value_codec(name)
    with pytest.raises(InputError, match=r"second\.py:Own' has the number 211 "):
        open_codecs(second, first)
    with pytest.raises(InputError, match=r"taken\.py:Own' has the number 3 on the wire"):
        open_codecs(taken)


WIDE = """
import numpy as np

from mest_fed.wire.values import Int8


class Wide(Int8):
    number = 201

    def fields(self, lengths):
        return {"values": (np.dtype("<i2"), sum(lengths))}


class Odd(Int8):
    number = 202

    def fields(self, lengths):
        return {"means": (np.dtype("<f4"), len(lengths))}
"""


@pytest.mark.parametrize(("name", "what"), [("Wide", "'values' of type <i2"), ("Odd", "'means'")])
def test_a_codec_whose_arrays_cannot_travel(name, what, tmp_path):
    (tmp_path / "wide.py").write_text(WIDE, encoding="utf-8")
    with pytest.raises(InputError, match=f"{name}' sends {what}.*; allowed: values, scales, pos"):
        value_codec(f"{tmp_path}/wide.py:{name}")


@pytest.mark.parametrize("name", [name for name in VALUE_CODECS if name != "topk"])
@given(values=NORMAL)
def test_every_value_codec_gives_nearly_the_values_back(name, values):
    codec = value_codec(name)
    before = values.copy()
    packed = codec.pack(values, LENGTHS)
    fields = {key: (array.dtype, len(array)) for key, array in packed.items()}
    assert fields == codec.fields(LENGTHS)
    back = codec.unpack(packed, LENGTHS)
    np.testing.assert_array_equal(values, before)
    assert back.dtype == np.float32
    assert back.flags.writeable
    starts = np.cumsum([0, *LENGTHS[:-1]])
    largest = np.repeat(np.maximum.reduceat(np.abs(values), starts), LENGTHS)
    limit = 0 if name == "fp32" else largest * np.float32(0.501 / 127) + 2**-24
    assert (np.abs(back - values) <= limit).all()
    again = codec.pack(back, LENGTHS)
    np.testing.assert_array_equal(again["values"], packed["values"])


@pytest.mark.parametrize("name", VALUE_CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_value_codec_sends_what_is_not_finite(name, bad):
    with pytest.raises(WireError, match="finite"):
        value_codec(name).pack(floats(1, bad, 2), [3])


@pytest.mark.parametrize(("name", "large"), [("fp16", 70000.0), ("bf16", 3.4e38)])
def test_values_too_large_for_the_format_become_its_largest(name, large):
    codec = value_codec(name)
    back = codec.unpack(codec.pack(floats(1, large, -large), [3]), [3])
    largest = {"fp16": 65504.0, "bf16": float(2**127 * (2 - 2**-7))}[name]
    assert back.tolist() == [1, largest, -largest]


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_floats_that_are_not_finite_are_rejected(name):
    codec = value_codec(name)
    dtype = codec.fields([2])["values"][0]
    ones = np.full(2 * dtype.itemsize, 0xFF, np.uint8).view(dtype)  # NaN in any format
    with pytest.raises(WireError, match="finite"):
        codec.unpack({"values": ones}, [2])


@pytest.mark.parametrize(
    ("code", "scale"), [(-128, 1.0), (1, -1.0), (1, np.inf), (1, np.nan), (0, np.nan), (127, 3e38)]
)
def test_int8_arrays_that_are_wrong(code, scale):
    arrays = {"values": np.array([code], np.int8), "scales": floats(scale)}
    with pytest.raises(WireError):
        value_codec("int8").unpack(arrays, [1])


def test_int8_scale_that_underflows_sends_zeros():
    packed = value_codec("int8").pack(floats(1e-45, 0), [2])
    assert packed["values"].tolist() == [0, 0]
    assert packed["scales"].tolist() == [0]
