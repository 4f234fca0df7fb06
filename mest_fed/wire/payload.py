"""What travels: arrays and a header."""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from mest_fed.errors import WireError
from mest_fed.wire.float_formats import Array


@dataclass(frozen=True)
class Payload:
    """What travels.

    Parameters
    ----------
    arrays : dict of str to array
        One-dimensional: ``values`` of all sparse layers, ``scales`` (int8 alone) or ``positions``
        (topk alone) of them, ``dense`` tensors. What would be empty is absent.
    header : bytes
        Everything else; see :mod:`mest_fed.wire.payload`.
    """

    arrays: dict[str, Array]
    header: bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays and the header, without the framing of what carries them."""
        return sum(array.nbytes for array in self.arrays.values()) + len(self.header)


class UnknownMaskError(WireError):
    """The message names masks that the receiver does not hold; it can be sent them in full.

    Attributes
    ----------
    mask_hash : bytes
        Hash of the masks.
    """

    def __init__(self, mask_hash: bytes) -> None:
        super().__init__(f"masks {mask_hash.hex()} are not known here")
        self.mask_hash = mask_hash


MAGIC = b"MFSU"
VERSION = 1
_FIXED = struct.Struct("<4sBBBB16sII")
_HASH_BYTES = 16
_COMPRESSED, _DIFFERENCES, _TRAINED_ALONE = 1, 2, 4


class MaskSource(IntEnum):
    """Where the receiver takes the masks from."""

    KNOWN = 0
    FULL = 1
    BASE = 2


@dataclass(frozen=True)
class Header:
    """The header's fields.

    Parameters
    ----------
    codec : int
        Number of the value codec.
    source : MaskSource
        Where the masks come from.
    mask_hash : bytes
        Hash of the masks.
    start : int or None
        CRC-32 of the values that differences start from; None for values that are no differences.
    base_hash : bytes
        Hash of the base, empty without one.
    body : bytes
        Mask body, not compressed.
    trained_alone : bool
        Whether what the sender keeps frozen is left out.
    """

    codec: int
    source: MaskSource
    mask_hash: bytes
    start: int | None = None
    base_hash: bytes = b""
    body: bytes = b""
    trained_alone: bool = False

    def pack(self) -> bytes:
        """Write the header, the mask body compressed where that is smaller."""
        compressed = zlib.compress(self.body)
        smaller = len(compressed) < len(self.body)
        flags = _COMPRESSED * smaller | _DIFFERENCES * (self.start is not None)
        flags |= _TRAINED_ALONE * self.trained_alone
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            self.codec,
            self.source,
            flags,
            self.mask_hash,
            self.start or 0,
            len(self.body),
        )
        return fixed + self.base_hash + (compressed if smaller else self.body)

    @classmethod
    def unpack(cls, data: bytes, max_body: int) -> "Header":
        """Read a header whose mask body takes no more than ``max_body`` bytes.

        Raises
        ------
        WireError
            If the bytes are not a header of this version, or the body is not as long as announced.
        """
        if len(data) < _FIXED.size:
            raise WireError(f"a header of {len(data)} bytes is cut off")
        magic, version, codec, source, flags, mask_hash, start, length = _FIXED.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise WireError(f"magic {magic!r}, version {version} is not {MAGIC!r}, {VERSION}")
        if source not in list(MaskSource) or flags & ~(_COMPRESSED | _DIFFERENCES | _TRAINED_ALONE):
            raise WireError(f"mask source {source}, flags {flags} are unknown")
        if start and not flags & _DIFFERENCES:
            raise WireError(f"flags {flags} do not go with a checksum of start values")
        if length > max_body or (source == MaskSource.KNOWN and length):
            raise WireError(f"a mask body of {length} bytes is not allowed here")
        split = _FIXED.size + (_HASH_BYTES if source == MaskSource.BASE else 0)
        body = _inflate(data[split:], length) if flags & _COMPRESSED else data[split:]
        if len(data) < split or len(body) != length:
            raise WireError(f"a mask body of {length} bytes comes with another length")
        return cls(
            codec,
            MaskSource(source),
            mask_hash,
            start if flags & _DIFFERENCES else None,
            data[_FIXED.size : split],
            body,
            bool(flags & _TRAINED_ALONE),
        )


def named_masks(header: bytes) -> bytes:
    """Return the hash of the masks that a header names, of one that was decoded."""
    name: bytes = _FIXED.unpack_from(header)[5]
    return name


def _inflate(data: bytes, length: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        body = stream.decompress(data, length + 1)  # one more, so that an honest stream ends
    except zlib.error as error:
        raise WireError(f"the mask body does not decompress: {error}") from None
    if not stream.eof or stream.unused_data:
        raise WireError("the compressed mask body does not end where the header does")
    return body
