"""Arrays that are sent: to the byte what Flower makes of the same values."""

import numpy as np
import pytest
from flwr.app import Array

from mest_fed.wire.records import as_array

VALUES = np.arange(12)
CASES = {
    "float32": VALUES.astype("f4"),
    "float16": VALUES.astype("f2"),
    "int32 of (3, 4)": VALUES.astype("i4").reshape(3, 4),
    "uint16": VALUES.astype("u2"),
    "big-endian": VALUES.astype(">f4"),
    "bool": VALUES > 3,
    "empty": np.zeros((0, 4), "f4"),
    "one number": np.array(2.5),
    "columns first": np.asfortranarray(VALUES.reshape(3, 4)),
    "every second": VALUES[::2],
    "text": np.array(["a", "bc"]),
    "read-only": np.frombuffer(bytes(8), "f4"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_flowers_array(name):
    mine, theirs = as_array(CASES[name]), Array(CASES[name])
    assert (mine.dtype, mine.shape, mine.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert mine.data == theirs.data
    assert isinstance(mine.data, bytes)


def test_it_is_a_copy():
    values = VALUES.astype("f4")
    made = as_array(values)
    values[...] = -1
    np.testing.assert_array_equal(made.numpy(), VALUES)
