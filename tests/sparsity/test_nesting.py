"""Nested masks of device tiers."""

from itertools import pairwise

import numpy as np

from mest_fed.sparsity import Mask, keep_best, layout_for, nested_order


def test_old_granules_are_ranked_by_importance():
    scores = nested_order(np.array([1.0, 3.0, 2.0]), np.zeros(3, bool))
    assert (-scores).argsort().tolist() == [1, 2, 0]


def test_grown_granules_are_spread_over_the_ranking():
    grown = np.array([False] * 6 + [True] * 3)
    importance = np.array([6.0, 5, 4, 3, 2, 1, 0, 0, 0])
    order = (-nested_order(importance, grown)).argsort().tolist()
    for share in (3, 6, 9):
        assert sum(index >= 6 for index in order[:share]) == share // 3


def test_masks_of_lower_density_lie_within_those_of_higher():
    layout = layout_for("pattern", (4, 6, 3, 3))
    dense = np.random.default_rng(0).normal(size=layout.shape)
    slots, norms = layout.best_slots(dense)
    mask = Mask.of(layout, slots)
    masks = [set(keep_best(mask, norms, count).slots.tolist()) for count in range(1, 25)]
    assert all(small < large for small, large in pairwise(masks))
