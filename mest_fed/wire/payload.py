"""What travels: arrays and a header."""

from dataclasses import dataclass

from mest_fed.errors import WireError
from mest_fed.wire.formats import Array


@dataclass(frozen=True)
class Payload:
    """What travels.

    Parameters
    ----------
    arrays : dict of str to array
        One-dimensional: ``values`` of all sparse layers, ``scales`` of them (int8 alone), ``dense``
        tensors. What would be empty is absent.
    header : bytes
        Everything else; see :mod:`mest_fed.wire.header`.
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
