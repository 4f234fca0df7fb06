"""What a message announces takes no memory before it is known to be there."""

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from wire_states import moved_masks, random_state, spec_for

from mest_fed.errors import WireError
from mest_fed.wire import Payload, decode, encode, mask_hash
from mest_fed.wire.masks import mask_codec
from mest_fed.wire.payload import Header, MaskSource

SHAPES = ((512, 512), (256, 512))
SCHEMES = ("unstructured", "block", "block:3")
_ENTRY = struct.Struct("<BII")


def peak(work):
    """Return the bytes that some work takes at its peak, and whether it was refused."""
    tracemalloc.start()
    try:
        work()
    except WireError:
        refused = True
    else:
        refused = False
    finally:
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return size, refused


def claims(spec, base):
    """Yield names and mask bodies that claim far more than a density of 0.02."""
    layouts = [spec.group_layout(group) for group in spec.groups]

    def body(codec, content, count=None):
        parts = []
        for layout in layouts:
            data = content(layout)
            said = layout.num_granules if count is None else count(layout)
            parts += [_ENTRY.pack(codec.number, said, len(data)), data]
        return b"".join(parts)

    bitmap, gaps, delta = (mask_codec(name) for name in ("bitmap", "gaps", "delta"))
    ones = {layout: b"\xff" * -(-layout.num_slots // 8) for layout in layouts}
    few = {layout: round(layout.num_granules * 0.02) for layout in layouts}
    full = {layout: np.arange(layout.num_slots, dtype=np.int32) for layout in layouts}
    yield "bitmap, all claimed", body(bitmap, ones.get)
    yield "bitmap, few claimed", body(bitmap, ones.get, few.get)
    all_gaps = {layout: gaps.encode(full[layout], layout.num_slots, None) for layout in layouts}
    yield "gaps, all claimed", body(gaps, all_gaps.get)
    yield "gaps, few claimed", body(gaps, all_gaps.get, few.get)
    held = dict(zip(layouts, base.values(), strict=True))
    deltas = {layout: delta.encode(full[layout], layout.num_slots, held[layout]) for layout in held}
    yield "delta, all claimed", body(delta, deltas.get)
    lies = {
        layout: struct.pack("<III", len(held[layout]), few[layout], 1) + b"\0" + all_gaps[layout]
        for layout in layouts
    }
    yield "delta, few claimed", body(delta, lies.get, few.get)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mask_that_claims_more_than_it_holds_is_cheap_to_refuse(scheme):
    spec = spec_for(scheme, SHAPES)
    state = random_state(spec, 0.02)
    base = moved_masks(state.masks, spec, 1)
    known = {mask_hash(base): base}
    honest, _ = encode(state, spec)
    legitimate, refused = peak(lambda: decode(honest, spec, known=known))
    assert not refused
    # The size of the layouts' bitmaps, which the header's limit allows before a message is read.
    bitmaps = sum(layout.num_slots // 8 for layout in spec.layouts.values())
    header = Header.unpack(honest.header, 1 << 30)
    for name, body in claims(spec, base):
        source = MaskSource.BASE if name.startswith("delta") else MaskSource.FULL
        base_hash = mask_hash(base) if source == MaskSource.BASE else b""
        claimed = replace(header, source=source, base_hash=base_hash, body=body)
        payload = Payload(honest.arrays, claimed.pack())
        taken, refused = peak(lambda p=payload: decode(p, spec, known=known))
        assert refused, name
        assert taken <= legitimate + 6 * bitmaps, name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mask_of_more_active_granules_than_allowed_is_not_read(scheme):
    spec = spec_for(scheme, SHAPES)
    state = random_state(spec, 0.5)
    payload, _ = encode(state, spec)
    most = {group: len(slots) for group, slots in state.masks.items()}
    assert not peak(lambda: decode(payload, spec, max_active=most))[1]
    most["layer1"] -= 1
    with pytest.raises(WireError, match=f"layer1 has {most['layer1'] + 1} active granules; "):
        decode(payload, spec, max_active=most)
    taken, _ = peak(lambda: decode(payload, spec, max_active=most))
    assert taken < 4 * len(payload.header) + 50_000
