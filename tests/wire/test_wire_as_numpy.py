"""Flower's arrays read without a copy: the same as by Flower's own way, or refused as there."""

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mest_fed.wire.records import as_numpy

DTYPES = ["<f2", "<f4", "<f8", ">f4", "|i1", "<i4", ">i8", "|u1", "<u2", "|b1", "<c8", "<U3", "|S2"]


def same(array):
    mine, theirs = as_numpy(array), array.numpy()
    assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    assert mine.tobytes() == theirs.tobytes()


@given(st.data(), st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
def test_any_type_and_shape(data, dtype, shape):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if np.dtype(dtype).kind == "U":
        values = np.full(shape, "aü", dtype)
    elif np.dtype(dtype).kind == "b":
        values = np.zeros(shape, dtype)
    else:
        raw = data.draw(st.binary(min_size=count, max_size=count))
        values = np.frombuffer(raw, dtype).reshape(shape)
    same(Array(values))


def test_other_orders_of_memory():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (values.T, values[:, ::2], np.asfortranarray(values)):
        same(Array(array))


def test_plain_data_is_not_copied():
    array = Array(np.arange(1000, dtype=np.float32))
    values = as_numpy(array)
    assert not values.flags.writeable
    assert np.shares_memory(values, np.frombuffer(array.data, np.uint8))


def described(array, **changes):
    fields = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}
    return Array(*(fields | changes).values())


GOOD = Array(np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        GOOD.data[:60],
        GOOD.data[:-1],
        GOOD.data[:8] + b"\xff\xff" + GOOD.data[10:],
        GOOD.data.replace(b"(2, 3)", b"(9, 9)"),
        GOOD.data.replace(b"<f4", b"|O8"),
    ],
)
def test_damaged_data_is_refused(data):
    with pytest.raises((ValueError, EOFError)):
        as_numpy(described(GOOD, data=data))


def test_objects_are_not_unpickled():
    hostile = np.array([print], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle"):
        as_numpy(Array("object", (1,), "numpy.ndarray", _npy(hostile)))


def _npy(values):
    import io

    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()
