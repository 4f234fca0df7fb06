"""Mask codecs: hand-worked bytes, one contract for all, and hostile bytes."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_states import moved_masks, random_masks, spec_for

from mest_fed.errors import WireError
from mest_fed.rng import numpy_generator
from mest_fed.wire import MASK_CODECS, check_masks, mask_hash, same_masks
from mest_fed.wire.masks import decode_gaps, encode_gaps, mask_codec
from mest_fed.wire.maskset import decode_masks, encode_masks, max_body_bytes

NOTHING = np.zeros(0, np.int32)


def slots(*numbers):
    return np.array(numbers, np.int32)


@st.composite
def slot_sets(draw, num_slots):
    return slots(*sorted(draw(st.sets(st.integers(0, num_slots - 1), min_size=1))))


def test_bitmap_by_hand():
    # Slots 0 and 3 are bits 0 and 3 of the first byte, slot 9 is bit 1 of the second.
    assert mask_codec("bitmap").encode(slots(0, 3, 9), 10, NOTHING) == bytes([0b1001, 0b10])


def test_gaps_by_hand():
    # Gaps 2, 0, 5; k = 1 leaves remainders 0, 0, 1 and quotients 1, 0, 2: 01 1 001.
    assert encode_gaps(slots(2, 3, 9)) == bytes([1, 0b100, 0b100110])
    assert mask_codec("gaps").encode(slots(2, 3, 9), 16, NOTHING) == bytes([1, 0b100, 0b100110])


def test_delta_by_hand():
    body = mask_codec("delta").encode(slots(2, 7, 9), 16, slots(2, 5, 9))
    dropped = bytes([0, 0b10])  # row 1: k = 0, quotient 1
    grown = bytes([2, 0b11, 0b10])  # slot 7: k = 2, remainder 3, quotient 1
    assert body == struct.pack("<III", 1, 1, 2) + dropped + grown


def test_delta_of_the_same_mask_is_its_sizes_alone():
    assert mask_codec("delta").encode(slots(2, 5), 9, slots(2, 5)) == bytes(12)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.4])
def test_gaps_come_near_the_entropy(density):
    size = 50_000
    active = np.flatnonzero(numpy_generator(0, "entropy").random(size) < density)
    share = len(active) / size
    entropy = -size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    assert entropy < len(encode_gaps(active)) < 1.05 * entropy


def test_mask_codecs_have_numbers_of_their_own():
    assert len({codec.number for codec in map(mask_codec, MASK_CODECS)}) == len(MASK_CODECS)


@pytest.mark.parametrize("name", MASK_CODECS)
@given(data=st.data(), num_slots=st.integers(1, 300))
def test_every_mask_codec_gives_the_slots_back(name, data, num_slots):
    codec = mask_codec(name)
    mask, base = data.draw(slot_sets(num_slots)), data.draw(slot_sets(num_slots))
    body = codec.encode(mask, num_slots, base)
    got = codec.decode(body, len(mask), num_slots, base)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, mask)


@pytest.mark.parametrize("name", MASK_CODECS)
@given(body=st.binary(max_size=30), count=st.integers(0, 2**32 - 1) | st.integers(1, 9))
def test_any_bytes_give_a_valid_mask_or_an_error(name, body, count):
    spec = spec_for("unstructured", ((11, 21),))
    entry = struct.pack("<BII", mask_codec(name).number, count, len(body)) + body
    try:
        masks = decode_masks(entry, spec, {"layer0": slots(*range(0, 231, 30))})
    except WireError:
        return
    check_masks(masks, spec)
    assert len(masks["layer0"]) == count


@pytest.mark.parametrize(
    ("body", "count", "universe"),
    [
        (b"", 1, 16),  # nothing for one number
        (bytes([0, 1]), 0, 16),  # something for no number
        (bytes([1, 0b100, 0b100110]), 4, 16),  # one number short
        (bytes([1, 0b100, 0b100110]), 2, 16),  # one number too many
        (bytes([1, 0b100, 0b100110]), 3, 9),  # 9 is out of range
        (bytes([1, 0b1100, 0b100110]), 3, 16),  # padding of the remainders is not zero
        (bytes([1, 0b100, 0b100110, 0]), 3, 16),  # trailing zero byte
        (bytes([5, 3, 1]), 1, 16),  # k beyond the universe
        (bytes([255, *range(1, 40)]), 1, 16),
        (bytes([1, 0b100]), 3, 16),  # no quotients
    ],
)
def test_gap_lists_that_are_wrong(body, count, universe):
    with pytest.raises(WireError):
        decode_gaps(body, count, universe)


@pytest.mark.parametrize(
    ("sizes", "rest"),
    [((4, 4, 0), b""), ((1, 0, 2), bytes([0, 2])), ((0, 0, 1), b""), ((0, 0, 0), b"\0")],
)
def test_deltas_that_are_wrong(sizes, rest):
    with pytest.raises(WireError):
        mask_codec("delta").decode(struct.pack("<III", *sizes) + rest, 3, 16, slots(2, 5, 9))


def test_a_delta_that_grows_what_is_active_is_rejected():
    spec = spec_for("unstructured", ((4, 4),))
    body = struct.pack("<III", 1, 1, 2) + bytes([0, 0b1]) * 1 + encode_gaps(slots(5))
    entry = struct.pack("<BII", mask_codec("delta").number, 2, len(body)) + body
    with pytest.raises(WireError):
        decode_masks(entry, spec, {"layer0": slots(2, 5)})


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel", "pair"])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_each_group_takes_its_smallest_codec(scheme, density):
    spec = spec_for(scheme)
    masks = random_masks(spec, density, 1)
    base = moved_masks(masks, spec, 2)
    body, _ = encode_masks(masks, spec, base)
    start = 0
    for group in spec.groups:
        number, count, length = struct.unpack_from("<BII", body, start)
        sizes = {
            codec.number: len(
                codec.encode(masks[group], spec.group_layout(group).num_slots, base[group])
            )
            for codec in map(mask_codec, MASK_CODECS)
        }
        assert count == len(masks[group])
        assert length == min(sizes.values()) == sizes[number]
        start += 9 + length
    assert start == len(body) <= max_body_bytes(spec)


def test_a_small_change_takes_less_than_the_mask():
    spec = spec_for("unstructured", ((64, 64),))
    masks = random_masks(spec, 0.1, 1)
    moved = masks["layer0"].copy()
    moved[3] = moved[3] + 1 if moved[4] > moved[3] + 1 else moved[3] - 1
    full, alone = encode_masks({"layer0": moved}, spec, None)
    delta, relative = encode_masks({"layer0": moved}, spec, masks)
    assert (alone, relative) == (False, True)
    assert len(delta) < len(full) / 5


def test_mask_hash_by_hand():
    masks = {"b": slots(1, 2), "a": slots(7)}
    text = struct.pack("<I1sIi", 1, b"a", 1, 7) + struct.pack("<I1sIii", 1, b"b", 2, 1, 2)
    assert mask_hash(masks) == hashlib.sha256(text).digest()[:16]
    assert mask_hash(masks) == mask_hash({"a": slots(7), "b": slots(1, 2)})
    assert mask_hash(masks) != mask_hash({"a": slots(7), "b": slots(1, 3)})


@pytest.mark.parametrize(
    "other",
    [
        {"a": slots(7)},
        {"a": slots(7), "c": slots(1, 2)},
        {"a": slots(7), "b": slots(1)},
        {"a": slots(7), "b": slots(1, 3)},
        {},
    ],
)
def test_masks_are_the_same_where_their_hashes_are(other):
    masks = {"b": slots(1, 2), "a": slots(7)}
    assert same_masks(masks, {"a": slots(7), "b": slots(1, 2)})
    assert not same_masks(masks, other)
    assert not same_masks(other, masks)
    assert mask_hash(masks) != mask_hash(other)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (NOTHING, "shape"),
        (np.array([1, 2]), "int64"),
        (slots(1, 2).reshape(1, 2), "shape"),
        (slots(-1, 2), "out of range"),
        (slots(0, 192), "out of range"),
        (slots(8, -1), "out of range"),
        (slots(192, 8), "out of range"),
        (slots(8, 8), "do not increase"),
        (slots(16, 8), "do not increase"),
        (slots(8, 9), "share a granule"),
    ],
)
def test_masks_that_break_the_rules(mask, reason):
    spec = spec_for("pattern", ((6, 4, 3, 3),))
    with pytest.raises(WireError, match=reason):
        check_masks({"layer0": mask}, spec)


@pytest.mark.parametrize("names", [[], ["other"], ["layer0", "other"]])
def test_masks_of_other_groups(names):
    with pytest.raises(WireError, match="mask groups"):
        check_masks(dict.fromkeys(names, slots(1)), spec_for("unstructured", ((4, 4),)))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (b"", "cut off"),
        (struct.pack("<BII", 0, 2, 3) + b"\3\0", "cut off"),
        (struct.pack("<BII", 0, 2, 2) + b"\3\0\0", "too many"),
        (struct.pack("<BII", 0, 3, 2) + b"\3\0", "holds 2"),
        (struct.pack("<BII", 0, 1, 1) + b"\1", "bitmap of 16 slots"),
        (struct.pack("<BII", 0, 0, 2) + b"\0\0", "0 slots"),
        (struct.pack("<BII", 0, 2**32 - 1, 2) + b"\0\0", "slots in"),
        (struct.pack("<BII", 1, 2, 3) + b"\1\1\1", "in 3 bytes"),
        (struct.pack("<BII", 2, 2, 2) + b"\3\0", "codec 2"),
        (struct.pack("<BII", 9, 2, 2) + b"\3\0", "codec 9"),
    ],
)
def test_entries_that_are_wrong(entry, reason):
    with pytest.raises(WireError, match=reason):
        decode_masks(entry, spec_for("unstructured", ((4, 4),)), None)
