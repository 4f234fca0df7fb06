"""Increasing numbers as Rice-coded gaps, without a loop over the numbers.

Golomb (1966) and Rice (1979): a gap g splits into a quotient g >> k, written in unary, and a
remainder of k bits. For a random mask the code comes within a few percent of the entropy. Layout of
the bytes, bits counted from the least significant one:

====================  ==========================================================================
``k``                 1 byte
remainders            ``count * k`` bits, padded with zeros to a whole byte
quotients             for each gap ``g >> k`` zeros and a one, padded with zeros to a whole byte
====================  ==========================================================================

The first gap is the first number itself; the next ones are differences less one. No numbers: no
bytes.
"""

import math

import numpy as np
import numpy.typing as npt

from mest_fed.errors import WireError

Numbers = npt.NDArray[np.int64]

_BYTES_AT_ONCE = 4096


def encode_gaps(numbers: npt.NDArray[np.integer]) -> bytes:
    """Encode strictly increasing numbers of at least 0, shape ``(count,)``."""
    if len(numbers) == 0:
        return b""
    gaps = np.diff(numbers, prepend=-1).astype(np.int64) - 1
    k = _rice_parameter(gaps)
    remainders = np.empty((len(gaps), k), np.uint8)
    for bit in range(k):
        remainders[:, bit] = (gaps >> bit) & 1
    ends = np.cumsum((gaps >> k) + 1) - 1
    quotients = np.zeros(ends[-1] + 1, np.uint8)
    quotients[ends] = 1
    return bytes([k]) + _pack(remainders) + _pack(quotients)


def decode_gaps(body: bytes, count: int, universe: int) -> Numbers:
    """Decode ``count`` strictly increasing numbers in ``[0, universe)``.

    Raises
    ------
    WireError
        If the bytes are anything else than what :func:`encode_gaps` may have written.
    """
    if count == 0 and not body:
        return np.zeros(0, np.int64)
    if not 0 < count <= universe or not body or body[0] >= universe.bit_length():
        raise WireError(f"{count} gaps below {universe} in {len(body)} bytes")
    k = body[0]
    split = 1 + -(-count * k // 8)
    if len(body) <= split or body[-1] == 0:
        raise WireError(f"a gap list of {count} numbers cannot take {len(body)} bytes")
    # Each one takes 64 times its bits once its place is known: so they are counted before.
    if (held := count_ones(body[split:])) != count:
        raise WireError(f"a gap list of {count} numbers holds {held}")
    bits = _unpack(body[1:split])
    ends = np.flatnonzero(_unpack(body[split:]).view(np.bool_))  # thrice as fast as of bytes
    if bits[count * k :].any():
        raise WireError(f"a gap list of {count} numbers has other bits than zeros as padding")
    planes = bits[: count * k].reshape(count, k)
    remainders = np.zeros(count, np.int64)
    for bit in range(k):
        remainders |= planes[:, bit].astype(np.int64) << bit
    # Zeros before the i-th end are the sum of the first i quotients: no gap is made on the way.
    places = np.arange(count)
    numbers: Numbers = ((ends - places) << k) + np.cumsum(remainders) + places
    if numbers[-1] >= universe:
        raise WireError(f"number {numbers[-1]} in a gap list is out of range [0, {universe})")
    return numbers


def count_ones(body: bytes) -> int:
    """Return the number of ones among the bits of some bytes, in a fraction of their memory."""
    return sum(
        int.from_bytes(body[start : start + _BYTES_AT_ONCE]).bit_count()
        for start in range(0, len(body), _BYTES_AT_ONCE)
    )


def _rice_parameter(gaps: Numbers) -> int:
    # A geometric distribution of mean m is coded best near 2**k = m ln 2 (Golomb 1966).
    first = max(0, math.floor(math.log2(max(1.0, gaps.mean() * math.log(2)))))
    return min(first, first + 1, key=lambda k: len(gaps) * k + int((gaps >> k).sum()))


def _pack(bits: npt.NDArray[np.uint8]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack(packed: bytes) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
