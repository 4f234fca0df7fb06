"""Slopes on the wire: what was written is read, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.errors import WireError
from mest_fed.wire.payload import Payload
from mest_fed.wire.slopes import read_slopes, write_slopes


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_what_was_written_is_read(slopes):
    payload = write_slopes(slopes)
    assert payload.num_bytes == 4 * len(slopes)
    assert read_slopes(payload, 1, 20) == slopes


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (Payload({"values": np.zeros(2, "<f4")}, b""), r"arrays \['values'\] instead of slopes"),
        (Payload({"slopes": np.zeros(2, "<f4")}, b"x"), "a header of 1 bytes"),
        (Payload({"slopes": np.zeros(2)}, b""), "slopes of type float64"),
        (Payload({"slopes": np.zeros((1, 2), "<f4")}, b""), r"shape \(1, 2\)"),
        (Payload({"slopes": np.zeros(3, "<f4")}, b""), "3 slopes; allowed: 2 each of at most 4"),
        (Payload({"slopes": np.zeros(10, "<f4")}, b""), "10 slopes; allowed: 2 each of at most 4"),
        (Payload({"slopes": np.array([0, np.nan], "<f4")}, b""), "not finite"),
    ],
)
def test_anything_else_is_refused(payload, said):
    with pytest.raises(WireError, match=said):
        read_slopes(payload, 2, 4)
