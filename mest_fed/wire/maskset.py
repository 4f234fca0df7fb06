"""A model's masks: identity, validity, and the bytes of all groups together.

Each group takes an entry, in the order of :attr:`mest_fed.nn.ModelSpec.groups`:

======  ======  ==============================================
offset  type    meaning
======  ======  ==============================================
0       uint8   number of the mask codec
1       uint32  active slots of the group
5       uint32  length of what follows
9       bytes   the slots, as :mod:`mest_fed.wire.masks` says
======  ======  ==============================================
"""

import hashlib
import struct
from collections.abc import Iterator

import numpy as np

from mest_fed.catalogue import MASK_CODECS
from mest_fed.errors import WireError
from mest_fed.sparsity import Layout, slot_objection
from mest_fed.sparsity.arrays import Slots
from mest_fed.sparsity.state import ModelSpec
from mest_fed.wire.masks import bitmap_bytes, mask_codec

MaskSet = dict[str, Slots]

_ENTRY = struct.Struct("<BII")
_NO_BASE = np.zeros(0, np.int32)


def mask_hash(masks: MaskSet) -> bytes:
    """Name a mask set.

    Returns
    -------
    bytes
        The first 16 bytes of the SHA-256 of all groups in the order of their names: length of the
        name (uint32), name, number of slots (uint32), slots (int32), little-endian.
    """
    digest = hashlib.sha256()
    for group in sorted(masks):
        name, slots = group.encode(), np.ascontiguousarray(masks[group], "<i4")
        digest.update(struct.pack(f"<I{len(name)}sI", len(name), name, len(slots)))
        digest.update(slots.tobytes())
    return digest.digest()[:16]


def same_masks(first: MaskSet, second: MaskSet) -> bool:
    """Say whether two mask sets are equal: what equal names say, in a tenth of the time."""
    return first.keys() == second.keys() and all(
        np.array_equal(slots, second[group]) for group, slots in first.items()
    )


def check_masks(masks: MaskSet, spec: ModelSpec) -> None:
    """Reject masks that no model of the specification can have.

    Raises
    ------
    WireError
        If a group is missing or too many, or its slots are not int32, at least one, strictly
        increasing, in range, at most one for each granule.
    """
    if masks.keys() != spec.groups.keys():
        raise WireError("the masks are not those of the model's mask groups")
    for group, slots in masks.items():
        reason = _objection(slots, spec.group_layout(group))
        if reason:
            raise WireError(f"mask of {group}: {reason}")


def _objection(slots: Slots, layout: Layout) -> str | None:
    if slots.dtype != np.int32 or slots.ndim != 1 or len(slots) == 0:
        return f"{slots.dtype} of shape {slots.shape} where int32 of shape (active,) belongs"
    return slot_objection(layout, slots)


def encode_masks(masks: MaskSet, spec: ModelSpec, base: MaskSet | None) -> tuple[bytes, bool]:
    """Write each group with the codec that takes the fewest bytes.

    Returns
    -------
    body : bytes
        The entries of all groups.
    needs_base : bool
        Whether the receiver must hold ``base`` to read them.
    """
    entries, needs_base = [], False
    every = map(mask_codec, MASK_CODECS)
    codecs = [codec for codec in every if base is not None or not codec.needs_base]
    for group in spec.groups:
        slots, held = masks[group], _NO_BASE if base is None else base[group]
        num_slots = spec.group_layout(group).num_slots
        bodies = [(codec.encode(slots, num_slots, held), codec) for codec in codecs]
        body, best = min(bodies, key=lambda pair: len(pair[0]))
        entries += [_ENTRY.pack(best.number, len(slots), len(body)), body]
        needs_base |= best.needs_base
    return b"".join(entries), needs_base


def max_body_bytes(spec: ModelSpec) -> int:
    """Return the most bytes that :func:`encode_masks` may take."""
    layouts = [spec.group_layout(group) for group in spec.groups]
    return sum(_ENTRY.size + bitmap_bytes(layout.num_slots) for layout in layouts)


def announced_counts(body: bytes, spec: ModelSpec) -> dict[str, int]:
    """Read how many active slots each group has as its entry says, without reading the slots.

    Raises
    ------
    WireError
        If the entries are cut off, or announce more than the model has.
    """
    return {group: count for group, _, count, _ in _entries(body, spec)}


def _entries(body: bytes, spec: ModelSpec) -> Iterator[tuple[str, int, int, bytes]]:
    """Yield each group, the number of its codec, its active slots and the bytes that hold them."""
    start = 0
    for group in spec.groups:
        if len(body) - start < _ENTRY.size:
            raise WireError(f"mask of {group}: cut off")
        number, count, length = _ENTRY.unpack_from(body, start)
        start += _ENTRY.size
        entry, layout = body[start : start + length], spec.group_layout(group)
        if len(entry) != length:
            raise WireError(f"mask of {group}: cut off")
        if not 0 < count <= layout.num_granules or len(entry) > bitmap_bytes(layout.num_slots):
            raise WireError(
                f"mask of {group}: {count} slots in {len(entry)} bytes for {layout.num_granules} "
                "granules"
            )
        yield group, number, count, entry
        start += length
    if start != len(body):
        raise WireError(f"{len(body) - start} bytes too many after the masks")


def decode_masks(body: bytes, spec: ModelSpec, base: MaskSet | None) -> MaskSet:
    """Read what :func:`encode_masks` wrote; the result is checked with :func:`check_masks`.

    Raises
    ------
    WireError
        If the bytes are cut off, too many, or do not give valid masks.
    """
    masks = {}
    for group, number, count, entry in _entries(body, spec):
        held = None if base is None else base[group]
        try:
            masks[group] = _decode_entry(number, entry, count, spec.group_layout(group), held)
        except WireError as error:
            raise WireError(f"mask of {group}: {error}") from None
    check_masks(masks, spec)
    return masks


def _decode_entry(
    number: int, entry: bytes, count: int, layout: Layout, base: Slots | None
) -> Slots:
    codec = next((codec for codec in map(mask_codec, MASK_CODECS) if codec.number == number), None)
    if codec is None or (codec.needs_base and base is None):
        raise WireError(f"mask codec {number} is not allowed here")
    slots = codec.decode(entry, count, layout.num_slots, _NO_BASE if base is None else base)
    if len(slots) != count:
        raise WireError(f"a mask of {count} slots holds {len(slots)}")
    return slots
