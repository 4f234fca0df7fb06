"""Choosing the best granules, balanced over groups and nested over counts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.sparsity import Mask, keep_best, layout_for, select_best


def test_the_best_of_one_group():
    assert select_best(np.array([1.0, 5.0, 3.0, 5.0]), 2).tolist() == [1, 3]
    assert select_best(np.array([2.0, 2.0, 2.0]), 2).tolist() == [0, 1]  # ties: lower first


def test_groups_share_evenly_and_the_rest_goes_to_the_best():
    scores = np.array([9.0, 8, 7, 1, 6, 2, 0, 5, 4])  # three groups of three
    assert select_best(scores, 3, 3).tolist() == [0, 4, 7]  # the best one of each
    assert select_best(scores, 4, 3).tolist() == [0, 1, 4, 7]  # 8 is the best second one


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=12, max_size=12),
    st.integers(0, 12),
    st.sampled_from([1, 2, 3, 4]),
)
def test_choices_are_balanced_exact_and_nested(scores, count, groups):
    chosen = select_best(np.array(scores), count, groups)
    assert len(chosen) == count
    per_group = np.bincount(chosen // (12 // groups), minlength=groups)
    assert int(per_group.max() - per_group.min()) <= (1 if groups > 1 else 12)
    if count:
        smaller = select_best(np.array(scores), count - 1, groups)
        assert set(smaller.tolist()) <= set(chosen.tolist())


def test_keep_best_keeps_variants():
    layout = layout_for("pattern", (1, 3, 3, 3))
    mask = Mask.of(layout, np.array([2, 8 + 5, 16 + 7]))
    kept = keep_best(mask, np.array([1.0, 3.0, 2.0]), 2)
    assert kept.slots.tolist() == [13, 23]
