"""Sparse updates: of all changes, the largest with their positions; the others wait."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import ClassVar

import numpy as np

from mest_fed.catalogue import VALUE_CODECS
from mest_fed.errors import WireError
from mest_fed.registry import share_of
from mest_fed.sparsity.arrays import Floats, Indices
from mest_fed.wire.float_formats import Array, Float32
from mest_fed.wire.values import Fields, ValueCodec


class TopK(ValueCodec):
    """Gradient dropping (Aji and Heafield 2017): the share of largest magnitude, in float32.

    ``g_t = sparse(Delta_t + r_t)`` travels and ``r_{t+1} = Delta_t + r_t - g_t`` is the residual of
    :mod:`mest_fed.wire.feedback`; ``sparse`` keeps the ``ceil(share n)`` of n numbers that are
    largest in magnitude over the whole model, the lower position of two equal ones. Delta is the
    change of a round of training. Sattler et al. 2020 (STC) round the kept ones to one magnitude
    beyond this, and code positions in fewer bits than the 32 here.

    Statistics of normalisation layers travel as they are.

    Parameters
    ----------
    share : float
        In (0, 1]. A number that travels takes 8 bytes, so from a half on it saves nothing.
    """

    number = 4
    dense = Float32()
    differences: ClassVar[bool] = True
    takes_all: ClassVar[bool] = True

    def __init__(self, share: float = 0.01) -> None:
        self.share = share

    def value_bytes(self) -> float:
        """Return what a value takes on average."""
        return 8 * self.share

    def fields(self, lengths: Sequence[int]) -> Fields:
        """Return ``values`` and ``positions``, as many as the share is of all lengths."""
        count = self._count(sum(lengths))
        return {"values": (np.dtype("<f4"), count), "positions": (np.dtype("<u4"), count)}

    def pack(self, values: Floats, lengths: Sequence[int]) -> dict[str, Array]:
        """Choose the largest over all layers together."""
        if not np.isfinite(values).all():
            raise WireError("not every value is a finite number")
        chosen = largest(values, self._count(len(values)))
        return {"values": values[chosen].astype("<f4"), "positions": chosen.astype("<u4")}

    def unpack(self, arrays: Mapping[str, Array], lengths: Sequence[int]) -> Floats:
        """Put the values in their places, zero elsewhere."""
        sent, positions, size = arrays["values"], arrays["positions"], sum(lengths)
        if len(positions) and (positions[-1] >= size or (positions[1:] <= positions[:-1]).any()):
            raise WireError(f"the positions are not increasing numbers below {size}")
        if not np.isfinite(sent).all():
            raise WireError("not every value is a finite number")
        values = np.zeros(size, np.float32)
        values[positions] = sent
        return values

    def _count(self, size: int) -> int:
        return min(size, math.ceil(self.share * size))


#: Values that are looked at together: what they take beside all is small.
_BLOCK = 1 << 16


def largest(values: Floats, count: int) -> Indices:
    """Return the positions of the values of largest magnitude, increasing; ties go to the lower.

    One array of the size of the values stands beside them.
    """
    if count == 0:
        return np.empty(0, np.int64)
    sizes = np.abs(values)
    sizes.partition(len(sizes) - count)
    least = sizes[len(sizes) - count]
    del sizes
    above, equal = list[Indices](), list[Indices]()
    for start in range(0, len(values), _BLOCK):
        block = np.abs(values[start : start + _BLOCK])
        above.append(start + np.flatnonzero(block > least))
        if sum(map(len, equal)) < count:
            equal.append(start + np.flatnonzero(block == least))
    beyond = np.concatenate(above)
    return np.sort(np.concatenate([beyond, *equal])[:count])


@cache
def topk_of(share: str) -> Callable[[], TopK]:
    """Return the codec ``topk:SHARE``.

    Raises
    ------
    InputError
        If the share is no number in (0, 1].
    """
    return partial(TopK, share_of(VALUE_CODECS.key, "topk", share))
