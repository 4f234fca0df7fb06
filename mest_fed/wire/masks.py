"""Mask codecs: how the slots of one mask group become bytes. The registry and a contract.

A codec sees a set of slots out of ``num_slots``, and perhaps the set that the receiver holds
already. Which granules and variants the slots stand for is the layout's affair.
"""

import math
import struct
from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import MASK_CODECS
from mest_fed.errors import WireError
from mest_fed.sparsity.arrays import Slots

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


class MaskCodec(ABC):
    """One way to write a set of slots.

    Attributes
    ----------
    number : int
        What names the codec on the wire.
    needs_base : bool
        Whether the receiver must hold another set, the base.
    """

    number: int
    needs_base = False

    @abstractmethod
    def encode(self, slots: Slots, num_slots: int, base: Slots) -> bytes:
        """Write slots, int32 increasing of shape ``(active,)``; ``base`` likewise."""

    @abstractmethod
    def decode(self, body: bytes, count: int, num_slots: int, base: Slots) -> Slots:
        """Read ``count`` slots.

        The caller checks that they increase, are in range and as many as announced; the codec
        checks what it must to read them safely.

        Raises
        ------
        WireError
            If the bytes cannot be what :meth:`encode` wrote.
        """


class Bitmap(MaskCodec):
    """One bit a slot, from the least significant bit of the first byte on."""

    number = 0

    def encode(self, slots: Slots, num_slots: int, base: Slots) -> bytes:
        """Write ``ceil(num_slots / 8)`` bytes."""
        bits = np.zeros(num_slots, np.uint8)
        bits[slots] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    def decode(self, body: bytes, count: int, num_slots: int, base: Slots) -> Slots:
        """Read the positions of the ones."""
        if len(body) != bitmap_bytes(num_slots):
            raise WireError(f"a bitmap of {num_slots} slots cannot take {len(body)} bytes")
        if (held := count_ones(body)) != count:
            raise WireError(f"a bitmap of {count} slots holds {held}")
        bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")
        return np.flatnonzero(bits).astype(np.int32)


class Gaps(MaskCodec):
    """Rice-coded gaps; see :mod:`mest_fed.wire.masks`."""

    number = 1

    def encode(self, slots: Slots, num_slots: int, base: Slots) -> bytes:
        """Write the gap list."""
        return encode_gaps(slots)

    def decode(self, body: bytes, count: int, num_slots: int, base: Slots) -> Slots:
        """Read the gap list."""
        return decode_gaps(body, count, num_slots).astype(np.int32)


class Delta(MaskCodec):
    """What was dropped from the base and what was grown, each a list of gaps.

    Bytes: number dropped, number grown, length of the first list (little-endian uint32 each); the
    list of dropped rows of the base; the list of grown slots.
    """

    number = 2
    needs_base = True
    _sizes = struct.Struct("<III")

    def encode(self, slots: Slots, num_slots: int, base: Slots) -> bytes:
        """Write both lists."""
        dropped = np.flatnonzero(np.isin(base, slots, invert=True, kind="table"))
        grown = slots[np.isin(slots, base, invert=True, kind="table")]
        first = encode_gaps(dropped)
        return self._sizes.pack(len(dropped), len(grown), len(first)) + first + encode_gaps(grown)

    def decode(self, body: bytes, count: int, num_slots: int, base: Slots) -> Slots:
        """Take the dropped rows out of the base and merge the grown slots in."""
        if len(body) < self._sizes.size:
            raise WireError(f"a mask delta cannot take {len(body)} bytes")
        num_dropped, num_grown, split = self._sizes.unpack_from(body)
        lists = body[self._sizes.size :]
        if len(base) - num_dropped + num_grown != count or split > len(lists):
            raise WireError("the sizes in a mask delta contradict each other")
        kept = np.ones(len(base), np.bool_)
        kept[decode_gaps(lists[:split], num_dropped, len(base))] = False
        grown = decode_gaps(lists[split:], num_grown, num_slots).astype(np.int32)
        return np.sort(np.concatenate([base[kept], grown]))


@lru_cache(maxsize=64)
def mask_codec(name: str) -> MaskCodec:
    """Return a codec by name."""
    codec: MaskCodec = MASK_CODECS.build(name)
    return codec


def bitmap_bytes(num_slots: int) -> int:
    """Return the size of a bitmap, beyond which no codec may go."""
    return -(-num_slots // 8)
