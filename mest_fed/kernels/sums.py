"""Weighted sums of NumPy arrays in double precision, in a fixed order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.kernels import native

Doubles = npt.NDArray[np.float64]


def weighted_sum(arrays: Sequence[npt.NDArray[Any]], weights: Sequence[float]) -> Doubles:
    """Return the sum of weight times array.

    The order is a binary tree over the arrays that splits at the largest power of two below their
    number; each product and each sum is rounded once. So the bits are the same with the compiled
    kernels and without.

    Parameters
    ----------
    arrays : sequence of arrays
        Real numbers, at least one array, all of one shape. The compiled kernels take float32.
    weights : sequence of float
        One for each array.

    Raises
    ------
    ValueError
        If there is no array, or shapes or numbers differ.
    """
    if not arrays or len(arrays) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(arrays)} arrays")
    if any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError("the arrays have different shapes")
    if native.available() and all(_plain(array) for array in arrays):
        total = np.empty(arrays[0].shape)
        addresses = [array.ctypes.data for array in arrays]
        native.module().weighted_sum(addresses, list(weights), total.size, total.ctypes.data)
        return total
    return _tree(arrays, weights)


def _plain(array: npt.NDArray[Any]) -> bool:
    return array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned


def _tree(arrays: Sequence[npt.NDArray[Any]], weights: Sequence[float]) -> Doubles:
    if len(arrays) == 1:
        product: Doubles = np.multiply(arrays[0], weights[0], dtype=np.float64)
        return product
    left = 1 << ((len(arrays) - 1).bit_length() - 1)
    total = _tree(arrays[:left], weights[:left])
    total += _tree(arrays[left:], weights[left:])
    return total
