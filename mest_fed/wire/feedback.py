"""Error feedback: what a lossy codec left out of one message goes into the next.

Seide et al. 2014 (1-bit SGD), Karimireddy et al. 2019 (EF-SGD). Over any number of messages, the
sum of what was sent is the sum of what was meant less the last residual.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from mest_fed.errors import WireError
from mest_fed.nn.state import Floats, SparseState
from mest_fed.wire.formats import Array
from mest_fed.wire.maskset import MaskSet
from mest_fed.wire.rows import Rows, carried, flatten, unflatten
from mest_fed.wire.values import ValueCodec


@dataclass(frozen=True)
class Residual:
    """What the receiver is still owed.

    Parameters
    ----------
    masks : dict of str to int32 array
        The masks of the last message.
    values : dict of str to float32 array
        Sparse layer -> shape ``(live, width)``.
    """

    masks: MaskSet
    values: dict[str, Floats]


def start_values(reference: SparseState, rows: list[Rows]) -> Floats:
    """Return the values from which differences start: the reference's, 0 for slots absent there."""
    return carried(reference.masks, reference.values, rows)


def checksum(start: Floats) -> int:
    """Return the CRC-32 that tells whether both ends start from the same values."""
    return zlib.crc32(start.astype("<f4", copy=False).tobytes())


def add(start: Floats | None, change: Floats) -> Floats:
    """Return what the receiver holds after a message.

    Raises
    ------
    WireError
        If a sum is not finite.
    """
    if start is None:
        return change
    with np.errstate(over="ignore"):
        held = start + change
    if not np.isfinite(held).all():
        raise WireError("not every value is a finite number after the difference is added")
    return held


def pack_with_feedback(
    state: SparseState,
    rows: list[Rows],
    codec: ValueCodec,
    start: Floats | None,
    residual: Residual | None,
) -> tuple[dict[str, Array], Residual]:
    """Write the values, or their differences from ``start``, together with the old residual.

    A residual whose slot has died since is dropped.

    Returns
    -------
    arrays : dict of str to array
        What the codec wrote.
    residual : Residual
        What it left out: the values meant less the values that the receiver now holds.
    """
    lengths = [row.length for row in rows]
    with np.errstate(over="ignore"):  # the codec rejects what is not finite
        wanted = flatten(state.values, rows)
        if residual is not None:
            wanted += carried(residual.masks, residual.values, rows)
        arrays = codec.pack(wanted if start is None else wanted - start, lengths)
    held = add(start, codec.unpack(arrays, lengths))
    masks = {group: slots.copy() for group, slots in state.masks.items()}
    return arrays, Residual(masks, unflatten(wanted - held, rows))
