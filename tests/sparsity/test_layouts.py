"""Layouts: where granules stand, padding, and how many weights they cover."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.sparsity import SCHEMES, layout_for
from mest_fed.sparsity.schemes import PATTERNS, Block, Channel, Pattern, Unstructured


def test_unstructured_positions_are_the_slots():
    layout = Unstructured((2, 3))
    assert layout.positions(np.array([0, 4])).tolist() == [[0], [4]]


def test_block_is_a_strip_of_output_channels_at_one_column():
    layout = Block((4, 1, 1, 3), rows=2)  # a 4x3 matrix: strips of 2 rows, 3 columns
    assert layout.num_granules == 6
    assert layout.positions(np.array([0, 4])).tolist() == [[0, 3], [7, 10]]


def test_block_pads_output_channels_that_rows_does_not_divide():
    layout = Block((5, 2), rows=4)  # strips of rows 0-3 and 4-7, of which only row 4 exists
    positions = layout.positions(np.array([1, 2]))
    assert positions.tolist() == [[1, 3, 5, 7], [8, 10, 10, 10]]  # 10 is one past the end
    assert layout.active_weights(np.array([1, 2])) == 4 + 1


def test_pattern_positions_and_the_eight_patterns():
    layout = Pattern((2, 3, 3, 3))
    assert len(set(PATTERNS)) == 8
    assert all(len(set(cells)) == 4 for cells in PATTERNS)
    slot = np.array([(1 * 3 + 2) * 8 + 3])  # kernel (1, 2) with the pattern of cells 0 1 3 4
    assert layout.positions(slot).tolist() == [[45, 46, 48, 49]]


def test_pattern_chooses_the_variant_of_largest_norm():
    layout = Pattern((1, 1, 3, 3))
    dense = np.zeros((1, 1, 3, 3))
    dense[0, 0, 1, 2] = dense[0, 0, 2, 0] = dense[0, 0, 2, 1] = dense[0, 0, 2, 2] = 1.0
    slots, norms = layout.best_slots(dense)
    assert PATTERNS[int(slots[0])] == (5, 6, 7, 8)
    assert norms.tolist() == [2.0]
    ties, _ = layout.best_slots(np.ones((1, 1, 3, 3)))
    assert ties.tolist() == [0]  # the first variant


def test_channel_axes_meet_in_the_shared_channel():
    made, read = Channel((3, 2, 1, 1), axis="out"), Channel((2, 3, 1, 1), axis="in")
    assert made.positions(np.array([1])).tolist() == [[2, 3]]  # row 1
    assert read.positions(np.array([1])).tolist() == [[1, 4]]  # column 1


@pytest.mark.parametrize("scheme", [*SCHEMES, "block:3"])
@given(data=st.data())
def test_scatter_inverts_gather(scheme, data):
    sides = st.integers(1, 9)
    shape = (data.draw(sides), data.draw(sides), 3, 3)
    layout = layout_for(scheme, shape)
    dense = np.random.default_rng(data.draw(st.integers(0, 9))).normal(size=shape)
    slots, _ = layout.best_slots(dense)
    count = data.draw(st.integers(1, layout.num_granules))
    slots = slots[:count]
    values = layout.gather(dense, slots)
    rebuilt = layout.scatter(values, slots)
    kept = rebuilt != 0
    assert np.array_equal(rebuilt[kept], dense[kept])
    assert int(kept.sum()) == layout.active_weights(slots)
    assert np.array_equal(layout.gather(rebuilt, slots), values)


@pytest.mark.parametrize("scheme", [*SCHEMES, "block:3"])
def test_every_weight_belongs_to_some_slot(scheme):
    layout = layout_for(scheme, (6, 5, 3, 3))
    covered = np.unique(layout.positions(np.arange(layout.num_slots))).tolist()
    assert [p for p in covered if p < layout.num_weights] == list(range(layout.num_weights))


@pytest.mark.parametrize("density", [0, -0.1, 1.5])
def test_impossible_densities_are_refused(density):
    with pytest.raises(InputError, match=r"density = .* is not allowed; allowed: a number in"):
        Unstructured((4, 4)).count_for(density)


def test_patterns_hold_four_ninths_at_most():
    layout = Pattern((4, 4, 3, 3))
    assert layout.count_for(4 / 9) == 16
    with pytest.raises(InputError, match=r"0\.4444"):
        layout.count_for(0.5)


@pytest.mark.parametrize("scheme", ["block:0", "block:x", "block:"])
def test_a_block_of_no_rows_is_refused(scheme):
    with pytest.raises(InputError, match=f"'{scheme}' is not allowed; .* at least 1"):
        layout_for(scheme, (8, 8))


@pytest.mark.parametrize("scheme", ["blok", "unstructured:2", ""])
def test_unknown_schemes_are_refused_by_name(scheme):
    with pytest.raises(InputError, match="unstructured, block, pattern, channel, block:ROWS"):
        layout_for(scheme, (4, 4))


@pytest.mark.parametrize("rows", [8, 9, 10])
def test_active_weights_of_blocks_are_those_at_positions(rows):
    layout = Block((rows, 6), rows=4)
    for slots in (np.arange(layout.num_slots), np.array([0, 3]), np.array([2, 11])):
        inside = layout.positions(slots) < layout.num_weights
        assert layout.active_weights(slots) == int(inside.sum())


@pytest.mark.parametrize("scheme", [*SCHEMES, "block:3"])
def test_positions_of_tensors_are_those_of_arrays(scheme):
    layout = layout_for(scheme, (7, 5, 3, 3))
    slots = np.arange(0, layout.num_slots, 3, dtype=np.int32)
    tensor = torch.from_numpy(slots)
    positions = layout.positions(tensor)
    assert positions.dtype == torch.int64
    assert np.array_equal(positions.numpy(), layout.positions(slots))
    assert layout.active_weights(tensor) == layout.active_weights(slots)
