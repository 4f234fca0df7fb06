"""Planes in place: where the elements of a buffer with margins lie.

A buffer of shape (N, C, H, W) with a margin of m >= 1 rows is laid out for convolutions that read
it where it lies. Rows have no side margins. Each channel is followed by at least m rows of zeros,
the bottom margin of that channel and the top margin of the next. Whoever writes such a buffer
leaves zero whatever is no element; whoever reads it may count on that. ``native/planes.h`` is the
same in C++.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mest_fed.runtime.shapes import Shape

Array = NDArray[Any]

#: Rows of zeros that a buffer may have between its channels.
MOST_MARGIN = 64
_LINE = 16  # values that a vector of floats takes
_BEHIND = 64  # values behind the last image, which may be read


class Planes(NamedTuple):
    """The layout of a buffer with margins; sizes in values, whatever their type."""

    images: int
    channels: int
    height: int
    width: int
    margin: int

    @property
    def pitch(self) -> int:
        """From one channel to the next."""
        return _whole_lines((self.height + self.margin) * self.width)

    @property
    def lead(self) -> int:
        """Zeros before the first channel of each image."""
        return _whole_lines(self.margin * (self.width + 1))

    @property
    def image(self) -> int:
        """From one image to the next."""
        return self.lead + self.channels * self.pitch

    @property
    def floats(self) -> int:
        """Values of the whole buffer."""
        return self.images * self.image + _BEHIND


def _whole_lines(floats: int) -> int:
    return -(-floats // _LINE) * _LINE


def planes_of(shape: Shape, margin: int) -> Planes:
    """Return the layout of a buffer of shape (N, C, H, W)."""
    images, channels, height, width = shape
    return Planes(images, channels, height, width, margin)


def size_of(shape: Shape, margin: int) -> int:
    """Return how many values a buffer takes, margins included."""
    return planes_of(shape, margin).floats if margin else math.prod(shape)


def elements(memory: Array, shape: Shape, margin: int) -> Array:
    """Return the elements of a buffer as a view.

    Parameters
    ----------
    memory : array
        The whole buffer, :func:`size_of` values in one dimension.
    shape : tuple of int
        (N, C, H, W) if there is a margin.
    margin : int
        0 for C order.
    """
    if not margin:
        return memory.reshape(shape)
    planes, size = planes_of(shape, margin), memory.itemsize
    strides = [it * size for it in (planes.image, planes.pitch, planes.width, 1)]
    return np.ndarray(shape, memory.dtype, memory, planes.lead * size, strides)
