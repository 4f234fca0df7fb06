"""Mutation by hand, and properties over every method and scheme."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.sparsity import (
    METHODS,
    Bounds,
    Interval,
    Mask,
    MestEM,
    MestEMS,
    Set,
    Static,
    build_method,
    carry,
    grow,
    layout_for,
    magnitude_mask,
)
from mest_fed.sparsity.schedules import Constant, CosineDecay, Stages

SCHEMES = ["unstructured", "block:4", "block:3", "pattern", "channel"]


def generator(seed=0):
    return np.random.default_rng(seed)


def test_importance_is_weight_plus_lambda_gradient():
    method = MestEM(gradient_weight=0.5)
    values, gradients = np.array([[3.0], [-1.0]]), np.array([[0.0], [-8.0]])
    assert method.importance(values, gradients).tolist() == [3.0, 5.0]
    assert method.importance(values, None).tolist() == [3.0, 1.0]


def test_a_active_gradient_changes_what_is_dropped():
    layout = layout_for("unstructured", (1, 10))
    mask = Mask.of(layout, np.arange(5))
    values = np.array([[5.0], [4.0], [3.0], [2.0], [1.0]])
    gradients = np.array([[0.0], [0.0], [0.0], [0.0], [9.0]])
    method = MestEM(gradient_weight=0.5)
    proposal = (np.arange(10), np.arange(10.0))
    bounds = Bounds(floor=0.8)
    by_both = method.mutate(mask, method.importance(values, gradients), proposal, 5, bounds)
    by_size = method.mutate(mask, method.importance(values, None), proposal, 5, bounds)
    assert by_both.slots.tolist() == [0, 1, 2, 4, 9]  # slot 3 went, the best proposal 9 came
    assert by_size.slots.tolist() == [0, 1, 2, 3, 9]


def test_the_just_dropped_do_not_come_back_even_if_proposed_first():
    layout = layout_for("unstructured", (1, 6))
    mask = Mask.of(layout, np.array([0, 1, 2, 3]))
    proposal = (np.arange(6), np.array([0.0, 0, 0, 99, 2, 1]))
    importance = np.array([4.0, 3, 2, 1])
    new = Set().mutate(mask, importance, proposal, 4, Bounds(floor=0.75))
    assert new.slots.tolist() == [0, 1, 2, 4]


def test_a_nearly_dense_mask_replaces_no_more_than_the_inactive():
    layout = layout_for("unstructured", (1, 10))
    mask = Mask.of(layout, np.arange(9))
    proposal = Set().growth_order(layout, generator())
    new = Set().mutate(mask, np.arange(9.0), proposal, 9, Bounds(floor=0.5))
    assert new.slots.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]  # one dropped, the one inactive came


def test_an_active_weight_that_is_zero_stays_active():
    layout = layout_for("unstructured", (1, 4))
    mask = Mask.of(layout, np.array([1, 2]))
    zero = np.zeros((2, 1))
    kept = Static().mutate(
        mask, Static().importance(zero, None), (np.arange(4), np.arange(4.0)), 2, Bounds()
    )
    assert kept.slots.tolist() == [1, 2]


def test_grown_values_and_momentum_start_at_zero():
    layout = layout_for("unstructured", (1, 5))
    old = Mask.of(layout, np.array([0, 3]))
    new = Mask.of(layout, np.array([3, 4]))
    assert carry(np.array([[1.0], [2.0]]), new.rows_in(old)).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "dense"])
def test_every_method_holds_its_bounds_on_every_scheme(name, scheme):
    layout = layout_for(scheme, (10, 8, 3, 3))
    method = build_method(name, 0.2)
    dense = generator().normal(size=layout.shape)
    target = layout.count_for(0.2)
    mask = magnitude_mask(layout, dense, target)
    for step in range(1, 12):
        progress = step / 12
        bounds = method.bounds(progress)
        gradient = generator(step).normal(size=layout.shape)
        values = layout.gather(dense, mask.slots)
        before = mask.active()
        importance = method.importance(values, layout.gather(gradient, mask.slots))
        proposal = method.growth_order(layout, generator(step), gradient)
        mask = method.mutate(mask, importance, proposal, target, bounds)
        assert len(mask) == round(target * bounds.ceiling)
        assert np.array_equal(mask.slots, np.unique(mask.slots))
        assert len(np.unique(mask.granules)) == len(mask)
        born = mask.active() & ~before
        assert int(born.sum()) >= len(mask) - int(before.sum())
    assert len(mask) == target  # every schedule ends at the target


def test_rigl_grows_where_the_gradient_is_largest():
    layout = layout_for("unstructured", (1, 6))
    gradient = np.array([[0.0, 7, -9, 1, 8, 2]])
    slots, scores = build_method("rigl", 0.1).growth_order(layout, generator(), gradient)
    mask = grow(Mask.of(layout, np.array([4])), 3, (slots, scores))
    assert mask.slots.tolist() == [1, 2, 4]
    with pytest.raises(ValueError, match="dense gradient"):
        build_method("rigl", 0.1).growth_order(layout, generator())


@given(st.integers(0, 1000), st.sampled_from(SCHEMES))
def test_all_who_draw_from_one_seed_grow_the_same(seed, scheme):
    layout = layout_for(scheme, (4, 4, 3, 3))
    mine, yours = (MestEM().growth_order(layout, generator(seed)) for _ in range(2))
    assert np.array_equal(mine[0], yours[0])
    assert np.array_equal(mine[1], yours[1])


def test_mest_schedules_are_those_of_the_paper():
    assert [MestEM().bounds(p).floor for p in (0, 0.5, 0.6, 0.8)] == [0.8, 0.8, 0.9, 1.0]
    soft = build_method("mest-ems", 0.1)
    assert [soft.bounds(p).ceiling for p in (0, 0.6, 0.8)] == [1.5, 1.25, 1.0]
    softer = build_method("mest-ems", 0.05)
    assert [softer.bounds(p).ceiling for p in (0, 0.6, 0.8)] == [2.0, 1.5, 1.0]
    assert MestEMS().peak == 1.5
    assert MestEM().peak == 1.0


def test_mutation_intervals():
    interval = Interval(160)
    assert [step for step in range(160) if interval.due(step)] == list(range(5, 160, 5))
    assert not interval.due(0)
    assert [step for step in range(4) if Interval(4).due(step)] == [1, 2, 3]
    with pytest.raises(InputError, match="mutation period"):
        Interval(10, period=0)


def test_schedules_decay_to_zero():
    assert CosineDecay(0.3)(0) == pytest.approx(0.3)
    assert CosineDecay(0.3)(0.375) == pytest.approx(0.15)
    for schedule in (CosineDecay(0.3), Constant(0.3), Stages(0.2, 0.1)):
        assert schedule(0.75) == 0.0


def test_unknown_methods_are_refused_by_name():
    with pytest.raises(InputError, match="mest-em, mest-ems"):
        build_method("mest", 0.1)


@pytest.mark.parametrize("name", ["set", "rigl", "feddst", "feddst:0.1", "static", "snip"])
def test_the_rivals_rank_by_magnitude_alone_as_their_papers_do(name):
    values = np.array([[3.0], [-1.0], [2.0]], np.float32)
    gradients = np.array([[0.0], [9.0], [0.0]], np.float32)
    method = build_method(name, 0.1, 0.5)
    assert method.importance(values, gradients).tolist() == [3, 1, 2]
    assert build_method("mest-em", 0.1, 0.5).importance(values, gradients).tolist() == [3, 5.5, 2]
