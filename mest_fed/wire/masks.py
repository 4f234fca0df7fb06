"""Mask codecs: how the slots of one mask group become bytes. The registry and a contract.

A codec sees a set of slots out of ``num_slots``, and perhaps the set that the receiver holds
already. Which granules and variants the slots stand for is the layout's affair.
"""

import struct
from abc import ABC, abstractmethod

import numpy as np

from mest_fed.errors import WireError
from mest_fed.nn.state import Slots
from mest_fed.wire.gaps import count_ones, decode_gaps, encode_gaps


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
        """Write slots, int32 increasing of shape ``(live,)``; ``base`` likewise."""

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
    """Rice-coded gaps; see :mod:`mest_fed.wire.gaps`."""

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


#: Mask codecs by name.
MASK_CODECS: dict[str, MaskCodec] = {"bitmap": Bitmap(), "gaps": Gaps(), "delta": Delta()}


def bitmap_bytes(num_slots: int) -> int:
    """Return the size of a bitmap, beyond which no codec may go."""
    return -(-num_slots // 8)
