"""bfloat16 in NumPy, which has no such type: the upper half of a float32's bits, as uint16."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bits = NDArray[np.uint16]


def rounded(array: Array) -> Bits:
    """Return the bits of the nearest bfloat16, ties to even.

    Parameters
    ----------
    array : array
        Numbers; they are rounded to float32 first, so that what is no number stays none.
    """
    bits = np.ascontiguousarray(array, np.float32).reshape(array.shape).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, nearest).astype(np.uint16)


def widened(bits: Bits) -> NDArray[np.float32]:
    """Return the numbers that bits stand for."""
    wide = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def numpy_type(dtype: str) -> str:
    """Return the NumPy type that holds a program's type: its bits, for bfloat16."""
    return "uint16" if dtype == "bfloat16" else dtype
