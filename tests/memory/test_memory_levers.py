"""The levers: their steps, and what a step changes."""

from dataclasses import replace

import pytest
from planner_cases import SHAPE, WISH, everything

from mest_fed.errors import InputError
from mest_fed.memory import (
    BATCH_NORM_PREFERENCE,
    DENSITY_STEPS,
    FORMATS,
    PREFERENCE,
    RECOMPUTE,
    Savings,
    Wish,
)


def steps(wish, name):
    (lever,) = [lever for lever in wish.levers() if lever.name == name]
    assert lever.pull(wish.shape, lever.steps[0]) == wish.shape  # the first step is the wish
    return list(lever.steps)


def wish(batch=8, micro_batch=None, **what):
    shape = replace(SHAPE, batch=batch, micro_batch=micro_batch or batch)
    return Wish(shape, **what)


def saving(**savings):
    return Wish(replace(SHAPE, savings=Savings(**savings)), segments=6)


def test_the_levers_come_in_the_order_of_preference():
    assert [lever.name for lever in WISH.levers()] == list(PREFERENCE)
    batch = replace(WISH, batch_statistics=True)
    assert [lever.name for lever in batch.levers()] == list(BATCH_NORM_PREFERENCE)
    assert sorted(PREFERENCE) == sorted(BATCH_NORM_PREFERENCE)
    assert PREFERENCE != BATCH_NORM_PREFERENCE
    given = PREFERENCE[::-1]
    assert [lever.name for lever in WISH.levers(given)] == list(given)


@pytest.mark.parametrize("wrong", [PREFERENCE[1:], (*PREFERENCE, "saved"), (), ("bits",) * 7])
def test_an_order_names_each_lever_once(wrong):
    with pytest.raises(InputError, match=r"preference = .* allowed: each of consume, micro_batch"):
        WISH.levers(wrong)


@pytest.mark.parametrize(
    ("batch", "least", "sizes"),
    [
        (16, 1, [16, 8, 4, 2, 1]),
        (11, 1, [11, 6, 3, 2, 1]),
        (16, 5, [16, 8, 5]),
        (16, 16, [16]),
        (16, 99, [16]),
        (1, 1, [1]),
    ],
)
def test_micro_batches_halve_upwards_to_the_least(batch, least, sizes):
    assert steps(wish(batch, least_micro_batch=least), "micro_batch") == sizes


def test_micro_batches_start_at_what_is_wished():
    assert steps(wish(16, 5), "micro_batch") == [5, 3, 2, 1]


def test_densities_are_shares_of_the_wish():
    assert steps(WISH, "density") == [0.2 * step for step in DENSITY_STEPS]
    assert steps(replace(WISH, sparse=False), "density") == [0.2]


@pytest.mark.parametrize(
    ("segments", "frozen", "expected"),
    [
        (0, 0, [0]),
        (2, 0, [0, 1]),
        (3, 0, [0, 1, 2]),
        (16, 0, [0, 5, 10]),
        (6, 2, [2, 4]),
        (6, 5, [5]),
    ],
)
def test_up_to_two_thirds_of_the_segments_freeze(segments, frozen, expected):
    shape = replace(SHAPE, savings=Savings(frozen=frozen))
    assert steps(Wish(shape, segments=segments), "frozen") == expected


def test_savings_that_are_wished_for_are_where_their_levers_start():
    assert steps(WISH, "recompute") == list(RECOMPUTE)
    assert steps(WISH, "saved") == ["fp32", "fp16", "int8"]
    assert steps(saving(recompute="norms"), "recompute") == ["norms", "segments"]
    assert steps(saving(saved="fp16"), "saved") == ["fp16", "int8"]
    assert steps(saving(consume=True), "consume") == [True]
    without = Wish(replace(SHAPE, momentum=False))
    assert steps(without, "momentum") == [False]


def test_without_segments_none_are_recomputed():
    assert steps(Wish(SHAPE), "recompute") == ["none", "norms"]
    wished = Wish(replace(SHAPE, savings=Savings("segments")))
    assert steps(wished, "recompute") == ["segments"]


@pytest.mark.parametrize("saved", [name for name in FORMATS if name in ("mask", "bf16")])
def test_formats_that_are_only_chosen_by_hand_stay(saved):
    assert steps(saving(saved=saved), "saved") == [saved]


@pytest.mark.parametrize("name", PREFERENCE)
def test_a_fixed_lever_is_none(name):
    levers = replace(WISH, fixed=frozenset({name})).levers()
    assert [lever.name for lever in levers] == [other for other in PREFERENCE if other != name]


def test_a_lever_pulls_its_own_part_alone():
    for lever in WISH.levers():
        pulled = lever.pull(SHAPE, lever.steps[-1])
        assert pulled != SHAPE
        back = lever.pull(pulled, lever.steps[0])
        assert back == SHAPE


def test_all_combinations_are_different_plans():
    shapes = [shape for _, shape in everything(WISH.levers())]
    assert len(set(shapes)) == len(shapes) == 2 * 4 * 3 * 3 * 4 * 2 * 3
    assert shapes[0] == SHAPE
