"""Formats of floating-point numbers on the wire: how float32 becomes narrower, and comes back."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.errors import WireError
from mest_fed.sparsity.arrays import Floats

Array = npt.NDArray[Any]


class FloatFormat(ABC):
    """A floating-point format, element by element.

    A finite value beyond the format's range travels as the largest that the format has: a model
    with such a weight is not what ends a run.

    Attributes
    ----------
    dtype : dtype
        Type of the array that travels.
    largest : float32
        The largest finite value.
    """

    dtype: np.dtype[Any]
    largest: np.floating[Any]

    @abstractmethod
    def narrow(self, values: Floats) -> Array:
        """Round float32 values within the range to the format."""

    @abstractmethod
    def widen(self, codes: Array) -> Floats:
        """Return the values as a new float32 array."""

    def pack(self, values: Floats) -> Array:
        """Round values to the format; those beyond its range become its largest.

        Raises
        ------
        WireError
            If a value is not finite.
        """
        self.check(values)
        return self.narrow(values.clip(-self.largest, self.largest))

    def unpack(self, codes: Array) -> Floats:
        """Return finite values as a new float32 array.

        Raises
        ------
        WireError
            If a value is not finite.
        """
        values = self.widen(codes)
        self.check(values)
        return values

    def check(self, values: Floats) -> None:
        """Raise WireError if a value is not finite."""
        if not np.isfinite(values).all():
            raise WireError(f"not every value is a finite number in {type(self).__name__}")


class Float32(FloatFormat):
    """IEEE single precision."""

    dtype = np.dtype("<f4")
    largest = np.finfo(np.float32).max

    def pack(self, values: Floats) -> Array:
        """Return finite values as they are: there is nothing to round."""
        self.check(values)
        return self.narrow(values)

    def narrow(self, values: Floats) -> Array:
        """Return the values themselves, which nobody changes."""
        return values.astype(self.dtype, copy=False)

    def widen(self, codes: Array) -> Floats:
        """Copy."""
        return codes.astype(np.float32)


class Float16(FloatFormat):
    """IEEE half precision: 11 significant bits, up to 65504."""

    dtype = np.dtype("<f2")
    largest = np.float32(65504)

    def narrow(self, values: Floats) -> Array:
        """Round to nearest even."""
        return values.astype(self.dtype)

    def widen(self, codes: Array) -> Floats:
        """Convert."""
        return codes.astype(np.float32)


class BFloat16(FloatFormat):
    """The upper half of a float32, 8 significant bits; travels as uint16, for NumPy has no name."""

    dtype = np.dtype("<u2")
    largest = np.float32(2.0**127 * (2 - 2.0**-7))

    def narrow(self, values: Floats) -> Array:
        """Round to nearest even."""
        bits = np.ascontiguousarray(values).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(self.dtype)

    def widen(self, codes: Array) -> Floats:
        """Put zeros below."""
        return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
